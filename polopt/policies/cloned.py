"""Actors that are fitted to logged actions: a density at any action of the space, the bounds of a box included."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward, Linear, Torso
from polopt.policies.deployed import Deployed, taken
from polopt.policies.distributions import Bernoulli, Categorical, Gaussian, MultiCategorical

LOG_STD = (-5.0, 2.0)  # bounds of the log deviation of a box's actions


class ClonedActor(eqx.Module):
    """pi(a|s): maps (vector, images) to a distribution of actions as learners see them.

    Of a box a Gaussian with tanh on its mean, none on its draw, and a deviation that no state changes; else the space's categorical.
    """

    torso: Torso
    head: Linear
    log_std: jax.Array | None
    action_space: spaces.Space = eqx.field(static=True)

    def __init__(self, spec: Feedforward, observation_space, action_space, key):
        k_torso, k_head = jax.random.split(key)
        box = isinstance(action_space, spaces.Box)
        pictures = tuple(image.shape for image in spaces.images(observation_space))
        self.torso = Torso(spec, spaces.size(observation_space), pictures, k_torso)
        self.head = Linear(self.torso.features, math.prod(action_space.shape) if box else spaces.size(action_space), k_head, gain=0.01)
        self.log_std = jnp.zeros(action_space.shape) if box else None
        self.action_space = action_space

    def __call__(self, vector, pictures):
        return cloned(self.action_space, self.head(self.torso((), vector, pictures)[1]), self.log_std)


def cloned(space, x, log_std):
    """The distribution of a space's actions from a head's numbers x (n,) and, of a box, the log deviation."""
    if isinstance(space, spaces.Discrete):
        return Categorical(x)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategorical(x, space.nvec)
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(x)
    return Gaussian(jnp.tanh(x.reshape(space.shape)), jnp.clip(log_std, *LOG_STD), jnp.float32(-1), jnp.float32(1))


class ClonedPolicy(Deployed):
    """A deployed actor: actions in the bounds of the environment."""

    actor: ClonedActor

    def act(self, carry, observation, key=None):
        return carry, taken(self.action_space, self.actor(*self.normaliser(observation)), key)[1]
