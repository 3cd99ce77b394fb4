"""JAX environments: one-copy functions, batched by `vmap`, with the reset at an episode's end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from polopt.core.spaces import Box, Dict, Discrete, Space, cast
from polopt.envs import gymnax_catalogue
from polopt.envs.protocol import Timestep


class Dynamics(Protocol):
    """One copy of an environment as pure functions, without automatic reset.

    `step` returns (state, observation, reward, cost, terminated, truncated); `cost` has shape (costs,).
    """

    observation_space: Space
    action_space: Space
    objectives: int
    costs: int

    def reset(self, key) -> tuple[Any, Any]: ...

    def step(self, state, action, key) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array, jax.Array]: ...


@jax.tree_util.register_static
@dataclass(frozen=True)
class JaxEnvironment:
    """Many copies of `dynamics` under `polopt.envs.protocol.Environment`. A pytree without leaves, so it may be an argument under `jax.jit`."""

    name: str
    dynamics: Any
    host = False

    @property
    def observation_space(self) -> Space:
        return self.dynamics.observation_space

    @property
    def action_space(self) -> Space:
        return self.dynamics.action_space

    @property
    def objectives(self) -> int:
        return self.dynamics.objectives

    @property
    def costs(self) -> int:
        return self.dynamics.costs

    def reset(self, key, num_envs: int):
        return jax.vmap(self._first)(jax.random.split(key, num_envs))

    def step(self, state, action, key):
        num_envs = jax.tree.leaves(action)[0].shape[0]

        def one(state, action, keys):
            key_step, key_reset = keys
            after, final, reward, cost, terminated, truncated = self.dynamics.step(state, action, key_step)
            final = cast(self.observation_space, final)
            terminated, truncated = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
            ended = terminated | truncated
            after, observation = jax.tree.map(lambda new, old: jnp.where(ended, new, old), self._first(key_reset), (after, final))
            reward, cost = jnp.asarray(reward, jnp.float32), jnp.asarray(cost, jnp.float32)
            return after, Timestep(observation, final, reward, cost, terminated, truncated & ~terminated)

        return jax.vmap(one)(state, action, jax.random.split(key, (num_envs, 2)))

    def _first(self, key):
        state, observation = self.dynamics.reset(key)
        return state, cast(self.observation_space, observation)


class GymnaxDynamics:
    """An environment of gymnax 1.x. Equal to another of the same name, so that both share what was compiled."""

    objectives = 0
    costs = 0

    def __init__(self, name: str, **options):
        self.key = (name, tuple(sorted(options.items())))
        self.env, self.params = gymnax_catalogue.make(name, **options)
        self.observation_space = _from_gymnax(self.env.observation_space(self.params))
        self.action_space = _from_gymnax(self.env.action_space(self.params))

    def __eq__(self, other):
        return isinstance(other, GymnaxDynamics) and other.key == self.key

    def __hash__(self):
        return hash(self.key)

    def reset(self, key):
        observation, state = self.env.reset_env(key, self.params)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state), observation

    def step(self, state, action, key):
        observation, after, reward, terminated, _ = self.env.step_env(key, state, action, self.params)
        after = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), after, state)
        truncated = jnp.asarray(self.env.is_truncated(after, self.params), bool)
        return after, observation, jnp.asarray(reward, jnp.float32), jnp.zeros((0,)), jnp.asarray(terminated, bool), truncated


def _from_gymnax(space) -> Space:
    kind = type(space).__name__
    if kind == "Discrete":
        return Discrete(int(space.n))
    if kind == "Box":
        return Box.of(space.low, space.high, space.shape, space.dtype)
    if kind == "Dict":
        return Dict(tuple((name, _from_gymnax(inner)) for name, inner in space.spaces.items()))
    raise TypeError(f"The gymnax space {space} is of kind {kind}; supported are Discrete, Box and Dict.")
