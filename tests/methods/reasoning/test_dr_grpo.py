"""Dr. GRPO's oracles: centred rewards, one constant for all tokens, and the gradient of E[r] up to a factor."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from polopt.loops.credit import Centred
from polopt.loops.language import Aggregation
from polopt.loops.wording import Clipped
from polopt.methods.reasoning.dr_grpo import dr_grpo
from tests.methods.reasoning.helpers import chain, credited, judged, update, weights


def test_advantages():
    np.testing.assert_allclose(credited(Centred(), judged([1, 0, 0, 0, 2, 2], [0, 0, 0, 0, 1, 1])), [0.75, -0.25, -0.25, -0.25, 0, 0], atol=1e-7)


def test_every_token_weighs_alike():
    """A / (N L), however long the completion is; GRPO's divides by its own length."""
    learn = jnp.array([[1, 1, 1], [1, 0, 0]], bool)
    given = update(jnp.full((2, 3), -1.0), [0.5, -0.5], learn=learn)
    np.testing.assert_allclose(weights(Clipped(), given, Aggregation("constant", scale=10.0)), learn * jnp.array([[0.025], [-0.025]]), rtol=1e-6)
    np.testing.assert_allclose(weights(Clipped(), given, Aggregation("sequence")), learn * jnp.array([[0.5 / 6], [-0.25]]), rtol=1e-6)


def test_the_mean_weight_is_that_of_the_expected_reward():
    """All groups of three completions with success p: E[A | right] is (1 - p)(G - 1)/G, so the mean gradient is that share of E[r]'s."""
    p, size = 0.3, 3
    right = wrong = 0.0
    for outcome in np.ndindex(*(2,) * size):
        odds = np.prod([p if r else 1 - p for r in outcome])
        a = np.asarray(credited(Centred(), judged(list(outcome), [0] * size)))
        right += odds * a[0] * outcome[0]
        wrong += odds * a[0] * (1 - outcome[0])
    share = (size - 1) / size
    np.testing.assert_allclose([right, wrong], [share * p * (1 - p), -share * p * (1 - p)], rtol=1e-5)


def test_the_constant_is_the_greatest_length():
    assert dr_grpo(chain()).aggregation == Aggregation("constant", scale=3.0)
    assert dr_grpo().aggregation.scale == 3000.0
