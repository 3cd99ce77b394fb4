"""GPG's oracles: alpha, the mean over groups that say something, and groups of one."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.loops.credit import Centred, GroupRelative
from polopt.loops.language import Aggregation
from polopt.loops.wording import LogLikelihood
from polopt.methods import registry
from polopt.methods.reasoning.gpg import Corrected, batch_correction
from tests.methods.reasoning.helpers import chain, credited, everywhere, judged, update, weights

REWARDS = np.array([1.0, 0, 0, 0, 1, 1, 1, 0])
GROUPS = np.array([0, 0, 1, 1, 2, 2, 3, 3])


def corrected(given, of=None):
    advantage = Corrected() if of is None else Corrected(of)
    return advantage((), None, given.batch, given)[0]


def test_two_of_four_groups_say_nothing():
    """Oracle 1: alpha = 2 and A = (1, -1) where rewards differ."""
    np.testing.assert_allclose(everywhere(batch_correction, REWARDS, GROUPS), 2.0)
    np.testing.assert_allclose(corrected(judged(REWARDS, GROUPS)), [1, -1, 0, 0, 0, 0, 1, -1], atol=1e-6)


def test_the_mean_over_groups_that_say_something():
    """Oracle 2, for the weights that the composition gives to log-probabilities."""
    log_prob = jnp.full((8, 2), -1.0)

    def over(rows, advantage):
        return weights(LogLikelihood(), update(log_prob[rows], advantage[rows], group=GROUPS[rows]), Aggregation("token"))

    every, useful = np.arange(8), np.array([0, 1, 6, 7])
    alpha = over(every, corrected(judged(REWARDS, GROUPS)))
    np.testing.assert_allclose(alpha[useful], over(useful, credited(Centred(), judged(REWARDS, GROUPS))), rtol=1e-6)


def test_nothing_and_everything():
    """Oracle 3: alpha is 1 without such groups, 0 where all are, and never infinite."""
    np.testing.assert_allclose(everywhere(batch_correction, np.array([1.0, 0, 0, 1]), np.array([5, 5, 2, 2])), 1.0)
    np.testing.assert_array_equal(everywhere(batch_correction, np.full(4, 0.3), np.array([0, 0, 1, 1])), 0.0)


def test_rewards_that_are_not_0_do_not_make_a_group_informative():
    np.testing.assert_allclose(everywhere(batch_correction, REWARDS + 7, GROUPS), 2.0)


def test_groups_of_any_size_and_groups_that_are_not_there():
    """Three groups of sizes 3, 2 and 1 after the masked are gone; the fourth is empty and counts nowhere, so nothing is corrected twice."""
    rewards, groups = np.array([1.0, 0, 0, 1, 1, 0, 5, 9]), np.array([0, 0, 0, 1, 1, 2, 3, 3])
    mask = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)
    np.testing.assert_allclose(everywhere(lambda r, g, m: batch_correction(r, g, m), rewards, groups, mask), 3.0)


def test_it_corrects_any_advantage():
    given = judged(REWARDS, GROUPS)
    scaled = GroupRelative(epsilon=0.0)
    np.testing.assert_allclose(corrected(given, scaled), 2 * credited(scaled, given), rtol=1e-6)


@pytest.mark.parametrize("name", ["gpg", "gpg:threshold"])
def test_a_group_of_one_is_refused(name):
    """Oracle 4."""
    with pytest.raises(ValueError, match="2"):
        reason = parts.replace(registry.load(name)(None), {"completions": 1}).refuse(chain())
        raise ValueError(reason)
