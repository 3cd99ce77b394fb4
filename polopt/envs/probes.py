"""Probe environments: the smallest problems whose values are known, each isolating one thing that a learner can get wrong.

Every probe has a discrete form (two actions, read as -1 and +1) and a continuous one (one number in [-1, 1]). Below, `a` is that number.
`values(gamma)` gives the true state values of the best policy, `values(gamma, "random")` those of the uniformly random policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core.spaces import Box, Discrete


class Known(NamedTuple):
    """An observation, (features,), and its true value: a number, or (objectives,)."""

    observation: np.ndarray
    value: Any


@dataclass(frozen=True)
class _Form:
    """What the probes share: their action space and how an action is read."""

    continuous: bool = False

    objectives = 0
    costs = 0

    @property
    def action_space(self):
        return Box(-1.0, 1.0, (1,)) if self.continuous else Discrete(2)

    def signed(self, action):
        """The action as a number in [-1, 1]."""
        return jnp.clip(action[0], -1.0, 1.0) if self.continuous else 2.0 * action - 1.0

    def action(self, signed):
        """The action that `signed` reads back."""
        signed = jnp.asarray(signed, jnp.float32)
        return signed[None] if self.continuous else (signed > 0).astype(jnp.int32)

    def match(self, action, sign):
        """How well an action answers a sign: 1 or 0; in the continuous form 1 - (a - sign / 2)^2, best at half the sign."""
        a = self.signed(action)
        return 1.0 - (a - sign / 2) ** 2 if self.continuous else (1.0 + a * sign) / 2

    @property
    def random_match(self) -> float:
        """The mean of `match` over uniformly random actions."""
        return 1 - (1 / 3 + 1 / 4) if self.continuous else 0.5

    def best_match(self, sign):
        """The action that answers a sign best."""
        return self.action(sign / 2)


def _sign(key):
    return jnp.where(jax.random.bernoulli(key), 1.0, -1.0)


def _box(features: int) -> Box:
    return Box(-1.0, 1.0, (features,))


def _step(state, observation, reward, terminated, truncated=False, cost=()):
    reward = jnp.asarray(reward, jnp.float32)
    return state, observation, reward, jnp.asarray(cost, jnp.float32), jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)


@dataclass(frozen=True)
class Value(_Form):
    """One state, one step, reward 1. V = 1. Isolates: value loss, and that a terminal state is worth nothing."""

    observation_space = _box(1)

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros((1,))

    def step(self, state, action, key):
        return _step(state, jnp.zeros((1,)), 1.0, True)

    def values(self, gamma, policy="best"):
        return [Known(np.zeros(1, np.float32), 1.0)]

    def best_action(self, state):
        return self.action(1.0)


@dataclass(frozen=True)
class Credit(_Form):
    """The first action alone decides, and is paid `length` steps later: the last reward is the first a. Isolates: credit over time.

    The observation is (progress, first a): (0, 0) at the start, then (t / length, a). V(start) = gamma^(length-1), or 0 at random;
    V(t / length, a) = a gamma^(length-1-t) for any policy.
    """

    length: int = 3
    observation_space = _box(2)

    def reset(self, key):
        state = jnp.zeros((), jnp.int32), jnp.zeros(())
        return state, self._observe(*state)

    def step(self, state, action, key):
        t, first = state
        first = jnp.where(t == 0, self.signed(action), first)
        last = t + 1 == self.length
        return _step((t + 1, first), self._observe(t + 1, first), jnp.where(last, first, 0.0), last)

    def _observe(self, t, first):
        return jnp.stack([t / self.length, first]).astype(jnp.float32)

    def values(self, gamma, policy="best"):
        start = gamma ** (self.length - 1) if policy == "best" else 0.0
        later = [(t, a) for t in range(1, self.length) for a in (-1.0, 1.0)]
        return [
            Known(np.zeros(2, np.float32), start),
            *(Known(np.array([t / self.length, a], np.float32), a * gamma ** (self.length - 1 - t)) for t, a in later),
        ]

    def best_action(self, state):
        return self.action(1.0)


@dataclass(frozen=True)
class Discount(_Form):
    """Two steps, reward 1 at the end. V(first) = gamma, V(second) = 1. Isolates: discounting and bootstrapping."""

    observation_space = _box(1)

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.zeros((1,))

    def step(self, state, action, key):
        return _step(state + 1, jnp.ones((1,)), state.astype(jnp.float32), state == 1)

    def values(self, gamma, policy="best"):
        return [Known(np.zeros(1, np.float32), gamma), Known(np.ones(1, np.float32), 1.0)]

    def best_action(self, state):
        return self.action(1.0)


@dataclass(frozen=True)
class Endless(_Form):
    """Reward 1 for ever, shown in pieces: after `length` steps the episode is truncated. The observation is t / length.

    V = 1 / (1 - gamma) in every state. Isolates: bootstrapping through truncation from the final observation, not from the next first one.
    """

    length: int = 8
    observation_space = _box(1)

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.zeros((1,))

    def step(self, state, action, key):
        after = state + 1
        return _step(after, (after / self.length).astype(jnp.float32)[None], 1.0, False, after == self.length)

    def values(self, gamma, policy="best"):
        return [Known(np.array([t / self.length], np.float32), 1 / (1 - gamma)) for t in range(self.length + 1)]

    def best_action(self, state):
        return self.action(1.0)


@dataclass(frozen=True)
class Finite(_Form):
    """The twin of `Endless`: the same rewards and observations, but its episodes truly end after `length` steps.

    V(t / length) = 1 + gamma + ... + gamma^(length-1-t). Isolates: that termination is not bootstrapped through.
    """

    length: int = 8
    observation_space = _box(1)

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.zeros((1,))

    def step(self, state, action, key):
        after = state + 1
        return _step(after, (after / self.length).astype(jnp.float32)[None], 1.0, after == self.length)

    def values(self, gamma, policy="best"):
        return [Known(np.array([t / self.length], np.float32), sum(gamma**k for k in range(self.length - t))) for t in range(self.length)]

    def best_action(self, state):
        return self.action(1.0)


@dataclass(frozen=True)
class Action(_Form):
    """One step; the observation is a sign, and the action that matches it earns 1. Isolates: that the policy sees its observation.

    V = 1; at random 1/2, in the continuous form (reward 1 - (a - sign/2)^2) 5/12.
    """

    observation_space = _box(1)

    def reset(self, key):
        sign = _sign(key)
        return sign, sign[None]

    def step(self, state, action, key):
        return _step(state, state[None], self.match(action, state), True)

    def values(self, gamma, policy="best"):
        value = 1.0 if policy == "best" else self.random_match
        return [Known(np.array([sign], np.float32), value) for sign in (-1.0, 1.0)]

    def best_action(self, state):
        return self.best_match(state)


@dataclass(frozen=True)
class Memory(_Form):
    """A sign is shown at the start only; at the last of `length` steps the action must match it. Isolates: recurrent state.

    The observation is (sign at the start and 0 later, progress t / length). With memory V(t) = gamma^(length-1-t); at random, and for any
    policy without memory at best, V(start) is 1/2 of that (continuous: at random 5/12, without memory at best 3/4).
    """

    length: int = 4
    observation_space = _box(2)

    def reset(self, key):
        sign = _sign(key)
        return (jnp.zeros((), jnp.int32), sign), jnp.stack([sign, jnp.zeros(())])

    def step(self, state, action, key):
        t, sign = state
        last = t + 1 == self.length
        observation = jnp.stack([jnp.zeros(()), (t + 1) / self.length]).astype(jnp.float32)
        return _step((t + 1, sign), observation, jnp.where(last, self.match(action, sign), 0.0), last)

    def values(self, gamma, policy="best"):
        last = 1.0 if policy == "best" else self.random_match
        observations = [(0, -1.0), (0, 1.0), *((t, 0.0) for t in range(1, self.length))]
        return [Known(np.array([shown, t / self.length], np.float32), last * gamma ** (self.length - 1 - t)) for t, shown in observations]

    @property
    def without_memory(self) -> float:
        """The best last reward, on average, of a policy that sees only the present observation."""
        return 0.75 if self.continuous else 0.5

    def best_action(self, state):
        return self.best_match(state[1])


@dataclass(frozen=True)
class Vector(_Form):
    """One step, two objectives and one cost: with p = (1 + a) / 2 the reward is (1 - p, p) and the cost p. Isolates: their axes.

    "best" is best for the second objective: V = (0, 1), expected cost 1. At random V = (1/2, 1/2), expected cost 1/2.
    """

    objectives = 2
    costs = 1
    observation_space = _box(1)

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros((1,))

    def step(self, state, action, key):
        p = (1 + self.signed(action)) / 2
        return _step(state, jnp.zeros((1,)), jnp.stack([1 - p, p]), True, cost=p[None])

    def values(self, gamma, policy="best"):
        return [Known(np.zeros(1, np.float32), np.array([0.0, 1.0] if policy == "best" else [0.5, 0.5]))]

    def cost_values(self, gamma, policy="best"):
        return [Known(np.zeros(1, np.float32), np.array([1.0 if policy == "best" else 0.5]))]

    def best_action(self, state):
        return self.action(1.0)


_KINDS = {
    "value": Value,
    "credit": Credit,
    "discount": Discount,
    "truncation": Endless,
    "termination": Finite,
    "action": Action,
    "memory": Memory,
    "vector": Vector,
}

PROBES = {name + suffix: kind(continuous) for suffix, continuous in (("", False), ("-continuous", True)) for name, kind in _KINDS.items()}
