"""A policy in the hands of a user: NumPy in, NumPy out, one observation or a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import spaces


class Agent:
    """Acts with a policy. A recurrent policy remembers between calls; `reset()` starts a new episode.

    `agent(observation)` gives the most likely action; `agent(observation, key)` draws one, where `key` is a JAX key.
    An observation with one axis more than the space's is a batch.
    """

    def __init__(self, policy):
        self.policy = policy
        self._act = jax.jit(lambda p, carry, o, key: p.act(carry, o, key))
        self._act_batch = jax.jit(jax.vmap(lambda p, carry, o, key: p.act(carry, o, key), in_axes=(None, 0, 0, 0)))
        self.reset()

    def reset(self) -> None:
        self._carry = None

    def __call__(self, observation, key=None):
        batched, count = _batch_of(self.policy.observation_space, observation)
        observation = jax.tree.map(jnp.asarray, observation)
        if self._carry is None:
            carry = self.policy.initial_carry()
            self._carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), carry) if batched else carry
        if batched:
            key = None if key is None else jax.random.split(key, count)
            self._carry, action = self._act_batch(self.policy, self._carry, observation, key)
        else:
            self._carry, action = self._act(self.policy, self._carry, observation, key)
        return jax.tree.map(np.asarray, action)


def _batch_of(space, observation) -> tuple[bool, int]:
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, dict) or set(observation) != {name for name, _ in space.items}:
            raise ValueError(f"The observation must be a dict with the names {', '.join(name for name, _ in space.items)}.")
        name, inner = space.items[0]
        return _batch_of(inner, observation[name])
    shape = np.shape(observation)
    if shape == space.shape:
        return False, 1
    if shape[1:] == space.shape and len(shape) == len(space.shape) + 1:
        return True, shape[0]
    raise ValueError(f"The observation has shape {shape}, but the policy expects {space.shape}, or a batch with one axis in front of it.")
