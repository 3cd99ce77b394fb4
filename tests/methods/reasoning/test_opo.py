"""OPO's oracles: the length-weighted baseline, and that it is the best one where squared norms grow with length."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from polopt.loops.credit import Centred, LengthWeighted
from polopt.loops.language import Aggregation
from polopt.loops.wording import LogLikelihood
from polopt.methods.reasoning.opo import optimal_baseline
from tests.methods.reasoning.helpers import credited, everywhere, judged, update, weights


def test_numbers():
    """Oracle 1: lengths 10 and 30, rewards 1 and 0."""
    given = judged([1, 0], [0, 0], lengths=[10, 30])
    np.testing.assert_allclose(credited(LengthWeighted(), given), [0.75, -0.25], rtol=1e-6)
    np.testing.assert_allclose(credited(Centred(), given), [0.5, -0.5], rtol=1e-6)


def test_equal_lengths_give_the_mean():
    """Oracle 2."""
    given = judged([3, 1, 0, 2, 2], [0, 0, 0, 1, 1], lengths=[4] * 5)
    np.testing.assert_allclose(credited(LengthWeighted(), given), credited(Centred(), given), rtol=1e-5, atol=1e-6)


def test_token_sums_are_centred():
    """Oracle 3: sum T_i A_i = 0 in every group, and sum A_i is not; so the tokens' weights of a group sum to 0."""
    lengths, group = np.array([1, 5, 9, 2, 7]), np.array([0, 0, 0, 1, 1])
    given = judged([1, 0, 2, 0, 3], group, lengths=lengths)
    a = np.asarray(credited(LengthWeighted(), given))
    np.testing.assert_allclose(np.bincount(group, lengths * a), 0.0, atol=1e-5)
    assert (np.abs(np.bincount(group, a)) > 0.1).all()
    learn = given.batch.mask
    found = weights(LogLikelihood(), update(jnp.full(learn.shape, -1.0), a, learn=learn, group=group), Aggregation("constant", scale=1.0))
    np.testing.assert_allclose(found, learn * a[:, None] / 5, rtol=1e-5, atol=1e-7)


def test_equal_rewards_teach_nothing():
    """Oracle 4."""
    np.testing.assert_allclose(credited(LengthWeighted(), judged([0.7] * 3, [0] * 3, lengths=[1, 5, 9])), 0.0, atol=1e-6)


def test_the_best_constant():
    """No other baseline has a smaller E[(r - b)^2 |g|^2]; with squared norms that grow as lengths it is the length-weighted mean."""
    rng = np.random.default_rng(0)
    rewards, lengths = rng.normal(size=50), rng.integers(1, 20, size=50).astype(float)
    best = float(everywhere(optimal_baseline, rewards, 3 * lengths))
    spread = lambda b: np.mean((rewards - b) ** 2 * lengths)  # noqa: E731
    assert all(spread(best) < spread(best + e) for e in (-0.1, -0.01, 0.01, 0.1))
    found = credited(LengthWeighted(), judged(rewards, [0] * 50, lengths=lengths.astype(int)))
    np.testing.assert_allclose(rewards - np.asarray(found), best, rtol=1e-4)
