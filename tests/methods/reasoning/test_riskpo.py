"""RiskPO's oracles: the mixed value at risk and its weights, the tracked quantiles, bundles and credit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.data import testbeds
from polopt.loops.prompting import Grouped
from polopt.methods.reasoning.riskpo import MixedValueAtRisk, paper_weight, papers_of, place_in_group, riskpo
from polopt.optim.sgd import Sgd
from tests.methods.reasoning.identities import agree, same_in_pieces

A, B, W = 0.2, 0.8, 1.5


def quantile_mean(x, low, high, points=200_000):
    """The mean of the quantiles of sorted, equally likely x between two levels."""
    levels = low + (high - low) * (np.arange(points) + 0.5) / points
    return x[(levels * len(x)).astype(int)].mean()


def mixed(x):
    x = np.sort(x)
    return (quantile_mean(x, A, B) + W * quantile_mean(x, 0, A)) / (1 + W)


def test_the_surer_option_is_preferred():
    """Oracle 1: 5 with probability .7 is worth 1.667, 3 + .1 N(0, 1) is worth 2.916."""
    z = np.random.default_rng(0).normal(size=1_000_000)
    np.testing.assert_allclose(mixed(np.repeat([0.0, 5.0], [3000, 7000])), 5 / 3, rtol=1e-3)
    np.testing.assert_allclose(mixed(3 + 0.1 * z), 2.916, rtol=1e-3)


def test_the_weight_is_the_gradient_of_the_objective():
    """Moving mass towards an outcome changes the mixed value at risk by the weight, up to a constant."""
    p, x = np.array([0.15, 0.25, 0.3, 0.3]), np.array([0.0, 1.0, 2.5, 4.0])

    def risk(p):
        return mixed(np.repeat(x, np.round(p * 1_000_000).astype(int)))

    q_a, q_b = x[np.searchsorted(np.cumsum(p), [A, B])]
    g = paper_weight(x, q_a, q_b, A, B, W)
    step = 0.004 * np.array([-1.0, 0.5, 1.0, -0.5])
    np.testing.assert_allclose((risk(p + step) - risk(p - step)) / 2, step @ g, rtol=2e-3)


@pytest.mark.parametrize("tail", ["lower", "upper"])
def test_the_slopes(tail):
    """Oracle 3: w / (a (1 + w)) below q_a, 1 / ((b - a)(1 + w)) between, none above; the control has one above and none below."""
    scores = np.array([-1.0, 1.5, 5.0])
    _, (slope,) = agree(lambda s: paper_weight(s, 0.0, 3.0, A, B, W, tail), scores)
    middle = 1 / (B - A) / (1 + W)
    np.testing.assert_allclose(slope, [W / A / (1 + W), middle, 0] if tail == "lower" else [0, middle, W / (1 - B) / (1 + W)], rtol=1e-9)
    assert tail == "upper" or paper_weight(7.0 + np.zeros(1), 0.0, 3.0, A, B, W) == 0


def test_the_mean():
    """Oracle 2: between the levels 0 and 1, without a tail, the score less a constant."""
    scores = np.array([0.3, 2.0, 3.0])
    np.testing.assert_allclose(np.diff(paper_weight(scores, 0.0, 4.0, 1e-12, 1.0, 0.0)), np.diff(scores), rtol=1e-9)


def test_places():
    found, _ = agree(lambda g: place_in_group(g) + 0.0 * g, np.array([3.0, 1, 3, 3, 1, 2]), moves=())
    np.testing.assert_array_equal(found, [0, 0, 1, 2, 1, 0])


def a_batch(rewards, valid=None):
    """Responses to questions (questions, responses), in the loop's form."""
    task = testbeds.bandit(prompts=rewards.shape[0], success=0.5, steps=2)
    batch = Grouped(*rewards.shape).gather(Grouped(*rewards.shape).init(task, jax.random.key(0)), task, task.model, jax.random.key(1))[0]
    return task, batch._replace(reward=jnp.asarray(rewards.ravel(), jnp.float32), valid=jnp.ones(rewards.size, bool) if valid is None else valid)


REWARDS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1.0]])


def test_bundles():
    """Paper j is the j-th response to each question of its bundle."""
    _, batch = a_batch(REWARDS)
    papers = papers_of(batch, 2)
    wanted = np.repeat([REWARDS[:2].sum(0), REWARDS[2:].sum(0)], 2, axis=0)
    np.testing.assert_array_equal(papers.score.reshape(4, 3), wanted)
    np.testing.assert_allclose(papers.share, 0.5)


def test_tracked_quantiles_settle_where_they_should():
    """Oracle 4: P(S < q_u) = u; the first batch starts them."""
    rng = np.random.default_rng(0)
    part = MixedValueAtRisk(bundle=1, rate=0.02)
    task, batch = a_batch(np.zeros((4, 50)))
    step = jax.jit(lambda state, reward: part(state, None, batch._replace(reward=reward), None)[1])
    state = part.init(task, None)
    draws = [jnp.asarray(rng.normal(size=200), jnp.float32) for _ in range(600)]
    np.testing.assert_allclose(step(state, draws[0])[0], np.quantile(draws[0], [A, B]), atol=0.02)
    seen = []
    for reward in draws:
        state = step(state, reward)
        seen.append(state[0])
    np.testing.assert_allclose(np.mean(seen[100:], axis=0), [-0.8416, 0.8416], atol=0.02)


def weights_of(part, batch, task):
    state = (jnp.array([1.0, 2.0]), jnp.ones((), bool))
    return np.asarray(part(state, None, batch, None)[0]).reshape(4, 3)


def test_credit():
    """Uniform, by the question's deviation, and by the share of the paper's deviation; what has no deviation gets nothing."""
    task, batch = a_batch(REWARDS)
    plain = MixedValueAtRisk(bundle=2, centre=False, scale=False, credit="uniform")
    g = paper_weight(np.asarray(papers_of(batch, 2).score), 1.0, 2.0, A, B, W).reshape(4, 3)
    np.testing.assert_allclose(weights_of(plain, batch, task), g, rtol=1e-5)
    std, centred = REWARDS.std(1, keepdims=True), REWARDS - REWARDS.mean(1, keepdims=True)
    by_std = weights_of(dataclasses.replace(plain, credit="std"), batch, task)
    np.testing.assert_allclose(by_std, np.divide(g, std, out=np.zeros((4, 3)), where=std > 0), rtol=1e-5)
    total = np.repeat([centred[:2].sum(0), centred[2:].sum(0)], 2, axis=0)
    share = np.divide(centred, total, out=np.zeros((4, 3)), where=np.abs(total) > 1e-6)
    np.testing.assert_allclose(weights_of(dataclasses.replace(plain, credit="share"), batch, task), g * share, rtol=1e-4, atol=1e-6)
    both = weights_of(MixedValueAtRisk(bundle=2, credit="uniform"), batch, task)[::2]
    score = np.asarray(papers_of(batch, 2).score).reshape(4, 3)[::2]
    np.testing.assert_allclose(both, (g[::2] - g[::2].mean(1, keepdims=True)) / score.std(1, keepdims=True), rtol=1e-4)


def test_single_questions_have_nothing_between():
    """Oracle 5: with rewards of 0 and 1 the quantiles are 0 and 1 and a paper is worth a constant more than another."""
    assert np.unique(np.round(paper_weight(np.array([0.0, 1.0, 1.0]), 0.0, 1.0, A, B, W), 9)).size == 2


def test_every_field_counts():
    task, batch = a_batch(REWARDS)
    part = MixedValueAtRisk(bundle=2)
    changes = dict(bundle=4, a=0.1, b=0.9, w=0.3, tail="upper", centre=False, scale=False, credit="uniform")
    for name, value in changes.items():
        assert np.abs(weights_of(dataclasses.replace(part, **{name: value}), batch, task) - weights_of(part, batch, task)).max() > 1e-6, name
    state = part.init(task, None)
    fast, slow = (dataclasses.replace(part, rate=rate)(state, None, batch, None)[1][0] for rate in (0.1, 0.01))
    assert np.abs(fast - slow).max() > 1e-6


def test_the_loop():
    task = testbeds.bandit(prompts=6, low=0.3, high=0.7, steps=4)
    method = dataclasses.replace(riskpo(task), step_rule=Sgd(10.0), sampler=Grouped(6, 4))
    same_in_pieces(method, task, 8)
