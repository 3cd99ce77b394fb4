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
        observation = spaces.cast(self.policy.observation_space, observation)
        carry = self.policy.initial_carry()
        if batched:
            carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), carry)
        if self._carry is None:
            self._carry = carry
        elif jax.tree.map(jnp.shape, self._carry) != jax.tree.map(jnp.shape, carry):
            given = f"a batch of {count} observations" if batched else "one observation"
            raise ValueError(f"The policy remembers episodes of another batch, but was given {given}. Call reset() where new episodes begin.")
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
        found = {name: _batch_of(inner, observation[name]) for name, inner in space.items}
        if len(set(found.values())) > 1:
            sizes = ", ".join(f"{name} {'a batch of ' + str(n) if batched else 'one'}" for name, (batched, n) in found.items())
            raise ValueError(f"The parts of the observation must be all single or batches of one size, but they are: {sizes}.")
        return next(iter(found.values()))
    shape = np.shape(observation)
    if shape == space.shape:
        return False, 1
    if shape[1:] == space.shape and len(shape) == len(space.shape) + 1:
        return True, shape[0]
    raise ValueError(f"The observation has shape {shape}, but the policy expects {space.shape}, or a batch with one axis in front of it.")
