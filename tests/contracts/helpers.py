"""Small versions of every method, so that its contract is checked in a second or two."""

from __future__ import annotations

import functools

import jax
import numpy as np

from polopt.core import parts
from polopt.data.dataset import DataTask
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.run.collect import collect

SMALL = {
    "num_envs": 4,
    "num_steps": 8,
    "network.hidden": (8,),
    "critic_network.hidden": (8,),
    "network.core_size": 4,
    "rule.network.hidden": (8,),
    "rule.actor_network.hidden": (8,),
    "rule.critic_network.hidden": (8,),
    "rule.target_every": 2,
    "replay.capacity": 64,
    "batch_size": 8,
    "warmup": 4,
}
# Never more than by default, so that one-pass methods stay one-pass.
AT_MOST = {
    "improver.epochs": 2,
    "improver.minibatches": 2,
    "improver.value_fit.epochs": 2,
    "improver.value_fit.minibatches": 2,
    "updates": 4,
    "rule.critics": 3,
    "rule.delay": 2,
}
NAMES = [name for entry in registry.entries() for name in registry.compositions(entry.key)]


def alike(name: str) -> bool:
    """Whether a variant runs on the loop of its own key, whose slowest tests then speak for it."""
    key = name.partition(":")[0]
    return name != key and type(registry.load(name)(None)) is type(registry.load(key)(None))


@functools.cache
def task(env: str = "probe:action", steps: int = 320) -> ControlTask:
    return ControlTask(make(env), steps)


@functools.cache
def logged(env: str, steps: int = 320) -> DataTask:
    """What random actions in an environment have left."""
    return DataTask(collect("random", env, steps=96).on_device(), steps, make(env))


def learns_from_data(name: str) -> bool:
    return registry.load(name)(None).takes is DataTask


def task_of(name: str, env: str):
    """An environment, or data from it, as a method takes."""
    return logged(env) if learns_from_data(name) else task(env)


@functools.cache
def suits(name: str, env: str) -> bool:
    """Whether a method takes an environment, or data from it."""
    on = task_of(name, env)
    return registry.load(name)(on).refuse(on) is None


def home(name: str, probe: str = "action"):
    """A probe in the form that a method takes: the discrete one if it can."""
    return task_of(name, f"probe:{probe}" if suits(name, "probe:action") else f"probe:{probe}-continuous")


def small(name: str, on, **changes):
    """The method called `name`, shrunk."""
    method = registry.load(name)(on)
    known = parts.fields(method)
    sizes = {field: value for field, value in SMALL.items() if field in known}
    sizes |= {field: min(value, known[field]) for field, value in AT_MOST.items() if field in known}
    return parts.replace(method, {**sizes, **{k.replace("__", "."): v for k, v in changes.items()}})


_compiled: dict = {}


def run(method, on, seed: int = 0, iterations: int = 3):
    """The state after some iterations. One compilation serves every seed, length and value of the float fields."""
    key = (id(on), jax.tree.structure(method))
    if key not in _compiled:
        _compiled[key] = jax.jit(lambda m, k, n: jax.lax.fori_loop(0, n, lambda _, state: m.step(on, state)[0], m.init(on, k)))
    return _compiled[key](method, jax.random.key(seed), iterations)


def arrays(tree) -> list[np.ndarray]:
    leaves = jax.tree.leaves(tree)
    return [np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in leaves]


def equal(a, b) -> bool:
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in zip(arrays(a), arrays(b), strict=True))
