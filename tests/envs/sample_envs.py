"""Environments of a user, sound and broken, as the tests load them by path."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from polopt.core.spaces import Box, Discrete


class Walk(gymnasium.Env):
    """A random walk that ends by itself beyond 1 and reuses the memory of its observation, as careless environments do."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float64)

    def __init__(self, render_mode=None):
        self.memory = np.zeros(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.memory[:] = self.np_random.uniform(-1, 1, 2)
        return self.memory, {}

    def step(self, action):
        action *= 2  # an environment may do as it likes with its action
        self.memory += self.np_random.normal(0, 0.5, 2) + action
        return self.memory, float(self.memory[0]), bool(abs(self.memory[1]) > 1), False, {"unused": 1}


class BothEnds(gymnasium.Env):
    """Every third step is terminal and the time limit at once."""

    observation_space = spaces.Box(0, 10, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t == 3, self.t == 3, {}


class Kinds(gymnasium.Env):
    """Observes a dict of every kind of space, with its action inside; the kind of action is chosen."""

    ACTIONS = {
        "discrete": spaces.Discrete(3),
        "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 5]]),
        "multi_binary": spaces.MultiBinary(3),
        "box": spaces.Box(-1, 1, (2, 2)),
        "dict": spaces.Dict(left=spaces.Discrete(2), right=spaces.Box(-1, 1, (2,))),
    }

    def __init__(self, action="discrete"):
        self.action_space = self.ACTIONS[action]
        self.observation_space = spaces.Dict(
            image=spaces.Box(0, 255, (4, 5, 3), np.uint8),
            vector=spaces.Box(-np.inf, np.inf, (8,), np.float64),
            one=spaces.Discrete(7),
            many=spaces.MultiDiscrete([3, 4]),
            bits=spaces.MultiBinary(2),
            deep=spaces.Dict(whole=spaces.Box(-5, 5, (2,), np.int64)),
        )

    def _observe(self, action):
        numbers = np.concatenate([np.ravel(action[k]) for k in sorted(action)]) if isinstance(action, dict) else np.ravel(action)
        sample = {k: space.sample() for k, space in self.observation_space.items()}
        sample["vector"] = np.pad(numbers.astype(np.float64), (0, 8 - numbers.size), constant_values=-1)
        return sample

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self._observe(np.zeros(1)), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.t += 1
        return self._observe(action), 0.0, False, self.t == 3, {}


class Many(gymnasium.Env):
    """Two objectives, as mo-gymnasium declares them, and one cost, as safety-gymnasium reports it. Ends after two steps."""

    observation_space = spaces.Box(0, 10, (1,))
    action_space = spaces.Discrete(2)
    reward_space = spaces.Box(-10, 10, (2,))
    costs = 1

    def __init__(self, forget=False):
        self.forget = forget

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), np.array([self.t, -1.0 - action]), self.t == 2, False, {} if self.forget else {"cost": 10 * self.t}


class Broken(gymnasium.Env):
    """Breaks a promise at its third step."""

    action_space = spaces.Discrete(2)

    def __init__(self, fault):
        self.fault = fault
        self.observation_space = spaces.Discrete(4) if fault == "outside" else spaces.Box(0, 1, (4,), np.uint8 if fault == "fraction" else np.float32)
        if fault == "start":
            raise OSError("no display")

    def _good(self):
        return 1 if self.fault == "outside" else np.zeros(4, self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self._good() if self.fault == "bare reset" else (self._good(), {})

    def step(self, action):
        self.t += 1
        observation, reward, terminated = self._good(), 1.0, False
        if self.t == 3:
            if self.fault == "raise":
                raise ZeroDivisionError("division by zero")
            if self.fault == "old api":
                return observation, reward, terminated, {}
            observation = {
                "shape": np.zeros(3, np.float32),
                "nan": np.array([0, 1, np.nan, 0], np.float32),
                "text": np.array(["a", "b", "c", "d"]),
                "fraction": np.array([0.5, 0, 0, 0]),
                "outside": 4,
            }.get(self.fault, observation)
            reward = {"infinite reward": np.inf, "reward vector": np.zeros(2), "no reward": None}.get(self.fault, reward)
            terminated = None if self.fault == "no flag" else terminated
        return observation, reward, terminated, False, {}


def short_walk():
    return gymnasium.wrappers.TimeLimit(Walk(), 4)


class JaxWalk:
    """A user's JAX environment."""

    observation_space = Box(-10.0, 10.0, (1,))
    action_space = Discrete(2)
    objectives = 0
    costs = 0

    def __init__(self, fault=None):
        self.fault = fault
        if fault == "no costs":
            self.costs_ = 0

    def reset(self, key):
        return jax.random.normal(key), jnp.zeros((2,) if self.fault == "shape" else (1,))

    def step(self, state, action, key):
        after = state + 2 * action - 1
        result = after, after[None], after, jnp.zeros((0,)), jnp.abs(after) > 3, jnp.zeros((), bool)
        return result[:5] if self.fault == "five" else result


NOT_AN_ENVIRONMENT = 7
