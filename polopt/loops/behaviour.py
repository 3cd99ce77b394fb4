"""Who collects, and what is learnt from: the learner's own policy and its last batch, or another policy and a buffer of batches."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.loops.layout import each


class Behaviour(Protocol):
    """What the loop asks of who collects. Batches lie beside each other along the axis of environments, the newest first."""

    @property
    def batches(self) -> int:
        """Of how many iterations the learner sees the data."""
        ...

    def init(self, loop, env, state) -> Any:
        """What is kept of earlier iterations; () for nothing."""
        ...

    def collect(self, loop, env, state, key) -> tuple[Any, Any, dict]:
        """As `loop.collect`, with an actor of its own."""
        ...

    def recall(self, loop, state, memory, rollout) -> tuple[Any, Any, Any]:
        """(memory, rollout) to learn from and what is kept now, from a new rollout and the memory of the cores at its start."""
        ...


@part
class Itself:
    """The learner collects, and learns from what it has just collected."""

    @property
    def batches(self) -> int:
        return 1

    def init(self, loop, env, state):
        return ()

    def collect(self, loop, env, state, key):
        return loop.collect(env, state, key)

    def recall(self, loop, state, memory, rollout):
        return memory, rollout, ()


class Adaptation(Protocol):
    """How the collecting actor follows from the learner's."""

    def __call__(self, loop, actor, data: Seen, weight, key) -> Any:
        """The adapted actor. `weight` is 1 for data that are there and 0 for places not yet filled, of the layout of `data.start`."""
        ...


class Seen(NamedTuple):
    """Data that a policy can be evaluated on, in the layout of a batch; the first four fields are a batch's."""

    memory: Any
    inputs: Any
    start: jax.Array
    raw_action: Any


@part
class Buffered:
    """An adapted actor collects; the learner takes the last batches for its own, with the probabilities that it gives their actions now."""

    adaptation: Adaptation | None  # none lets the learner collect
    batches: int = hyper(2, at_least=1)  # iterations whose data the learner sees
    every: int = hyper(256, at_least=1)  # environment steps between two adaptations, all copies counted

    def init(self, loop, env, state):
        """Room for the earlier batches: memory and rollouts without distributions, all zero."""
        rollout = jax.eval_shape(lambda s: loop.collect(env, s, s.key)[1], state)
        one = state.acting.memory, rollout._replace(distribution=None)
        room = jax.tree.map(lambda x, axis: _widened(x, axis, self.batches - 1), one, _environment_axes(one))
        return room if self.batches > 1 else ()

    def collect(self, loop, env, state, key):
        if self.adaptation is None:
            return loop.collect(env, state, key)
        env, learner = loop.memory.environment(env), state.learner.actor
        keys = jax.random.split(key, (loop.num_steps, 2))
        row = jax.eval_shape(lambda a, k: loop.act(env, state, learner, a, k)[1][0], state.acting, keys[0])
        room = jax.tree.map(lambda x: jnp.zeros((loop.num_steps, *x.shape), x.dtype), (row.observation, row.start, row.raw_action))

        def step(carry, x):
            acting, actor, new = carry
            t, k = x
            due = (t * loop.num_envs) % self.every < loop.num_envs
            actor = jax.lax.cond(due, lambda: self._adapted(loop, state, new, t, jax.random.fold_in(k[0], 1)), lambda: actor)
            acting, (row, finished) = loop.act(env, state, actor, acting, k)
            new = jax.tree.map(lambda rows, x: rows.at[t].set(x), new, (row.observation, row.start, row.raw_action))
            return (acting, actor, new), (row, finished)

        (acting, _, _), (rollout, finished) = jax.lax.scan(step, (state.acting, learner, room), (jnp.arange(loop.num_steps), keys))
        return acting, rollout, jax.tree.map(jnp.sum, finished)

    def _adapted(self, loop, state, new, steps, key):
        """The actor for all data that are there: the earlier batches that stay, and the first steps of the new one."""
        observation, start, raw_action = new
        filled = jnp.broadcast_to(jnp.arange(loop.num_steps)[:, None] < steps, start.shape)
        memory = state.acting.memory
        if self.batches > 1:
            past_memory, past = state.behaviour
            there = jnp.repeat(jnp.arange(self.batches - 1) < state.iteration, loop.num_envs)
            filled = jnp.concatenate([filled, jnp.broadcast_to(there, past.start.shape)], axis=1)
            old = (past.observation, past.start, past.raw_action)
            observation, start, raw_action = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), new, old)
            memory = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), memory, past_memory)
        data = seen(loop, state, memory, observation, start, raw_action)
        return self.adaptation(loop, state.learner.actor, data, loop.batch_major(filled.astype(jnp.float32)), key)

    def recall(self, loop, state, memory, rollout):
        """While the buffer fills up, the batches that are there stand for those that are missing."""
        if self.batches == 1 and self.adaptation is None:
            return memory, rollout, ()
        kept = state.behaviour
        everything = memory, rollout._replace(distribution=None)
        axes = _environment_axes(everything)
        if self.batches > 1:
            everything = jax.tree.map(lambda a, b, axis: jnp.concatenate([a, b], axis), everything, kept, axes)
            kept = jax.tree.map(lambda x, axis: _batches(x, axis, self.batches, jnp.arange(self.batches - 1)), everything, axes)
            there = jnp.arange(self.batches) % jnp.minimum(state.iteration + 1, self.batches)
            everything = jax.tree.map(lambda x, axis: _batches(x, axis, self.batches, there), everything, axes)
        memory, rollout = everything
        data = seen(loop, state, memory, rollout.observation, rollout.start, rollout.raw_action)
        distribution = loop.forward(state.learner.actor, 0, data)
        shape = rollout.start.shape
        return memory, rollout._replace(distribution=jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), distribution)), kept


def seen(loop, state, memory, observation, start, raw_action) -> Seen:
    """Time-major data as a policy can be evaluated on them."""
    inputs, start, raw_action = loop.batch_major((each(state.normaliser, observation), start, raw_action))
    return Seen(memory if loop.recurrent else (), inputs, start, raw_action)


def _environment_axes(kept):
    """Which axis of each array of (memory, rollout) is that of environments."""
    memory, rollout = kept
    return jax.tree.map(lambda _: 0, memory), jax.tree.map(lambda _: 1, rollout)


def _widened(x, axis: int, times: int):
    return jnp.zeros((*x.shape[:axis], x.shape[axis] * times, *x.shape[axis + 1 :]), x.dtype)


def _batches(x, axis: int, count: int, chosen):
    """Some of the `count` batches that lie beside each other along an axis."""
    apart = x.reshape(*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])
    picked = jnp.take(apart, chosen, axis=axis)
    return picked.reshape(*x.shape[:axis], len(chosen) * apart.shape[axis + 1], *x.shape[axis + 1 :])
