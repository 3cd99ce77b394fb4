"""Actors that are fitted to logged actions: a density at any action of the space, the bounds of a box included."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import from_unit
from polopt.core.networks import Feedforward, Linear, Torso
from polopt.policies.actor import Normaliser
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
        x, space = self.head(self.torso((), vector, pictures)[1]), self.action_space
        if isinstance(space, spaces.Discrete):
            return Categorical(x)
        if isinstance(space, spaces.MultiDiscrete):
            return MultiCategorical(x, space.nvec)
        if isinstance(space, spaces.MultiBinary):
            return Bernoulli(x)
        return Gaussian(jnp.tanh(x.reshape(space.shape)), jnp.clip(self.log_std, *LOG_STD), jnp.float32(-1), jnp.float32(1))


class ClonedPolicy(eqx.Module):
    """A deployed actor with its normaliser: actions in the bounds of the environment."""

    actor: ClonedActor
    normaliser: Normaliser

    @property
    def observation_space(self):
        return self.normaliser.space

    @property
    def action_space(self):
        return self.actor.action_space

    def initial_carry(self):
        return ()

    def act(self, carry, observation, key=None):
        distribution = self.actor(*self.normaliser(observation))
        action = distribution.action(distribution.mode() if key is None else distribution.sample(key))
        return carry, from_unit(self.action_space, action) if isinstance(self.action_space, spaces.Box) else action
