"""Environments of a user, as `file.py:ClassName` names them, that go wrong after a while."""

from dataclasses import dataclass
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from polopt.core.spaces import Box, Dict, Discrete, MultiDiscrete


class Steady(gymnasium.Env):
    """Episodes of seven steps; from its step `sound` on a copy does what its class says."""

    sound = 40

    observation_space = spaces.Box(0, 1, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.steps += 1
        observation = self.late() if self.steps >= self.sound else np.zeros(4, np.float32)
        return observation, 1.0, self.steps % 7 == 0, False, {}


class Raises(Steady):
    def late(self):
        raise ZeroDivisionError("division by zero")


class GivesNaN(Steady):
    sound = 3

    def late(self):
        return np.array([0, np.nan, 0, 0], np.float32)


class BreaksItsSpace(Steady):
    sound = 3

    def late(self):
        return np.zeros(3, np.float32)


class NotAnEnvironment:
    pass


@dataclass(frozen=True)
class Lottery:
    """A JAX environment of one-step episodes, of which one in 700 has a reward that is not a number."""

    observation_space = Box(-1.0, 1.0, (1,))
    action_space = Discrete(2)
    objectives = 0
    costs = 0

    def reset(self, key):
        return jax.random.uniform(key) < 1 / 700, jnp.zeros((1,))

    def step(self, state, action, key):
        reward = jnp.where(state, jnp.nan, 1.0)
        return state, jnp.zeros((1,)), reward, jnp.zeros((0,)), jnp.ones((), bool), jnp.zeros((), bool)


@dataclass(frozen=True)
class Copying:
    """A JAX environment that shows a dict and rewards nothing; an episode has three steps."""

    action_space: Any = MultiDiscrete((2, 3))
    observation_space = Dict((("place", Box(-1.0, 1.0, (2,))), ("room", Discrete(3))))
    objectives = 0
    costs = 0

    def _observe(self, t):
        return {"place": jnp.full((2,), t / 3), "room": jnp.asarray(t % 3, jnp.int32)}

    def reset(self, key):
        return jnp.zeros((), jnp.int32), self._observe(0)

    def step(self, state, action, key):
        after = state + 1
        return after, self._observe(after), jnp.mean(action, dtype=jnp.float32), jnp.zeros((0,)), after == 3, jnp.zeros((), bool)
