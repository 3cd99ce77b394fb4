"""RLOO's oracles: the leave-one-out mean, exact unbiasedness, and the penalty in the reward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.loops.credit import LeaveOneOut
from polopt.loops.language import Aggregation, KLReward
from polopt.loops.wording import LogLikelihood
from tests.methods.reasoning.helpers import credited, judged, update, weights


def test_advantages():
    found = credited(LeaveOneOut(), judged([3, 1, 2, 5, 1], [0, 0, 0, 1, 1]))
    np.testing.assert_allclose(found, [3 - 1.5, 1 - 2.5, 2 - 2.0, 4.0, -4.0], rtol=1e-6)


def test_it_is_unbiased():
    """All pairs of a bandit with three answers: the mean gradient is that of E[r], length and direction."""
    pi, reward = jnp.array([0.5, 0.3, 0.2]), jnp.array([1.0, 0.2, 0.0])
    exact = jax.grad(lambda z: jax.nn.softmax(z) @ reward)(jnp.log(pi))
    total = jnp.zeros(3)
    for i, j in np.ndindex(3, 3):
        a = credited(LeaveOneOut(), judged([reward[i], reward[j]], [0, 0]))
        scores = jax.nn.one_hot(jnp.array([i, j]), 3) - pi[None]
        total = total + pi[i] * pi[j] * jnp.mean(a[:, None] * scores, axis=0)
    np.testing.assert_allclose(total, exact, rtol=1e-5, atol=1e-7)


def test_a_completion_is_one_action():
    """Each token weighs A / N: token sums, no division by length."""
    learn = jnp.array([[1, 1, 1], [1, 0, 0]], bool)
    found = weights(LogLikelihood(), update(jnp.full((2, 3), -1.0), [2.0, -2.0], learn=learn), Aggregation("constant", scale=1.0))
    np.testing.assert_allclose(found, learn * jnp.array([[1.0], [-1.0]]), rtol=1e-6)


def test_the_penalty_is_paid_in_the_reward():
    """-beta (log pi - log ref) at each token that was written; nothing in the loss."""
    penalty = KLReward(0.5)
    log_prob, anchor = jnp.array([[-1.0, -2.0, -9.0]]), jnp.array([[-1.5, -1.0, -1.0]])
    paid = penalty.reward(log_prob, anchor, jnp.array([[True, True, False]]))
    np.testing.assert_allclose(paid, [[-0.25, 0.5, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(penalty.loss(update(log_prob, anchor=anchor)), 0.0)
