"""Judges: probabilities that add up, and matrices that are checked."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.data.dataset import DataError
from polopt.data.host_verifiers import Rows, own_verifier
from polopt.data.judges import RewardJudge, VerifierJudge, matrix_judge
from polopt.data.prompts import make_prompts, on_device
from polopt.data.tasks import make_language_task
from polopt.data.testbeds import drawn_preferences
from polopt.data.tokenizer import NumberTokenizer
from polopt.data.verifiers import sequence_number
from polopt.envs.exact import sequences

TASK = make_language_task("t-ar", prompts=2, vocabulary=3, length=2)
EVERY = jnp.asarray(sequences.sequences(3, 2), jnp.int32)


def all_pairs(judge):
    """(Q, N, N): the judge's probability for every pair of sequences."""
    a, b = jnp.repeat(EVERY, 9, axis=0), jnp.tile(EVERY, (9, 1))
    ones = jnp.ones(a.shape, bool)
    judged = jax.jit(lambda judge, q: judge(TASK.prompts, jnp.full(81, q), a, ones, b, ones))
    return jnp.stack([judged(judge, q).reshape(9, 9) for q in range(2)])


def test_a_verifier_prefers_what_it_rewards():
    rewards = TASK.prompts.facts
    margin = rewards[:, :, None] - rewards[:, None, :]
    np.testing.assert_array_equal(all_pairs(VerifierJudge(TASK.verifier)), jnp.where(margin > 0, 1, jnp.where(margin < 0, 0, 0.5)))
    np.testing.assert_allclose(all_pairs(VerifierJudge(TASK.verifier, 0.5)), jax.nn.sigmoid(2 * margin), rtol=1e-6)
    with pytest.raises(DataError, match="temperature of a judge is 0, but a number above 0"):
        VerifierJudge(TASK.verifier, 0)


def test_a_matrix_is_looked_up_and_may_have_cycles():
    P = np.random.default_rng(0).uniform(size=(2, 9, 9))
    P = (P + 1 - P.swapaxes(1, 2)) / 2
    np.testing.assert_allclose(all_pairs(matrix_judge(P, 3)), P, rtol=1e-6)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda P: P[0], r"has the shape \(9, 9\), but \(prompts, sequences, sequences\)"),
        (lambda P: P[:, :8, :8], "has 8 sequences, but 3 tokens make 3, 9, ... of them"),
        (lambda P: np.where(P == P, 1.5, P), r"P\[0, 0, 0\] is 1.5, but a probability from 0 to 1"),
        (lambda P: P * np.nan, r"P\[0, 0, 0\] is nan"),
        (lambda P: P + 0.1 * (np.arange(162).reshape(2, 9, 9) == 3), r"P\[0, 0, 3\] \+ P\[0, 3, 0\] is 1.1, but 1 is expected"),
    ],
)
def test_matrices_that_are_no_preferences(change, words):
    with pytest.raises(DataError, match=words):
        matrix_judge(change(np.full((2, 9, 9), 0.5)), 3)


def test_pairs_are_drawn_by_the_policy_and_ordered_by_the_judge():
    """The frequencies of (chosen, rejected) are pi(a) pi(b) [P(a, b) + 1 - P(b, a)]."""
    P = np.random.default_rng(1).uniform(size=(2, 9, 9))
    P = (P + 1 - P.swapaxes(1, 2)) / 2
    count = 20_000
    found = drawn_preferences(jax.random.key(0), TASK, matrix_judge(P, 3), count)
    assert len(found) == 2 * count and found.score[0].tolist() == [1.0, 0.0] and bool(found.mask.all())
    np.testing.assert_array_equal(found.prompts.tokens[:, 0], np.repeat([0, 1], count))
    number = np.asarray(jnp.stack([sequence_number(found.responses[:, k], 3) for k in range(2)], 1)).reshape(2, count, 2)
    pi = np.exp(TASK.model.log_probs())
    for q in range(2):
        seen = np.zeros((9, 9))
        np.add.at(seen, tuple(number[q].T), 1 / count)
        wanted = pi[q][:, None] * pi[q][None] * 2 * P[q]
        assert np.abs(seen - wanted).max() < 5 * np.sqrt(wanted.max() / count)


class SumOfTokens(eqx.Module):
    weight: jax.Array

    def __call__(self, prompts, index, tokens, mask):
        return self.weight * jnp.sum(tokens * mask, axis=1)


def test_a_reward_model_judges_by_bradley_terry():
    total = EVERY.sum(1)
    judge = RewardJudge(SumOfTokens(jnp.array(0.7)))
    np.testing.assert_allclose(all_pairs(judge)[0], jax.nn.sigmoid(0.7 * (total[:, None] - total[None])), rtol=1e-6)
    assert not judge.host and jax.tree.leaves(judge) == [0.7]


def test_a_verifier_that_fails_prefers_neither():
    prompts = on_device(make_prompts([[0], [1]], facts=np.arange(2, dtype=np.int32)))
    reward = lambda prompts, completions: [None if c.startswith("2") else float(c[0]) for c in completions]  # noqa: E731
    judge = VerifierJudge(own_verifier(reward, Rows(["0", "1"]), NumberTokenizer(3)))
    assert judge.host
    a, b = jnp.array([[1, 0], [2, 0], [0, 0]]), jnp.array([[0, 0], [0, 0], [1, 0]])
    ones = jnp.ones((3, 2), bool)
    assert jax.jit(judge)(prompts, jnp.array([0, 1, 1]), a, ones, b, ones).tolist() == [1.0, 0.5, 0.0]


def test_a_judge_follows_the_rows_of_its_prompts():
    P = np.full((2, 9, 9), 0.5)
    P[1] = np.triu(np.ones((9, 9)), 1) + np.eye(9) / 2
    judge = matrix_judge(P, 3)
    part = dataclasses.replace(TASK, prompts=TASK.prompts.take(jnp.array([1]))).prompts
    ones = jnp.ones((1, 2), bool)
    assert judge(part, jnp.array([0]), EVERY[:1], ones, EVERY[1:2], ones).tolist() == [1.0]
