"""max@k's oracles: the transformation by counting subsets, its gradient by enumeration, and the correction to first order."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest

from polopt.core.parts import replace
from polopt.data import testbeds
from polopt.methods.reasoning.max_at_k import CorrectedMaxAtK, corrected, max_at_k, max_at_k_advantages, max_at_k_rewards
from polopt.optim.sgd import Sgd
from tests.methods.reasoning.identities import agree, an_update, every_field_counts, same_in_pieces, weights


def counted(rewards, k, deviation=None):
    """t_i by its definition: the mean over all sets of k of their best, times the product of 1 + d, over those that hold i."""
    n = len(rewards)
    d = np.zeros(n) if deviation is None else deviation
    found = np.zeros(n)
    for chosen in itertools.combinations(range(n), k):
        found[list(chosen)] += max(rewards[list(chosen)]) * np.prod(1 + d[list(chosen)])
    return found / math.comb(n, k)


@pytest.mark.parametrize("k, wanted", [(1, [0, 1 / 6, 1 / 3]), (2, [0.5, 0.5, 2 / 3]), (3, [1, 1, 1])])
def test_three_rewards(k, wanted):
    """Oracles 2 and 3."""
    found, _ = agree(lambda r, g: max_at_k_rewards(r, g, k), np.array([0, 0.5, 1.0]), np.zeros(3, int), moves=())
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_all_subsets_counted(k):
    """Groups of several sizes, in disorder, with ties and completions that are left out; the sum is k times the estimate of max@k."""
    rng = np.random.default_rng(k)
    rewards, groups, mask = rng.integers(0, 4, 20) / 2.0, rng.integers(0, 3, 20), rng.random(20) < 0.8
    found, _ = agree(lambda r, g, m: max_at_k_rewards(r, g, k, mask=m), rewards, groups, mask, moves=())
    assert not found[~mask].any()
    for group in range(3):
        rows = mask & (groups == group)
        if rows.sum() < k:
            assert not found[rows].any()
            continue
        np.testing.assert_allclose(sorted(found[rows]), sorted(counted(rewards[rows], k)), rtol=1e-9)
        best = np.mean([max(s) for s in itertools.combinations(rewards[rows], k)])
        np.testing.assert_allclose(found[rows].sum(), k * best, rtol=1e-9)


def test_the_estimate_is_unbiased():
    """Oracle 1: the expectation over all samples of three is the gradient of E max of two."""
    p, r, k = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.5, 1.0]), 2
    found = np.zeros(3)
    for sample in itertools.product(range(3), repeat=3):
        t = max_at_k_rewards(r[list(sample)], np.zeros(3, int), k)
        found += np.prod(p[list(sample)]) * sum(t[i] * (np.eye(3)[a] - p) for i, a in enumerate(sample))
    np.testing.assert_allclose(found, [-0.18, 0.012, 0.168], atol=1e-9)

    def best(logits):
        q = np.exp(logits) / np.exp(logits).sum()
        return sum(q[a] * q[b] * max(r[a], r[b]) for a, b in itertools.product(range(3), repeat=2))

    step = 1e-5 * np.eye(3)
    np.testing.assert_allclose(found, [(best(np.log(p) + h) - best(np.log(p) - h)) / 2e-5 for h in step], atol=1e-9)


def test_the_correction_is_of_first_order():
    """Oracle 4: against all subsets with the product of the ratios; without it the error is of d."""
    rng = np.random.default_rng(0)
    rewards, groups = rng.uniform(size=6), np.zeros(6, int)

    def error(size, corrected):
        d = size * rng.normal(size=6)
        given = d if corrected else None
        return np.abs(max_at_k_rewards(rewards, groups, 3, given) - counted(rewards, 3, d)).max()

    assert error(1e-3, True) < 2e-5 and error(1e-3, False) > 2e-4
    np.testing.assert_allclose(error(1e-2, True) / error(1e-3, True), 100, rtol=0.9)
    agree(lambda r, g, d: max_at_k_rewards(r, g, 3, d), rewards, groups, 0.1 * rng.normal(size=6), moves=(2,))


@pytest.mark.parametrize("rewards, k", [([0.3, 0.3, 0.3, 0.3], 2), ([0.1, 0.7, 0.3, 0.9], 4)])
def test_what_says_nothing_gets_exactly_nothing(rewards, k):
    """Equal rewards, and k = n."""
    found = max_at_k_advantages(np.array(rewards, np.float32), np.zeros(4, int), k)
    np.testing.assert_array_equal(found, 0)


def test_k_of_one_is_grpo():
    rewards, groups = np.array([1.0, 0, 0, 0]), np.zeros(4, int)
    np.testing.assert_allclose(max_at_k_advantages(rewards, groups, 1, epsilon=0.0), [3**0.5, *[-(3**-0.5)] * 3], rtol=1e-9)


def test_the_weight_of_the_corrected_loss():
    """The advantages of the transformed rewards at d, the sequence's ratio less 1, cut."""
    log_ratio = np.array([[0.05, 0.02], [-0.1, 0.01], [0.3, 0.4], [0.0, 0.0]], np.float32)
    rewards = np.array([0.1, 0.9, 0.5, 0.2], np.float32)
    update = an_update(log_ratio, old=np.zeros((4, 2)), reward=rewards, group=np.zeros(4, int))
    d = np.clip(np.expm1(log_ratio.sum(1)), -0.2, 0.2)
    wanted = max_at_k_advantages(rewards, np.zeros(4, int), 2, d)
    np.testing.assert_allclose(weights(CorrectedMaxAtK(2), update), np.repeat(wanted[:, None], 2, 1), rtol=1e-4)


def small(method, **changes):
    method = dataclasses.replace(method, step_rule=Sgd(2.0), epochs=2)
    return replace(method, {"sampler.prompts": 4, "sampler.completions": 8, **changes})


def test_the_loop():
    task = testbeds.chain(prompts=6, length=2, vocabulary=3, success=0.5, steps=4)
    same_in_pieces(small(max_at_k(task)), task, 8)
    changes = dict(k=2, scale="none", epsilon=0.1)
    every_field_counts(small(max_at_k(task)), task, **{f"advantage__{name}": x for name, x in changes.items()})
    changed = functools.partial(every_field_counts, small(corrected(task)), task)
    changed(objective__clip=0.01, **{f"objective__{name}": x for name, x in changes.items()})
