"""GRPO's oracles: its advantages, its weight on grad log pi, and its penalty's gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.loops.credit import GroupRelative, LeaveOneOut
from polopt.loops.language import Aggregation, KLPenalty
from polopt.loops.wording import Clipped
from tests.methods.reasoning.helpers import credited, judged, update, weights


@pytest.mark.parametrize(
    "advantage, wanted",
    [
        (GroupRelative(epsilon=0.0), [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]),
        (GroupRelative(ddof=1, epsilon=0.0), [1.5, -0.5, -0.5, -0.5]),
        (GroupRelative(scale="none"), [0.75, -0.25, -0.25, -0.25]),
        (LeaveOneOut(), [1.0, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_one_right_of_four(advantage, wanted):
    np.testing.assert_allclose(credited(advantage, judged([1, 0, 0, 0], [0, 0, 0, 0])), wanted, rtol=1e-5)


@pytest.mark.parametrize("right", [1, 2, 5, 7])
def test_binary_rewards(right):
    """With a share p of right answers: sqrt((1-p)/p) and -sqrt(p/(1-p)); all alike give 0."""
    p = right / 8
    found = credited(GroupRelative(epsilon=0.0), judged([1] * right + [0] * (8 - right), [0] * 8))
    np.testing.assert_allclose(found, [((1 - p) / p) ** 0.5] * right + [-((p / (1 - p)) ** 0.5)] * (8 - right), rtol=1e-5)
    np.testing.assert_array_equal(credited(GroupRelative(epsilon=0.0), judged([0.3] * 8, [0] * 8)), 0.0)


def test_what_failed_to_be_graded_is_left_out():
    found = credited(GroupRelative(epsilon=0.0), judged([1, 0, 0, 9], [0, 0, 0, 0], valid=[1, 1, 1, 0]))
    np.testing.assert_allclose(found, [2**0.5, -(2**-0.5), -(2**-0.5), 0.0], rtol=1e-5)


def test_weights_on_the_log_probabilities():
    """r A inside the clip and 0 beyond it, over length and completions."""
    ratio = jnp.array([[1.1, 1.3], [0.9, 0.7], [1.3, 0.5], [0.7, 1.0]])
    old = jnp.full((4, 2), -1.5)
    advantage = jnp.array([2.0, 2.0, -1.0, -1.0])
    learn = jnp.array([[1, 1], [1, 1], [1, 1], [1, 0]], bool)
    found = weights(Clipped(), update(old + jnp.log(ratio), advantage, old=old, learn=learn), Aggregation("sequence"))
    kept = jnp.array([[1, 0], [1, 1], [1, 0], [0, 0]])
    shares = jnp.array([[0.5], [0.5], [0.5], [1.0]]) / 4
    np.testing.assert_allclose(found, ratio * advantage[:, None] * kept * shares, rtol=1e-5, atol=1e-7)


def test_each_bound_of_the_clip_is_its_own():
    old, ratio = jnp.zeros((1, 3)), jnp.array([[0.75, 1.25, 5.0]])
    given = lambda a: update(jnp.log(ratio), [a], old=old)  # noqa: E731
    np.testing.assert_allclose(weights(Clipped(high=0.3), given(1.0)), [[0.75, 1.25, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(weights(Clipped(low=0.3), given(-1.0)), [[-0.75, -1.25, -5.0]], rtol=1e-6)
    np.testing.assert_allclose(weights(Clipped(low=0.3, dual=3.0), given(-1.0)), [[-0.75, -1.25, 0.0]], rtol=1e-6)


def test_the_penaltys_gradient():
    """k3: beta (1 - pi_ref / pi) on every token, which is 0 at the anchor."""
    log_prob, anchor = jnp.array([[-1.0, -2.0]]), jnp.array([[-1.0, -1.0]])
    penalty = KLPenalty(0.04)
    slope = jax.grad(lambda x: jnp.sum(penalty.loss(update(x, anchor=anchor)._replace(log_prob=x))))(log_prob)
    np.testing.assert_allclose(slope, [[0.0, 0.04 * (1 - np.e)]], rtol=1e-5)


def test_a_group_of_one_is_refused():
    from polopt.core import parts
    from polopt.methods.reasoning.grpo import grpo
    from tests.methods.reasoning.helpers import chain

    reason = parts.replace(grpo(), {"completions": 1}).refuse(chain())
    assert "has 1 of each" in reason and "2 or more" in reason
