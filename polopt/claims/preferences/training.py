"""How the claims of this family train: every seed at once, each on a task of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Side
from polopt.claims.measures import configuration
from polopt.core.parts import part
from polopt.data.language import LanguageTask
from polopt.data.preferences import Preferences, PreferenceTask
from polopt.data.prompts import Prompts
from polopt.data.verifiers import Lookup
from polopt.optim.adam import Adam

ITERATIONS = "iterations"


class Trained(NamedTuple):
    """policies: the last ones, stacked over seeds; observed: (seeds, iterations, ...) by name."""

    policies: Any
    observed: dict[str, np.ndarray]


def trained(method, tasks: list, seeds: list[int], observe: Callable | None = None) -> Trained:
    """Train for the tasks' `steps`, task i with seed i. observe: measures by name of (task, state) after an iteration, besides the method's own."""
    reason = method.refuse(tasks[0])
    if reason:
        raise ValueError(f"{type(method).__name__} {reason}.")
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    policies, observed = _train(method, stacked(tasks), keys, iterations=tasks[0].steps, observe=observe)
    return Trained(policies, {name: np.asarray(x) for name, x in observed.items()})


@functools.partial(jax.jit, static_argnames=("iterations", "observe"))
def _train(method, tasks, keys, *, iterations, observe):
    def one(task, start):
        def iteration(state, _):
            state, metrics = method.step(task, state)
            return state, {**metrics, **(observe(task, state) if observe else {})}

        state, observed = jax.lax.scan(iteration, start, length=iterations)
        return method.policy(state), observed

    # one after another: several batched QR decompositions in a program can wait for each other (see `polopt.claims.measures`)
    starts = jax.lax.map(lambda pair: method.init(*pair), (tasks, keys))
    return jax.vmap(one)(tasks, starts)


def log_probs(policies) -> jax.Array:
    """(seeds, N): the log-probability of every sequence of the first prompt, under stacked exact policies."""
    return jax.vmap(lambda policy: policy.log_probs()[0])(policies)


def stacked(trees: list):
    """Pytrees of one structure, leaf by leaf along a new first axis."""
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]), *trees)


def side(method, numbers: dict, curves: dict[str, np.ndarray] | None = None) -> Side:
    """A side of a trained method; curves (seeds, iterations) by name."""
    drawn = {name: (np.arange(1, y.shape[1] + 1), y, ITERATIONS) for name, y in (curves or {}).items()}
    return Side(configuration(method), {name: np.asarray(x, np.float64) for name, x in numbers.items()}, drawn)


def constant(rate: float) -> Adam:
    """Adam as papers on small problems use it: a constant step, nothing clipped."""
    return Adam(learning_rate=rate, anneal=False, max_grad_norm=None, epsilon=1e-8)


# -- problems ----------------------------------------------------------------------------------------------------------


def problems(count: int, facts: Any = ()) -> Prompts:
    """The prompts of exact policies: their number."""
    return Prompts(jnp.arange(count, dtype=jnp.int32)[:, None], jnp.ones((count, 1), bool), facts)


def logged(model, index, responses, score, *, steps: int, lengths=None) -> PreferenceTask:
    """Preferences over prompts `index` (n,), responses (n, K, T) or, of one token, (n, K), scores (n, K)."""
    responses = jnp.asarray(responses, jnp.int32)
    responses = responses[..., None] if responses.ndim == 2 else responses
    prompts = Prompts(jnp.asarray(index, jnp.int32)[:, None], jnp.ones((len(index), 1), bool))
    length = responses.shape[2]
    mask = jnp.ones(responses.shape, bool) if lengths is None else jnp.arange(length)[None, None] < jnp.asarray(lengths)[..., None]
    log = Preferences(prompts, responses, mask, jnp.asarray(score, jnp.float32))
    return PreferenceTask(model, None, steps, length, (), None, "an exact problem", preferences=log, held_out=log)


def scored(model, rewards, *, steps: int) -> LanguageTask:
    """Prompts whose sequences have the rewards (Q, N), in lexicographic order."""
    prompts = problems(rewards.shape[0], jnp.asarray(rewards))
    return LanguageTask(model, Lookup(model.vocabulary), steps, model.length, (), None, "an exact problem", prompts=prompts, held_out=prompts)


@part
class Table:
    """A judge that looks up P, the prompts' facts (Q, K, K), for answers of one token."""

    def __call__(self, prompts, index, tokens_a, mask_a, tokens_b, mask_b):
        return prompts.facts[index, tokens_a[:, 0], tokens_b[:, 0]]


def game(model, preferences, *, steps: int) -> LanguageTask:
    """One prompt, answers of one token, and preferences (K, K) that `Table` judges by."""
    prompts = problems(1, jnp.asarray(preferences, jnp.float32)[None])
    return LanguageTask(model, None, steps, 1, (), None, "a game of preferences", prompts=prompts, held_out=prompts)
