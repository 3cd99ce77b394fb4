"""What claims of the language families measure: training on the exact testbeds, with every expectation of the policy exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Side
from polopt.claims.measures import configuration
from polopt.data.language import LanguageTask

ITERATIONS = "iterations"


def learn(method, problem: Callable[[int], LanguageTask], seeds: list[int], observe: Callable[[LanguageTask, Any], dict]) -> dict[str, np.ndarray]:
    """Curves (seeds, iterations + 1, ...) by name: what `observe(task, policy)` gives before training and after each of the task's iterations.

    problem: makes a seed's own task; two methods get equal tasks for equal seeds. All seeds train in one compiled program.
    The method's own metrics are added under their names, (seeds, iterations).
    """
    tasks = [problem(seed) for seed in seeds]
    reason = method.refuse(tasks[0])
    if reason:
        raise ValueError(f"{type(method).__name__} {reason}.")

    def one(task, key):
        def iteration(state, _):
            state, metrics = method.step(task, state)
            return state, (observe(task, method.policy(state)), metrics)

        start = method.init(task, key)
        first = observe(task, method.policy(start))
        _, (after, metrics) = jax.lax.scan(iteration, start, length=task.steps)
        return {**jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, after), **metrics}

    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
    return {name: np.asarray(values, np.float64) for name, values in jax.jit(jax.vmap(one))(stacked, keys).items()}


def side(method, numbers: dict[str, np.ndarray], curves: dict[str, np.ndarray]) -> Side:
    """A side from its numbers (seeds,) and curves (seeds, iterations + 1)."""
    drawn = {name: (np.arange(values.shape[1]), values, ITERATIONS) for name, values in curves.items()}
    return Side(configuration(method), numbers, drawn)

