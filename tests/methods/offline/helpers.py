"""A rule, its learner and a batch, small enough for a test of one update."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from polopt.core import parts, spaces
from polopt.data.dataset import Dataset, DataTask
from polopt.data.replay import Transitions
from polopt.methods import registry

OBSERVATIONS = spaces.Box(-10.0, 10.0, (2,))
BOX = spaces.Box(-2.0, 2.0, (1,))
N = 6


def logged(action_space=BOX, n: int = 12) -> Dataset:
    """Random transitions in two episodes, one that terminates and one that is cut."""
    keys = jax.random.split(jax.random.key(1), 4)
    box = isinstance(action_space, spaces.Box)
    action = jax.random.uniform(keys[0], (n, 1), minval=-2, maxval=2) if box else jax.random.randint(keys[0], (n,), 0, action_space.n)
    row = jnp.arange(n)
    observation, following = jax.random.normal(keys[1], (n, 2)), jax.random.normal(keys[2], (n, 2))
    return Dataset(observation, action, jax.random.normal(keys[3], (n,)), following, row == 4, row == n - 1, OBSERVATIONS, action_space)


@functools.cache
def begun(name: str, sizes: tuple, action_space=BOX):
    """(state, batch) of a method with fields of those sizes, ((name, size), ...), that learns from windows of `logged`."""
    method, data = parts.replace(registry.load(name)(None), dict(sizes)), logged(action_space)

    @jax.jit
    def make(key):
        state = method.init(DataTask(data, 1), key)
        return state, method.sample(data, method.rows(data), state.normaliser, jax.random.key(1))

    return make(jax.random.key(0))


def rule_and_batch(key: str, action_space=BOX, **changes):
    """(rule, learner, batch) with layers of 8 and a batch of unit actions."""
    method = registry.load(key)(None)
    sizes = {name: (8,) for name in parts.fields(method) if name.endswith("network.hidden")}
    method = parts.replace(method, {**sizes, **changes})
    data = logged(action_space)
    learner = method.rule.init(data, jax.random.key(0))
    action = data.action[:N] / 2 if isinstance(action_space, spaces.Box) else data.action[:N]
    discount = jnp.where(data.terminated[:N], 0.0, 0.9)
    rows = (data.observation[:N], ()), action, data.reward[:N], discount, (data.next_observation[:N], ())
    return method.rule, learner, Transitions(*rows, jnp.ones(N), jnp.zeros((N, 2), jnp.int32))


def update(rule, learner, batch, times: int = 1):
    """The learner after some updates on the same batch, and the last diagnostics."""
    step = jax.jit(lambda learner, key: rule.update(learner, batch, 0.0, key))
    for i in range(times):
        learner, _, metrics = step(learner, jax.random.key(i))
    return learner, metrics


@jax.jit
def scattered(tree):
    """The same with noise on every number."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(structure, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])
