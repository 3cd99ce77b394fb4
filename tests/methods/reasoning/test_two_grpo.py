"""2-GRPO's oracles: signs, unbiasedness, and how its weights compare with a large group's."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.loops.credit import GroupRelative, LeaveOneOut
from polopt.loops.language import Aggregation
from polopt.methods.reasoning.two_grpo import two_grpo
from tests.methods.reasoning.helpers import credited, judged, update, weights


def test_signs():
    """Oracle 1: the deviation of the population gives +-1, that of the sample +-0.7071."""
    given = judged([1, 0, 1, 1], [0, 0, 1, 1])
    np.testing.assert_allclose(credited(two_grpo().advantage, given), [1, -1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(credited(GroupRelative(ddof=1), given), [2**-0.5, -(2**-0.5), 0, 0], atol=1e-5)


def test_on_pairs_of_binary_rewards_it_is_leave_one_out():
    given = judged([1, 0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_allclose(credited(two_grpo().advantage, given), credited(LeaveOneOut(), given), atol=1e-5)


def test_it_is_unbiased():
    """Oracle 2: all pairs of a bandit with three answers give the gradient of E[r]; all triples do not."""
    pi, reward = np.array([0.6, 0.3, 0.1]), np.array([0.0, 1.0, 0.0])
    exact = np.asarray(jax.grad(lambda z: jax.nn.softmax(z) @ jnp.asarray(reward))(jnp.log(jnp.asarray(pi))))

    def expected(size):
        total = np.zeros(3)
        for answers in np.ndindex(*(3,) * size):
            answers = np.array(answers)
            a = np.asarray(credited(two_grpo().advantage, judged(reward[answers], [0] * size)))
            total += pi[answers].prod() * np.mean(a[:, None] * (np.eye(3)[answers] - pi), axis=0)
        return total

    np.testing.assert_allclose(expected(2), exact, atol=1e-5)
    assert np.abs(expected(3) - exact).max() > 0.05


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_weights_in_expectation(p):
    """Oracles 3 and 4: on a right answer 1 - p with pairs and sqrt((1-p)/p) with many; a pair is informative with 2 p (1-p)."""

    def of_right(size):
        others = [math.comb(size - 1, k) * p**k * (1 - p) ** (size - 1 - k) for k in range(size)]
        rewards = [[1] * (k + 1) + [0] * (size - 1 - k) for k in range(size)]
        group = np.repeat(np.arange(size), size)
        a = np.asarray(credited(GroupRelative(), judged(np.concatenate(rewards), group))).reshape(size, size)
        return float(np.dot(others, a[:, 0])), a

    pairs, a = of_right(2)
    np.testing.assert_allclose(pairs, 1 - p, atol=1e-5)
    np.testing.assert_allclose(of_right(400)[0], ((1 - p) / p) ** 0.5, rtol=0.02)
    np.testing.assert_array_equal(np.abs(a).max(axis=1) > 0, [True, False])


def test_the_surrogate_of_a_pair():
    """min(rho+, 1 + eps) / T+ less max(rho-, 1 - eps) / T-, halved: its weights."""
    ratio = jnp.array([[1.1, 1.3], [0.9, 0.7]])
    old = jnp.zeros((2, 2))
    a = credited(two_grpo().advantage, judged([1, 0], [0, 0]))
    found = weights(two_grpo().objective, update(jnp.log(ratio), a, old=old), Aggregation("sequence"))
    np.testing.assert_allclose(found, [[1.1 / 4, 0.0], [-0.9 / 4, 0.0]], atol=1e-5)
