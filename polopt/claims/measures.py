"""What most claims measure. Training is compiled once and runs for all seeds together.

A measure that two claims need belongs here; one that a single claim needs stays in its file.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Side
from polopt.core import parts
from polopt.envs.jax_env import GymnaxDynamics, JaxEnvironment
from polopt.envs.task import ControlTask
from polopt.run.evaluate import episode_returns

FINAL_RETURN = "final return"
AREA = "mean return over training"
EVALUATED = "mean of the evaluations during training"
STEPS = "environment steps per seed"


def simulated(name: str, steps: int) -> ControlTask:
    """A task of gymnax, such as CartPole-v1, with so many environment steps a seed."""
    return ControlTask(JaxEnvironment(name, GymnaxDynamics(name)), steps)


# -- training ----------------------------------------------------------------------------------------------------------


class Curves(NamedTuple):
    """What training gave: for every iteration, and at the end."""

    steps: np.ndarray  # (iterations,) environment steps after each
    returns: np.ndarray  # (seeds, iterations) mean return of the episodes that ended in it; nan where none did
    final: np.ndarray  # (seeds,) mean return of the last policy on fresh episodes
    evaluated: np.ndarray  # (seeds, evaluations) mean return on fresh episodes after equal parts of the training
    metrics: dict[str, np.ndarray]  # (seeds, iterations) each


def train_curves(
    method,
    task,
    seeds: list[int],
    *,
    episodes: int = 32,
    stochastic: bool = True,
    evaluations: int = 0,
    observe: Callable[[Any, Any], dict[str, jax.Array]] | None = None,
) -> Curves:
    """Train for `task.steps` environment steps with every seed at once.

    episodes:    of each evaluation, a seed; `stochastic` draws actions as in training, else the most likely are taken.
    evaluations: during training, besides the one at the end; they must divide the iterations evenly.
    observe:     further metrics of an iteration from the states before and after it.
    """
    reason = method.refuse(task)
    if reason:
        raise ValueError(f"{type(method).__name__} {reason}.")
    if task.env.host:
        raise ValueError(f"{task.env.name} runs on the host, but claims train all seeds at once; take an environment in JAX.")
    iterations = math.ceil(task.steps / method.steps_per_iteration)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    if evaluations and iterations % evaluations:
        raise ValueError(f"{iterations} iterations cannot be divided by {evaluations} evaluations; change the steps.")
    options = dict(iterations=iterations, episodes=episodes, stochastic=stochastic, evaluations=evaluations, observe=observe)
    final, evaluated, metrics = _train(method, task, keys, **options)
    metrics = {name: np.asarray(values, np.float64) for name, values in metrics.items()}
    with np.errstate(invalid="ignore"):
        returns = metrics["episode/return"] / metrics["episode/count"]
    steps = method.steps_per_iteration * np.arange(1, iterations + 1)
    return Curves(steps, returns, np.asarray(final, np.float64), np.asarray(evaluated, np.float64), metrics)


@functools.partial(jax.jit, static_argnames=("iterations", "episodes", "stochastic", "evaluations", "observe"))
def _train(method, task, keys, *, iterations, episodes, stochastic, evaluations, observe):
    """Every seed's final return (seeds,), evaluations and metrics (seeds, iterations). Configurations that differ in numbers share a program."""

    def one(key, start):
        def iteration(state, _):
            after, metrics = method.step(task, state)
            return after, {**metrics, **(observe(state, after) if observe else {})}

        fresh = jax.random.fold_in(key, 0x0F17A1)

        def evaluate(state, key):
            return episode_returns(method.policy(state), task.env, key, episodes=episodes, stochastic=stochastic)[0].mean()

        def part(state, i):
            state, metrics = jax.lax.scan(iteration, state, length=iterations // evaluations)
            return state, (evaluate(state, jax.random.fold_in(fresh, i)), metrics)

        if evaluations:
            state, (evaluated, metrics) = jax.lax.scan(part, start, jnp.arange(evaluations))
            metrics = jax.tree.map(lambda m: m.reshape(iterations, *m.shape[2:]), metrics)
        else:
            (state, metrics), evaluated = jax.lax.scan(iteration, start, length=iterations), jnp.zeros((0,))
        return evaluate(state, fresh), evaluated, metrics

    # Not by vmap: orthogonal weights are a QR decomposition, and several batched ones in a program can wait for each other for
    # ever on a CPU with few cores (seen with jaxlib 0.10.2: each blocks a thread of the pool that the others need).
    starts = jax.lax.map(lambda key: method.init(task, key), keys)
    return jax.vmap(one)(keys, starts)


def trained(method, task, seeds: list[int], *, metrics: tuple[str, ...] = (), **options) -> Side:
    """A side that is trained: its configuration, curve, final return and mean return, and the mean over training of further metrics.

    options: as in `train_curves`.
    """
    curves = train_curves(method, task, seeds, **options)
    numbers = {FINAL_RETURN: curves.final, AREA: area(curves)}
    drawn = {"return": (curves.steps, curves.returns, STEPS)}
    if curves.evaluated.size:
        numbers[EVALUATED] = curves.evaluated.mean(axis=1)
        count = curves.evaluated.shape[1]
        drawn["return of an evaluation"] = (curves.steps[-1] * np.arange(1, count + 1) / count, curves.evaluated, STEPS)
    for name in metrics:
        numbers[f"mean {name}"] = curves.metrics[name].mean(axis=1)
        drawn[name] = (curves.steps, curves.metrics[name], STEPS)
    return Side(configuration(method), numbers, drawn)


def configuration(method) -> dict[str, Any]:
    """The parts of a method by class, and its hyperparameters."""
    kinds = {path: type(part).__name__ for path, part in _parts(method)}
    return {"method": type(method).__name__, **kinds, **parts.fields(method)}


def _parts(value, prefix: str = ""):
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if dataclasses.is_dataclass(inner):
            yield prefix + f.name, inner
            yield from _parts(inner, f"{prefix}{f.name}.")


def area(curves: Curves) -> np.ndarray:
    """The mean return over training, (seeds,): the area under the learning curve by its length.

    An iteration in which no episode ended counts with the last known return, or the first one if there is none yet.
    """
    return np.array([_carried(row).mean() for row in curves.returns])


def _carried(row: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(np.isfinite(row))
    if not known.size:
        raise ValueError("A seed has not finished an episode; train longer.")
    last = np.maximum.accumulate(np.where(np.isfinite(row), np.arange(row.size), known[0]))
    return row[last]


# -- estimates against what is exact -----------------------------------------------------------------------------------


def variance(estimates) -> float:
    """The total variance of an estimator, sum over components, from independent estimates (n, ...)."""
    flat = np.asarray(estimates, np.float64).reshape(len(estimates), -1)
    return float(flat.var(axis=0, ddof=1).sum())


def squared_bias(estimates, exact) -> float:
    """The squared length of an estimator's bias, from independent estimates (n, ...) and the exact value (...).

    What the scatter of the mean adds on average is taken away, so the result is itself unbiased, and may be below 0.
    """
    flat = np.asarray(estimates, np.float64).reshape(len(estimates), -1)
    error = flat.mean(axis=0) - np.asarray(exact, np.float64).ravel()
    return float(error @ error) - variance(flat) / len(flat)


def mean_squared_error(estimates, exact) -> float:
    """The mean squared length of estimates (n, ...) minus the exact value (...)."""
    error = np.asarray(estimates, np.float64) - np.asarray(exact, np.float64)[None]
    return float((error**2).reshape(len(error), -1).sum(axis=1).mean())
