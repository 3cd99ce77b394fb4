"""GSPO's oracles: the ratio of the completion, its weight, its clip, and the token form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.loops.language import Aggregation
from polopt.methods.reasoning.gspo import SequenceClipped
from tests.methods.reasoning.helpers import update, weights

OLD = jnp.array([[-1.0, -2.0, -1.5], [-1.0, -0.5, 0.0]])
STEP = jnp.array([[0.3, -0.3, 0.0003], [0.02, 0.0, 0.0]])
LEARN = jnp.array([[1, 1, 1], [1, 1, 0]], bool)


def given(advantage):
    return update(OLD + STEP, advantage, old=OLD, learn=LEARN)


def test_the_weight_is_the_geometric_mean_of_the_ratios():
    """s = exp(.0001) and exp(.01): the same weight s A / (T N) for each token of a completion, whatever its own ratio; 0 beyond the clip."""
    s = np.exp([1e-4, 1e-2])
    wide = SequenceClipped(low=0.5, high=0.5)
    np.testing.assert_allclose(weights(wide, given([2.0, 1.0]), Aggregation("sequence")), LEARN * (s * [2, 1] / [6, 4])[:, None], rtol=1e-4)
    found = weights(SequenceClipped(), given([2.0, 1.0]), Aggregation("sequence"))
    np.testing.assert_allclose(found, LEARN * (s * [2, 0] / [6, 4])[:, None], rtol=1e-4)
    assert SequenceClipped().loss(given([2.0, 1.0]), None)[1]["clipped"] == 2 / 5


def test_the_bounds():
    """4e-4 above where the advantage is positive, 3e-4 below where it is negative."""
    for step, advantage, kept in ((3.5e-4, 1, True), (4.5e-4, 1, False), (-2.5e-4, -1, True), (-3.5e-4, -1, False), (-1.0, 1, True), (1.0, -1, True)):
        old = jnp.full((1, 2), -1.0)
        assert bool(jnp.any(weights(SequenceClipped(), update(old + step, [float(advantage)], old=old)) != 0)) is kept


def test_the_token_form_is_the_same_where_advantages_are_constant():
    for low in (3e-4, 0.5):
        a, b = (weights(SequenceClipped(low, low, per_token=form), given([2.0, -1.0]), Aggregation("sequence")) for form in (False, True))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_token_form_takes_advantages_of_tokens():
    advantage = jnp.array([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]])
    found = weights(SequenceClipped(0.5, 0.5, per_token=True), given(advantage), Aggregation("sequence"))
    s = np.exp([1e-4, 1e-2])[:, None]
    np.testing.assert_allclose(found, LEARN * s * advantage / np.array([[6], [4]]), rtol=1e-4, atol=1e-7)


def test_on_policy_it_is_the_policy_gradient():
    found = weights(SequenceClipped(), update(OLD, [1.0, -1.0], learn=LEARN), Aggregation("sequence"))
    np.testing.assert_allclose(found, LEARN * np.array([[1 / 6], [-1 / 4]]), rtol=1e-5)
    assert jax.tree.leaves(SequenceClipped().loss(update(OLD, [1.0, -1.0], learn=LEARN), None)[1]) == [0.0]
