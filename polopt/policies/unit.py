"""Actors of bounded boxes, whose actions lie in [-1, 1] until the environment gets them."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import from_unit
from polopt.core.networks import Feedforward, Linear, Torso
from polopt.policies.deployed import Deployed
from polopt.policies.distributions import SquashedGaussian

LOG_STD = (-20.0, 2.0)  # bounds of the log deviation of a Gaussian actor


class DeterministicActor(eqx.Module):
    """mu(s): maps (vector, images) to a unit action through tanh."""

    torso: Torso
    head: Linear
    action_space: spaces.Box = eqx.field(static=True)

    def __init__(self, spec: Feedforward, observation_space, action_space, key):
        self.torso, self.head = _layers(spec, observation_space, math.prod(action_space.shape), key)
        self.action_space = action_space

    def __call__(self, vector, pictures):
        _, x = self.torso((), vector, pictures)
        return jnp.tanh(self.head(x)).reshape(self.action_space.shape)

    def draw(self, vector, pictures, key=None):
        """The action; there is nothing to draw."""
        return self(vector, pictures)


class GaussianActor(eqx.Module):
    """pi(a|s): maps (vector, images) to a Gaussian sent through tanh, mean and deviation both from the state."""

    torso: Torso
    head: Linear
    action_space: spaces.Box = eqx.field(static=True)

    def __init__(self, spec: Feedforward, observation_space, action_space, key):
        self.torso, self.head = _layers(spec, observation_space, 2 * math.prod(action_space.shape), key)
        self.action_space = action_space

    def __call__(self, vector, pictures) -> SquashedGaussian:
        _, x = self.torso((), vector, pictures)
        mean, log_std = (y.reshape(self.action_space.shape) for y in jnp.split(self.head(x), 2))
        return SquashedGaussian(mean, jnp.clip(log_std, *LOG_STD), jnp.float32(-1), jnp.float32(1))

    def draw(self, vector, pictures, key=None):
        """A unit action, the Gaussian's mean through tanh without a key."""
        distribution = self(vector, pictures)
        return distribution.action(distribution.mode() if key is None else distribution.sample(key))


class UnitPolicy(Deployed):
    """A deployed actor of a box: actions in the bounds of the environment."""

    actor: DeterministicActor | GaussianActor

    def act(self, carry, observation, key=None):
        return carry, from_unit(self.action_space, self.actor.draw(*self.normaliser(observation), key))


def _layers(spec: Feedforward, observation_space, outputs: int, key):
    k_torso, k_head = jax.random.split(key)
    pictures = tuple(image.shape for image in spaces.images(observation_space))
    torso = Torso(spec, spaces.size(observation_space), pictures, k_torso)
    return torso, Linear(torso.features, outputs, k_head, gain=0.01)
