"""How an off-policy learner acts while it learns: what is added to, or put in the place of, its own action.

An exploration starts with `init(num_envs, space)`, what it remembers for each copy, and is called with the learner's actions (num_envs, ...),
with `start` where an episode begins and the fraction of the run that is done: (actions, memory).
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part


class Exploration(Protocol):
    def init(self, num_envs: int, space) -> Any: ...

    def __call__(self, action, memory, start, progress, key, space) -> tuple[jax.Array, Any]: ...


@part
class Drawn:
    """The action as the policy draws it."""

    def init(self, num_envs, space):
        return ()

    def __call__(self, action, memory, start, progress, key, space):
        return action, memory


@part
class GaussianNoise:
    """Independent noise for every entry of the action and every step, in units of half the box."""

    std: float = hyper(0.1, at_least=0)  # standard deviation of the noise, where the box is [-1, 1]

    def init(self, num_envs, space):
        return ()

    def __call__(self, action, memory, start, progress, key, space):
        return jnp.clip(action + self.std * jax.random.normal(key, action.shape), -1, 1), memory


@part
class OrnsteinUhlenbeck:
    """Noise that drifts: n' = n - theta n + sigma N(0, I), from 0 at the start of an episode."""

    theta: float = hyper(0.15, at_least=0, at_most=1)  # fraction of the noise that is lost in a step
    sigma: float = hyper(0.2, at_least=0)  # standard deviation of what is added in a step, where the box is [-1, 1]

    def init(self, num_envs, space):
        return jnp.zeros((num_envs, *space.shape))

    def __call__(self, action, memory, start, progress, key, space):
        memory = jnp.where(start.reshape(-1, *(1,) * (memory.ndim - 1)), 0.0, memory)
        memory = memory - self.theta * memory + self.sigma * jax.random.normal(key, memory.shape)
        return jnp.clip(action + memory, -1, 1), memory


@part
class EpsilonGreedy:
    """A random action with a probability that falls linearly over the first part of the run."""

    first: float = hyper(1.0, at_least=0, at_most=1)  # probability of a random action at the start of the run
    last: float = hyper(0.05, at_least=0, at_most=1)  # probability once it has fallen
    fraction: float = hyper(0.1, above=0, at_most=1)  # part of the run over which it falls

    def init(self, num_envs, space):
        return ()

    def __call__(self, action, memory, start, progress, key, space):
        k_which, k_action = jax.random.split(key)
        epsilon = self.first + (self.last - self.first) * jnp.minimum(progress / self.fraction, 1.0)
        other = jax.random.randint(k_action, action.shape, 0, space.n, action.dtype)
        return jnp.where(jax.random.bernoulli(k_which, epsilon, action.shape), other, action), memory
