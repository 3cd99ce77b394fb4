"""A value that is distilled from another value and quantiles of the return (PG-Rainbow, arXiv:2407.13146)."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Linear
from polopt.critics.quantile import QuantileNetwork, midpoints
from polopt.critics.value import ValueNetwork


class Distilled(eqx.Module):
    """V_psi(s), in the place of a value network; `reader` is q_phi's quantile network and policy, constants here."""

    value: ValueNetwork
    inner: Linear
    outer: Linear
    reader: tuple[QuantileNetwork, Any]

    @property
    def torso(self):
        return self.value.torso

    def __call__(self, carry, vector, pictures):
        _, value = self.value((), vector, pictures)
        return carry, self.mixed(value * self.read(vector, pictures))

    def read(self, vector, pictures):
        """q_phi(s), (N,)."""
        network, actor = jax.lax.stop_gradient(self.reader)
        distribution = actor((), vector, pictures)[1]
        discrete = isinstance(actor.action_space, spaces.Discrete)
        features = network.features(vector if discrete else jnp.concatenate([vector, distribution.mode().ravel()]), pictures)
        per_action = jax.vmap(lambda tau: network.quantiles(features, tau))(midpoints(self.inner.weight.shape[0]))
        return per_action @ jax.nn.softmax(distribution.logits) if discrete else per_action[:, 0]

    def mixed(self, product):
        """f_psi: the mean, corrected by a network."""
        return jnp.mean(product) + self.outer(jax.nn.relu(self.inner(product)))[0]
