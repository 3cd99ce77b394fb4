"""CISPO's oracles: the weight is bounded and constant, and no token's gradient is cut."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from polopt.loops.wording import Clipped
from polopt.methods.reasoning.cispo import TruncatedWeight
from tests.methods.reasoning.helpers import update, weights

RATIO = jnp.array([[0.1, 0.9, 1.2, 1.9, 7.0]])


@pytest.mark.parametrize("advantage", [1.0, -2.0])
def test_the_weight(advantage):
    given = update(jnp.log(RATIO), [advantage], old=jnp.zeros((1, 5)))
    np.testing.assert_allclose(weights(TruncatedWeight(high=0.28), given), advantage * jnp.minimum(RATIO, 1.28), rtol=1e-5)
    np.testing.assert_allclose(weights(TruncatedWeight(high=0.28, low=0.5), given), advantage * jnp.clip(RATIO, 0.5, 1.28), rtol=1e-5)
    assert (np.asarray(weights(Clipped(0.2, 0.28), given)) == 0).any()  # where PPO's clip drops tokens


def test_the_share_at_the_bounds():
    given = update(jnp.log(RATIO), [1.0], old=jnp.zeros((1, 5)))
    np.testing.assert_allclose(TruncatedWeight(high=0.28).loss(given, None)[1]["clipped"], 0.4)
    np.testing.assert_allclose(TruncatedWeight(high=0.28, low=0.5).loss(given, None)[1]["clipped"], 0.6)


def test_a_bound_that_is_never_reached_is_importance_weighting():
    given = update(jnp.log(RATIO), [3.0], old=jnp.zeros((1, 5)))
    np.testing.assert_allclose(weights(TruncatedWeight(high=100.0), given), 3 * RATIO, rtol=1e-5)
