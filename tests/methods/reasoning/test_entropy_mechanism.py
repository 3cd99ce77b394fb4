"""The oracles of Clip-Cov and KL-Cov: the covariance is the entropy's change, and which tokens are held back."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from polopt.core.parts import replace
from polopt.data import testbeds
from polopt.loops.wording import few, largest
from polopt.methods.reasoning.entropy_mechanism import (
    ClipCov,
    KLCov,
    clip_cov,
    entropy_change,
    entropy_mechanism,
    kl_cov,
    token_covariance,
)
from polopt.optim.sgd import Sgd
from tests.methods.reasoning.identities import agree, an_update, every_field_weighs, same_in_pieces, weights


def log_softmax(x):
    return x - np.log(np.exp(x).sum())


def entropy(log_p):
    return -(np.exp(log_p) * log_p).sum()


@pytest.mark.parametrize("natural", [False, True])
def test_the_covariance_is_the_change_of_entropy(natural):
    """Oracle 1: the ratio of the two is 1 + O(eta)."""
    rng = np.random.default_rng(0)
    theta, advantage = rng.normal(size=(2, 8))
    log_p = log_softmax(theta)
    advantage = advantage - np.exp(log_p) @ advantage
    step = advantage if natural else np.exp(log_p) * advantage
    (change, _), off = agree(entropy_change, log_p, step, moves=()), []
    for eta in (1e-3, 1e-4):
        off.append(abs((entropy(log_softmax(theta + eta * step)) - entropy(log_p)) / (eta * change) - 1))
    assert off[0] < 0.02 and off[1] < 0.002
    np.testing.assert_allclose(off[0] / off[1], 10, rtol=0.05)


def test_a_uniform_policy_has_no_covariance():
    """Oracle 2."""
    assert abs(entropy_change(np.log(np.full(4, 0.25)), np.array([1.0, -1, 2, 0]))) < 1e-12


def test_the_covariance_of_tokens():
    """Against NumPy's, masked tokens left out."""
    rng = np.random.default_rng(1)
    log_prob, advantage, mask = -rng.gamma(1.0, size=(3, 4)), rng.normal(size=(3, 4)), rng.random((3, 4)) < 0.7
    found, (slope,) = agree(lambda x, a, m: token_covariance(x, a, m) + 0 * x, log_prob, advantage, mask)
    np.testing.assert_allclose(found.sum() / mask.sum(), np.cov(log_prob[mask], advantage[mask], ddof=0)[0, 1], rtol=1e-9)
    assert not found[~mask].any() and not slope.any()


def test_equal_advantages_have_none_and_do_not_crash():
    """Oracle 3."""
    log_prob = np.log([[0.2, 0.5], [0.1, 0.9]])
    np.testing.assert_allclose(token_covariance(log_prob, np.ones((2, 2))), 0, atol=1e-12)
    update = an_update(log_prob, advantage=np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(weights(ClipCov(), update), 1)


def test_which_are_the_largest():
    x, mask = np.array([[3.0, 9.0, 1.0], [2.0, 2.0, 5.0]]), np.array([[1, 0, 1], [1, 1, 1]], bool)
    found, _ = agree(lambda x, m: largest(x, m, 3) + 0 * x, x, mask, moves=())
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 0, 1]])
    assert [float(few(share, mask)) for share in (0.0, 0.5, 1.0)] == [1, 2, 5]


LOG_PROB, ADVANTAGE = np.log([[0.9, 0.2, 0.03, 0.5]]), np.array([[2.0, 0.5, -2.0, -0.5]], np.float32)  # covariances 2.7, -.1, 4.1, -.4


def test_clip_cov_drops_one_of_the_candidates():
    """Oracle 4: at least one, and none where there is no candidate; every candidate is dropped in turn."""
    update = an_update(LOG_PROB, advantage=ADVANTAGE)
    keys = jax.random.split(jax.random.key(0), 20)
    seen = np.array([weights(ClipCov(share=1e-9), update, key)[0] for key in keys])
    assert ((seen == 0).sum(1) == 1).all() and (seen[:, [1, 3]] == ADVANTAGE[0, [1, 3]]).all()
    assert (seen == 0).any(0).tolist() == [True, False, True, False]
    np.testing.assert_array_equal(weights(ClipCov(lower=6.0, upper=7.0), update), ADVANTAGE)
    np.testing.assert_array_equal(weights(ClipCov(share=1.0), update)[0] == 0, [True, False, True, False])


def test_what_is_clipped_is_no_candidate():
    ratio = np.array([[2.5, 1.0, 1.0, 1.0]])
    update = an_update(LOG_PROB, old=LOG_PROB - np.log(ratio), advantage=ADVANTAGE)
    np.testing.assert_array_equal(weights(ClipCov(), update)[0], [0, 0.5, 0, -0.5])


def test_kl_cov():
    """Oracle 5, and the weight r A - kappa sign(log r) on the token of the largest covariance, r A on the others."""
    np.testing.assert_allclose(weights(KLCov(), an_update(LOG_PROB, advantage=ADVANTAGE)), ADVANTAGE, rtol=1e-6)
    log_ratio, chosen = np.array([[0.3, -0.2, 0.1, 3.0]]), np.array([[1, 1, 0, 0]], bool)
    loss = functools.partial(kl_cov, kappa=0.5)
    _, (slope,) = agree(loss, LOG_PROB, LOG_PROB - log_ratio, ADVANTAGE.astype(np.float64), chosen)
    np.testing.assert_allclose(-slope, np.exp(log_ratio) * ADVANTAGE - 0.5 * np.sign(log_ratio) * chosen, rtol=1e-6)
    update = an_update(LOG_PROB, old=LOG_PROB - log_ratio, advantage=ADVANTAGE)
    np.testing.assert_allclose(weights(KLCov(), update), np.exp(log_ratio) * ADVANTAGE - [[0, 0, 1, 0]], rtol=1e-5)


def test_every_field_counts():
    log_prob, advantage = np.log([[0.9, 0.2, 0.03, 0.5, 0.4]]), np.array([[2.0, 0.5, -2.0, -0.5, -0.3]], np.float32)
    update = an_update(log_prob, old=log_prob - np.log([[1.5, 0.4, 5.0, 12.0, 0.8]]), advantage=advantage)
    every_field_weighs(KLCov(), update, share=0.5, kappa=0.3)
    every_field_weighs(ClipCov(), update, share=1.0, lower=4.2, low=0.05, high=0.2)
    every_field_weighs(ClipCov(share=1.0), update, upper=4.0)
    every_field_weighs(ClipCov(lower=10.0, upper=11.0), update, dual=13.0)


def test_the_loop():
    task = testbeds.chain(prompts=6, length=2, vocabulary=3, success=0.7, steps=4)
    method = dataclasses.replace(entropy_mechanism(task), step_rule=Sgd(10.0), minibatches=2)
    same_in_pieces(replace(method, {"sampler.prompts": 4}), task, 4)
    assert isinstance(clip_cov(task).objective, ClipCov)
