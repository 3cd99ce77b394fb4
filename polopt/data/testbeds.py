"""The exact testbeds: tables of logits that write sequences so few that every expectation is a sum.

    t-bandit  Q prompts, K answers of one token, each prompt with a table of its own
    t-lin     the same with shared weights: logits = base + features weights
    t-chain   T tokens, each position by itself; right where every token is 0
    t-ar      T tokens, every prefix with a row of its own; some of the V^T sequences are right

A prompt is the number of its problem. Problems are those of `polopt.envs.exact.sequences`, and `exact_returns` is what any sampled success estimates.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.data.dataset import DataError
from polopt.data.language import LanguageTask
from polopt.data.preferences import Preferences
from polopt.data.prompts import at_least, make_prompts, on_device
from polopt.data.tokenizer import NumberTokenizer
from polopt.data.verifiers import Answer, Lookup, Matches
from polopt.envs.exact import sequences
from polopt.policies.language.tabular import TabularPolicy


def bandit(
    *,
    prompts: int = 32,
    answers: int = 10,
    success: float | Sequence[float] | None = None,
    low: float = 0.05,
    high: float = 0.5,
    correct: int = 1,
    concentration: float = 1.0,
    seed: int = 0,
    steps: int = 300,
) -> LanguageTask:
    """T-BANDIT. success: of each prompt at first, one number or one a prompt; by default drawn between `low` and `high`."""
    at_least("answers", answers, 2)
    k_success, k_problem = jax.random.split(jax.random.key(seed))
    success = _success(k_success, prompts, success, low, high)
    problem = _posed(lambda: sequences.bandit_problem(k_problem, success, answers, correct=correct, concentration=concentration))
    return _looked_up("t-bandit", TabularPolicy(problem.logits, "bandit"), problem.rewards, steps)


def linear(
    *,
    prompts: int = 32,
    answers: int = 10,
    features: int = 12,
    success: float | Sequence[float] | None = None,
    low: float = 0.05,
    high: float = 0.5,
    correct: int = 1,
    concentration: float = 1.0,
    seed: int = 0,
    steps: int = 300,
) -> LanguageTask:
    """T-LIN: a T-BANDIT whose prompts share weights through `features` features."""
    at_least("answers", answers, 2)
    at_least("features", features, 1)
    k_success, k_problem = jax.random.split(jax.random.key(seed))
    success = _success(k_success, prompts, success, low, high)
    problem = _posed(lambda: sequences.linear_problem(k_problem, success, answers, features, correct=correct, concentration=concentration))
    return _looked_up("t-lin", TabularPolicy(problem.base, "linear", features=problem.features), problem.rewards, steps)


def chain(
    *,
    prompts: int = 32,
    length: int = 6,
    vocabulary: int = 8,
    success: float | Sequence[float] | None = None,
    low: float = 0.5,
    high: float = 0.9,
    seed: int = 0,
    steps: int = 300,
) -> LanguageTask:
    """T-CHAIN. success: of each prompt's every token at first. Sequences may be too many to list: the answer is compared, not looked up."""
    at_least("length", length, 1)
    at_least("vocabulary", vocabulary, 2)
    success = _success(jax.random.key(seed), prompts, success, low, high)
    logits = sequences.chain_problem(success, length, vocabulary)
    right = np.zeros((len(logits), length), np.int32)
    facts = Answer(right, np.ones(right.shape, bool))
    return _task("t-chain", TabularPolicy(logits, "chain"), Matches(), facts, right, steps)


def autoregressive(*, prompts: int = 1, length: int = 4, vocabulary: int = 3, ones: float = 0.4, seed: int = 0, steps: int = 300) -> LanguageTask:
    """T-AR. ones: the share of sequences that are right."""
    for what, given, lowest in (("prompts", prompts, 1), ("length", length, 1), ("vocabulary", vocabulary, 2)):
        at_least(what, given, lowest)
    if prompts * vocabulary**length > sequences.LARGEST:
        raise DataError(
            f"{prompts} tables of {vocabulary}^{length} sequences are more than {sequences.LARGEST} entries; take fewer tokens, a shorter length or "
            "fewer prompts."
        )
    keys = jax.random.split(jax.random.key(seed), prompts)
    if not 0 < round(ones * vocabulary**length) < vocabulary**length:
        raise DataError(f"ones is {ones}, but a share that leaves right and wrong ones among {vocabulary**length} sequences is expected; take 0.4.")
    problem = jax.vmap(lambda key: sequences.autoregressive_problem(key, vocabulary=vocabulary, length=length, ones=ones))(keys)
    return _looked_up("t-ar", TabularPolicy(problem.logits, "autoregressive"), problem.rewards, steps)


TESTBEDS = {"t-bandit": bandit, "t-lin": linear, "t-chain": chain, "t-ar": autoregressive}


def exact_returns(task: LanguageTask, policy: TabularPolicy) -> Array:
    """(Q,): the expected reward of each of the task's prompts under a tabular policy. Differentiable."""
    prompts = task.prompts
    if isinstance(task.verifier, Lookup):
        return sequences.expected(policy.log_probs()[prompts.tokens[:, -1]], prompts.facts)
    if not isinstance(task.verifier, Matches) or task.stop:
        raise DataError(f"The task {task.name} has no rewards that can be summed; exact returns are those of {', '.join(TESTBEDS)}.")
    answer = prompts.facts
    return jnp.exp(jnp.sum(policy.score(prompts.tokens, prompts.mask, answer.tokens, answer.mask, entropy=False).log_prob, axis=1))


def drawn_preferences(key: Array, task: LanguageTask, judge, pairs: int, policy: TabularPolicy | None = None) -> Preferences:
    """`pairs` pairs of sequences for each of the task's prompts, drawn by the policy (by default the task's), in the order that the judge draws.

    The two of a pair are independent, so they may be equal.
    """
    policy = task.model if policy is None else policy
    k_draw, k_judge = jax.random.split(key)
    prompts = task.prompts
    numbers = sequences.sample(k_draw, policy.log_probs()[prompts.tokens[:, -1]], 2 * pairs)
    drawn = jnp.asarray(sequences.sequences(policy.vocabulary, policy.length), jnp.int32)[numbers].reshape(len(prompts) * pairs, 2, policy.length)
    index = jnp.repeat(jnp.arange(len(prompts), dtype=jnp.int32), pairs)
    every = jnp.ones(drawn.shape, bool)
    preferred = jax.random.bernoulli(k_judge, judge(prompts, index, drawn[:, 0], every[:, 0], drawn[:, 1], every[:, 1]))
    ordered = jnp.where(preferred[:, None, None], drawn, drawn[:, ::-1])
    return Preferences(prompts.take(index), ordered, every, jnp.tile(jnp.array([1.0, 0.0]), (len(index), 1)))


def _looked_up(name: str, policy: TabularPolicy, rewards: Array, steps: int) -> LanguageTask:
    """The task of a policy whose sequences have rewards (Q, V^T); the first of the best is the demonstration."""
    best = sequences.sequences(policy.vocabulary, policy.length)[np.argmax(rewards, axis=1)]
    return _task(name, policy, Lookup(policy.vocabulary), rewards, best, steps)


def _task(name: str, policy: TabularPolicy, verifier, facts, demonstrations, steps: int) -> LanguageTask:
    prompts = on_device(make_prompts([[q] for q in range(len(demonstrations))], facts=facts, demonstrations=demonstrations))
    tokenizer = NumberTokenizer(max(len(prompts), policy.vocabulary))
    return LanguageTask(policy, verifier, steps, policy.length, (), tokenizer, name, prompts=prompts, held_out=prompts)


def _success(key: Array, prompts: int, success, low: float, high: float) -> Array:
    """(Q,) the initial successes."""
    at_least("prompts", prompts, 1)
    drawn = success is None
    found = jax.random.uniform(key, (prompts,), minval=low, maxval=high) if drawn else jnp.asarray(success, jnp.float32)
    found = jnp.broadcast_to(found, (prompts,)) if found.ndim == 0 else found
    if found.ndim != 1 or not bool(jnp.all((found > 0) & (found < 1))):
        given = f"between low={low} and high={high}" if drawn else f"{success}"
        raise DataError(f"The success of the prompts is {given}, but a number above 0 and below 1, or one for each prompt, is expected; give those.")
    return found


def _posed(make):
    """A problem, what does not fit said as a mistake in the data."""
    try:
        return make()
    except ValueError as error:
        raise DataError(str(error)) from error
