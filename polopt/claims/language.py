"""What claims of the language families measure: training on the exact testbeds, with every expectation of the policy exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from polopt.claims.claim import Side
from polopt.claims.measures import configuration
from polopt.data import testbeds
from polopt.data.language import LanguageTask
from polopt.data.verifiers import sequence_number
from polopt.envs.exact import sequences
from polopt.policies.language.protocol import trainable

ITERATIONS = "iterations"
SUCCESS = "exact success"
COSINE = "cosine with the gradient of E[r]"
LENGTH = "projection on the gradient of E[r], over its length"
VARIANCE = "variance of the gradient"


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


def success(task: LanguageTask, policy) -> dict:
    """What to observe of a policy on a testbed: its expected reward, over all prompts alike."""
    return {SUCCESS: jnp.mean(testbeds.exact_returns(task, policy))}


def gradients(method, problem: Callable[[int], LanguageTask], seeds: list[int], draws: int) -> dict[str, np.ndarray]:
    """(seeds,) each: how the mean of the method's first gradients, over `draws` batches, lies to the exact one of the expected reward.

    The length is right in mean where the losses are means over completions of token sums. The variance is the trace of the covariance of a batch's.
    """

    def one(task, key):
        state = method.init(task, key)
        moving, still = eqx.partition(task.model, trainable(task.model))
        exact, _ = ravel_pytree(jax.grad(lambda moving: jnp.mean(testbeds.exact_returns(task, eqx.combine(moving, still))))(moving))

        def draw(sums, k):
            k_gather, k_objective = jax.random.split(k)
            batch, _ = method.sampler.gather(state.sampler, task, task.model, k_gather)
            downhill, _ = method.gradient(task, moving, still, method.judge(task, state, batch)[0], k_objective)
            uphill = -ravel_pytree(downhill)[0]
            return (sums[0] + uphill, sums[1] + jnp.sum((uphill - exact) ** 2)), None

        (total, squares), _ = jax.lax.scan(draw, (jnp.zeros_like(exact), 0.0), jax.random.split(key, draws))
        mean, along = total / draws, jnp.sum(exact**2)
        length = jnp.linalg.norm(mean)
        projection = mean @ exact
        variance = squares / draws - jnp.sum((mean - exact) ** 2)
        return {COSINE: projection / (length * jnp.sqrt(along)), LENGTH: projection / along, VARIANCE: variance}

    tasks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[problem(seed) for seed in seeds])
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    return {name: np.asarray(values, np.float64) for name, values in jax.jit(jax.vmap(one))(tasks, keys).items()}


def stopping(task: LanguageTask) -> LanguageTask:
    """A T-AR whose completions end at token 0, so that their lengths differ; what would have come behind it earns nothing of its own."""
    policy = task.model
    every = sequences.sequences(policy.vocabulary, policy.length)
    going = np.cumprod(every != 0, axis=1)
    same = sequence_number(jnp.asarray(every * going), policy.vocabulary)
    prompts = dataclasses.replace(task.prompts, facts=task.prompts.facts[:, same])
    return dataclasses.replace(task, prompts=prompts, held_out=prompts, stop=(0,))
