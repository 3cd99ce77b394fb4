"""Single-stream's oracles: the tracker's numbers, its limits, what it remembers, and unbiasedness before normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.methods.reasoning.single_stream import SingleStream, Standardised, drawn_by_odds, prior, remembered
from polopt.policies.language.tabular import TabularPolicy
from tests.methods.reasoning.helpers import chain, credited, everywhere, judged


def test_numbers():
    """Oracle 1: two right of eight, then one that is right while the policy has not moved."""
    alpha, beta = prior(2, 8, 0.875)
    np.testing.assert_allclose([alpha, beta, alpha / (alpha + beta)], [2.2222, 5.7778, 0.27778], atol=5e-5)
    rho = remembered(np.float64(0.0), 0.06, 0.875, 0.96)
    alpha, beta = rho * alpha + 1, rho * beta
    np.testing.assert_allclose([rho, alpha, beta, alpha / (alpha + beta)], [0.96, 3.13333, 5.54667, 0.36098], atol=1e-5)


def test_what_is_kept_falls_with_the_distance():
    """Oracle 2: half is kept at D_half, before the clip."""
    found = everywhere(lambda d: remembered(d, 0.06, 0.1, 0.96), np.array([0.0, 0.06, 0.12, 10.0]))
    np.testing.assert_allclose(found, [0.96, 0.5, 0.25, 0.1], rtol=1e-6)
    np.testing.assert_allclose(remembered(np.array([0.06]), 0.06, 0.875, 0.96), 0.875)


@pytest.mark.parametrize("rho", [1.0, 0.9])
def test_the_tracker_is_a_posterior_or_a_moving_average(rho):
    """Oracle 3: the posterior's mean at rho = 1; else a mean whose weights fall by rho, of an effective window 1 / (1 - rho)."""
    rewards = np.random.default_rng(0).random(200) < 0.3
    alpha, beta = prior(2, 8, 0.875)
    first = alpha, beta
    for r in rewards:
        alpha, beta = rho * alpha + r, rho * beta + 1 - r
    ages = rho ** np.arange(len(rewards))[::-1]
    kept = rho ** len(rewards)
    np.testing.assert_allclose(alpha / (alpha + beta), (kept * first[0] + ages @ rewards) / (kept * sum(first) + ages.sum()))
    if rho < 1:
        np.testing.assert_allclose(alpha + beta, 1 / (1 - rho), rtol=1e-6)


def test_advantages_are_standardised_over_the_batch():
    given = judged([1, 0, 1, 0], [0, 1, 2, 3], baseline=jnp.array([0.5, 0.5, 0.9, 0.1]))
    a = np.array([0.5, -0.5, 0.1, -0.1])
    np.testing.assert_allclose(credited(Standardised(), given), (a - a.mean()) / a.std(), rtol=1e-4)


def test_prompts_are_drawn_by_their_odds():
    """Of two that are taken, the first falls to each with a chance proportional to its odds; none twice."""
    odds = jnp.array([0.5, 0.05, 0.2, 0.25])
    drawn = np.asarray(jax.vmap(lambda k: drawn_by_odds(odds, 2, k))(jax.random.split(jax.random.key(0), 20_000)))
    np.testing.assert_allclose(np.bincount(drawn[:, 0]) / 20_000, odds, atol=0.015)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    after_the_first = np.bincount(drawn[drawn[:, 0] == 0, 1], minlength=4)
    np.testing.assert_allclose(after_the_first / after_the_first.sum(), [0, 0.1, 0.4, 0.5], atol=0.02)


def test_the_tracker_through_an_iteration():
    """v before its update is the baseline; what is not drawn stays; the distance is taken on the completion that was written before."""
    task = chain()
    sampler = SingleStream(prompts=4, rho_min=0.1, rho_max=0.96)
    moved = TabularPolicy(task.model.logits.at[:, :, 0].add(0.3), "chain")

    @jax.jit
    def twice(key):
        state = sampler.init(task, key)
        batch, state = sampler.gather(state, task, task.model, key)
        once = sampler.tell(state, task, moved, batch)
        return state, batch, once, sampler.tell(once, task, moved, batch)

    state, batch, once, again = twice(jax.random.key(0))
    rows = np.asarray(batch.index)
    np.testing.assert_allclose(batch.baseline, state.value[rows], rtol=1e-6)
    np.testing.assert_allclose(once.alpha[rows], 0.96 * state.alpha[rows] + batch.reward, rtol=1e-5)
    others = np.setdiff1d(np.arange(8), rows)
    np.testing.assert_array_equal(once.alpha[others], state.alpha[others])
    np.testing.assert_array_equal(once.tokens[rows], batch.tokens)
    now = moved.score(task.prompts.tokens[rows], task.prompts.mask[rows], batch.tokens, batch.mask).log_prob
    distance = np.abs(np.asarray(now - batch.sampled_log_prob)).mean(axis=1)
    rho = np.clip(2 ** (-distance / 0.06), 0.1, 0.96)
    assert (rho < 0.96).all()
    np.testing.assert_allclose(again.alpha[rows], rho * once.alpha[rows] + batch.reward, rtol=1e-4)
    np.testing.assert_allclose(again.beta[rows], rho * once.beta[rows] + 1 - batch.reward, rtol=1e-4)


def test_a_completion_that_could_not_be_graded_changes_nothing():
    task = chain()
    sampler = SingleStream(prompts=8)
    state = sampler.init(task, jax.random.key(0))
    batch, state = sampler.gather(state, task, task.model, jax.random.key(1))
    after = sampler.tell(state, task, task.model, batch._replace(valid=batch.valid.at[3].set(False)))
    row = int(batch.index[3])
    assert float(after.alpha[row]) == float(state.alpha[row]) and not after.mask[row].any()


def test_a_baseline_of_the_past_is_unbiased():
    """Oracle 4: E[(r - v) grad log pi] does not depend on v."""
    pi, reward = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.0, 0.0])
    scores = np.eye(3) - pi
    for v in (0.0, 0.3, 0.9):
        np.testing.assert_allclose(pi @ ((reward - v)[:, None] * scores), pi * (reward - pi @ reward), atol=1e-12)
