"""RAFT's oracles: the best-of-N distribution, its divergence, ranks, and that the gradient is of imitating what was kept."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.loops.language import Aggregation
from polopt.loops.wording import LogLikelihood
from polopt.methods.reasoning.best_of_n import Best, Kept, best_of_n_probs, largest_kl, rank_in_group
from tests.methods.reasoning.helpers import credited, everywhere, judged, update, weights

PI, REWARD = np.array([0.5, 0.2, 0.2, 0.1]), np.array([0.0, 1.0, 1.0, 2.0])


def test_the_best_of_two_by_hand():
    """Below the best there is .9, below the middle .5: .5^2, .9^2 - .5^2 halved, 1 - .9^2."""
    found = everywhere(lambda p, r: best_of_n_probs(p, r, 2), PI, REWARD)
    np.testing.assert_allclose(found, [0.25, 0.28, 0.28, 0.19], atol=1e-7)


def test_one_completion_is_the_policy_itself():
    np.testing.assert_allclose(best_of_n_probs(PI, REWARD, 1), PI, atol=1e-12)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_divergence_is_bounded_and_the_bound_is_near_for_many_answers(n):
    many = np.full(2000, 1 / 2000)
    for p, r in ((PI, REWARD), (many, np.arange(2000.0))):
        best = best_of_n_probs(p, r, n)
        kl = np.sum(best * np.log(best / p))
        assert kl <= largest_kl(n)
    assert kl >= largest_kl(n) - 0.01


def test_the_mean_of_what_is_kept_is_the_best_of_n_policy():
    """All triples of a bandit: the frequency of each kept answer."""
    total = np.zeros(4)
    for drawn in itertools.product(range(4), repeat=3):
        kept = np.asarray(credited(Best(), judged(REWARD[list(drawn)], [0, 0, 0])))
        for answer, one in zip(drawn, kept):
            total[answer] += np.prod(PI[list(drawn)]) * one
    np.testing.assert_allclose(total, best_of_n_probs(PI, REWARD, 3), atol=1e-6)


def test_ranks_in_groups_with_ties_and_failures():
    rewards, groups = np.array([1.0, 3.0, 3.0, 5.0, 5.0, 9.0]), np.array([0, 0, 0, 1, 1, 1])
    valid = np.array([True, True, True, True, True, False])
    np.testing.assert_array_equal(rank_in_group(jnp.asarray(rewards), jnp.asarray(groups), jnp.asarray(valid)), [2, 0, 1, 0, 1, 2])


def test_kept_completions_count_alike_and_the_others_not():
    given = judged([0.0, 1.0, 2.0, 1.0], [0, 0, 1, 1], lengths=[2, 1, 2, 2])
    advantage = credited(Best(), given)
    given = given._replace(advantage=jnp.where(given.learn, advantage[:, None], 0.0))
    learn = Kept()(given, None, 0.0)
    np.testing.assert_array_equal(learn, [[0, 0], [1, 0], [1, 1], [0, 0]])
    found = weights(LogLikelihood(), update(jnp.full((4, 2), -1.0), advantage, learn=learn), Aggregation("constant"))
    np.testing.assert_allclose(found, 0.5 * learn, rtol=1e-6)


def test_keeping_all_is_imitation():
    np.testing.assert_array_equal(credited(Best(keep=3), judged([0.0, 1.0, 2.0], [0, 0, 0])), 1.0)
    assert jax.tree.leaves(Best()) == []
