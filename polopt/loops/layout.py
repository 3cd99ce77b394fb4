"""Data over steps and environments: one batch axis or two, and recurrent networks along the first."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def restart(start, initial, memory):
    """Memory with the initial one where an episode starts; leading axis of environments."""

    def pick(first, now):
        return jnp.where(start.reshape(start.shape + (1,) * (now.ndim - 1)), first, now)

    return jax.tree.map(pick, initial, memory)


def unroll(model, memory, inputs, start):
    """Run a network along time-major (steps, envs) inputs: (what it remembered after each step, outputs)."""
    if model.torso.core is None:
        return (), each(lambda vector, pictures: model((), vector, pictures)[1], *inputs)
    initial = model.torso.initial()

    def step(memory, slice):
        (vector, pictures), begin = slice
        memory, output = jax.vmap(model)(restart(begin, initial, memory), vector, pictures)
        return memory, (memory, output)

    return jax.lax.scan(step, memory, (inputs, start))[1]


def each(function, *arrays):
    """`function` of every entry of (steps, envs, ...) arrays: one batch axis, which is faster than two."""
    steps, envs = jax.tree.leaves(arrays)[0].shape[:2]
    results = jax.vmap(function)(*jax.tree.map(flat, arrays))
    return jax.tree.map(lambda x: x.reshape(steps, envs, *x.shape[1:]), results)


def swap(x):
    """Time-major to environment-major and back."""
    return jnp.swapaxes(x, 0, 1)


def flat(x):
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # not -1, which an empty array cannot resolve
