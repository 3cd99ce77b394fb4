"""Implicit quantile networks: the distribution of the return as a function of a fraction tau in [0, 1] (Dabney et al., arXiv:1806.06923)."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward, Linear, Torso
from polopt.objectives import values


class QuantileNetwork(eqx.Module):
    """Z_tau(s, .): from features of (vector, images) to the tau-quantile of each of n actions' returns, (n,).

    psi_j(tau) = relu( sum_{i < cosines} cos(pi i tau) w_ij + b_j ) multiplies the features elementwise. The action of a box enters with the
    vector, and then there is one output.
    """

    torso: Torso
    embedding: Linear
    head: Linear
    cosines: int = eqx.field(static=True)

    def __init__(self, spec: Feedforward, observation_space, action_space, cosines: int, key):
        k_torso, k_embedding, k_head = jax.random.split(key, 3)
        pictures = tuple(image.shape for image in spaces.images(observation_space))
        discrete = isinstance(action_space, spaces.Discrete)
        self.torso = Torso(spec, spaces.size(observation_space) + (0 if discrete else math.prod(action_space.shape)), pictures, k_torso)
        self.embedding = Linear(cosines, self.torso.features, k_embedding)
        self.head = Linear(self.torso.features, action_space.n if discrete else 1, k_head, gain=1.0)
        self.cosines = cosines

    def features(self, vector, pictures):
        """What `quantiles` needs of a state."""
        return self.torso((), vector, pictures)[1]

    def quantiles(self, features, tau):
        waves = jnp.cos(math.pi * tau * jnp.arange(self.cosines, dtype=jnp.float32))
        return self.head(features * jax.nn.relu(self.embedding(waves)))

def midpoints(count: int):
    """(2i - 1) / (2N): fractions whose quantiles stand for N equal shares of the return."""
    return (2 * jnp.arange(count, dtype=jnp.float32) + 1) / (2 * count)


def quantile_regression(quantiles, tau, targets, kappa):
    """(1/N') sum_ij |tau_i - 1[d_ij < 0]| Huber_kappa(d_ij) / kappa with d_ij = target_j - quantile_i; quantiles and tau (N,), targets (N',)."""
    loss = values.quantile_huber(quantiles[:, None], jax.lax.stop_gradient(targets)[None], tau[:, None], kappa)
    return jnp.sum(jnp.mean(loss, axis=1))
