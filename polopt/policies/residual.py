"""Policies that add to a trained one: a fixed policy mu_0 of unit actions, and a network rho that is learnt on top of it."""

from __future__ import annotations

import math
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import spaces
from polopt.core.actions import to_unit
from polopt.core.networks import Feedforward, Linear, Torso
from polopt.core.parts import part
from polopt.policies.saved import open_policy


class Trained(Protocol):
    """mu_0: `open(env)` gives a pytree that maps a vector observation to a unit action."""

    def open(self, env) -> Any: ...


class Middle(eqx.Module):
    """The middle of the box."""

    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, vector):
        return jnp.zeros(self.shape)


class Saved(eqx.Module):
    """A deployed policy, its most likely action."""

    policy: Any
    action_space: spaces.Box = eqx.field(static=True)

    def __call__(self, vector):
        observation = vector.reshape(self.policy.observation_space.shape)
        return to_unit(self.action_space, self.policy.act(self.policy.initial_carry(), observation)[1])


class Affine(eqx.Module):
    """gain x + offset, (outputs, inputs) and (outputs,), as a unit action."""

    gain: jax.Array
    offset: jax.Array

    def __call__(self, vector):
        return self.gain @ vector + self.offset


@part
class FromRun:
    """The policy of a run."""

    run: str | None = None  # folder of the run of the trained policy; none for the middle of the box

    def open(self, env):
        if self.run is None:
            return Middle(env.action_space.shape)
        return Saved(jax.tree.map(jnp.asarray, open_policy(self.run)), env.action_space)


@part
class Gain:
    """A linear policy, rows of numbers by state."""

    gain: tuple[tuple[float, ...], ...]  # in the units of the environment

    def open(self, env):
        low, high = env.action_space.bounds()
        half, middle = (high - low) / 2, (high + low) / 2
        return Affine(jnp.asarray(np.asarray(self.gain, np.float32) / half[:, None]), jnp.asarray(-middle / half))


class ResidualActor(eqx.Module):
    """mu_0 + rho, within [-1, 1]; rho's last layer starts at 0, so that its output does and its gradient does not."""

    trained: Any
    torso: Torso
    head: Linear
    action_space: spaces.Box = eqx.field(static=True)

    def __init__(self, trained, spec: Feedforward, observation_space, action_space, key):
        self.trained, self.action_space = trained, action_space
        self.torso = Torso(spec, spaces.size(observation_space), (), key)
        self.head = Linear(self.torso.features, math.prod(action_space.shape), key, gain=0.0)

    def before(self, vector):
        """mu_0(x)."""
        return jnp.clip(jax.lax.stop_gradient(self.trained)(vector), -1, 1)

    def __call__(self, vector, pictures):
        residual = self.head(self.torso((), vector, pictures)[1]).reshape(self.action_space.shape)
        return jnp.clip(self.before(vector) + residual, -1, 1)

    def draw(self, vector, pictures, key=None):
        return self(vector, pictures)
