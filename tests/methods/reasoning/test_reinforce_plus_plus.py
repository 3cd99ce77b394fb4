"""REINFORCE++'s oracles: normalisation over all tokens, the penalty to go, groups of one."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from polopt.loops.credit import Whitened
from polopt.loops.language import KLPenalty, KLReward
from polopt.methods import registry
from tests.methods.reasoning.helpers import chain, credited, judged


def test_every_token_counts_in_the_normalisation():
    """Lengths 1 and 3: the mean of (1, 0, 0, 0) is 1/4, its deviation sqrt(3)/4."""
    found = credited(Whitened(), judged([1, 0], [0, 1], lengths=[1, 3]))
    np.testing.assert_allclose(found, [[3**0.5, 0, 0], [-(3**-0.5)] * 3], rtol=1e-5, atol=1e-7)


def test_the_penalty_to_go():
    """a_t = r - beta sum over k >= t of k1_k; the reward that the advantage is given has the whole sum already."""
    paid = jnp.array([[-0.1, -0.2, -0.3], [0.0, 0.4, 0.0]])
    score = jnp.array([1.0, 0.0])
    a = np.array([[1 - 0.6, 1 - 0.5, 1 - 0.3], [0.4, 0.4, 0.0]])
    found = credited(Whitened(), judged(score + jnp.sum(paid, axis=1), [0, 1], lengths=[3, 3], paid=paid))
    np.testing.assert_allclose(found, (a - a.mean()) / a.std(), rtol=1e-4, atol=1e-6)


def test_the_baseline_takes_the_groups_mean_first():
    found = credited(Whitened(centre=True), judged([3, 1, 0, 0], [0, 0, 1, 1]))
    np.testing.assert_allclose(found[:, 0], [2**0.5, -(2**0.5), 0.0, 0.0], rtol=1e-5, atol=1e-6)


def test_what_is_not_learnt_from_is_not_counted():
    found = credited(Whitened(), judged([1, 0, 50], [0, 1, 2], valid=[1, 1, 0]))
    np.testing.assert_allclose(found, [[1, 1], [-1, -1], [0, 0]], rtol=1e-5)


def test_one_completion_of_each_prompt():
    method = registry.load("reinforce_plus_plus")(chain())
    assert method.sampler.completions == 1 and method.refuse(chain()) is None


@pytest.mark.parametrize("name, place", [("reinforce_plus_plus", KLReward), ("reinforce_plus_plus:baseline", KLPenalty)])
def test_where_the_penalty_is_paid(name, place):
    assert isinstance(registry.load(name)(None).penalty, place)
