"""The oracles of the losses on groups with rewards: EXO and CoPG."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core.parts import replace
from polopt.envs.exact import sequences
from polopt.methods import registry
from polopt.methods.preferences.copg import Contrastive
from polopt.methods.preferences.exo import ReverseKL, ReverseKLOfPairs
from polopt.methods.preferences.ipo import Squared
from polopt.objectives.preferences import mean_pair_difference, reverse_kl
from tests.methods.preferences.helpers import all_pairs, columns, log_of_pairs, pair

REWARDS = jnp.array([1.0, 2.0, 2.5])
REFERENCE = jax.nn.log_softmax(jnp.array([0.1, -0.4, 0.3]))


# -- EXO ---------------------------------------------------------------------------------------------------------------


def test_exos_number():
    """Oracle 1: K = 2, beta_pi h = 1, eps = 1e-3 gives 1.276310; with the released unnormalised labels (0, -10) 2.107211."""
    np.testing.assert_allclose(ReverseKLOfPairs(0.5, 1e-3)(pair(2.0)), 1.276310, atol=1e-5)
    np.testing.assert_allclose(ReverseKLOfPairs(0.5, 1e-3)(pair(-2.0, order=-1)), 1.276310, atol=1e-5)
    np.testing.assert_allclose(reverse_kl(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, -10.0]])), 2.107211, atol=1e-5)


def test_exos_minimum():
    """Oracle 2: log pi / pi_ref = r / (beta_r beta_pi) + const has the loss 0 and no gradient."""
    best = lambda x: ReverseKL(0.5, 0.2)(columns(x, REWARDS[None], start=REFERENCE[None]))[0]  # noqa: E731
    at = (REFERENCE + REWARDS / (0.5 * 0.2) - 7.0)[None]
    loss, slope = jax.value_and_grad(best)(at)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_exos_gradient():
    """Oracle 3: beta_pi p_f(i) (D_i - sum_j p_f(j) D_j), whose sum is 0."""
    f, beta_pi, beta_r = jnp.array([[0.3, -1.0, 0.7]]), 0.5, 0.8
    slope = jax.grad(lambda f: ReverseKL(beta_pi, beta_r)(columns(f, REWARDS[None], start=0.0))[0])(f)
    p, log_r = jax.nn.softmax(beta_pi * f), jax.nn.log_softmax(REWARDS / beta_r)[None]
    D = jnp.log(p) - log_r
    np.testing.assert_allclose(slope, beta_pi * p * (D - (p * D).sum()), atol=1e-6)
    assert slope.sum() == pytest.approx(0, abs=1e-6)
    shifted = ReverseKL(beta_pi, beta_r)(columns(f + 3, REWARDS[None] - 2, start=0.0))
    np.testing.assert_allclose(shifted, ReverseKL(beta_pi, beta_r)(columns(f, REWARDS[None], start=0.0)), rtol=1e-5)


def test_exo_with_even_labels():
    """Oracle 4: eps = 1/2, which two equal responses have: the minimum is 0 at h = 0."""
    loss, slope = jax.value_and_grad(lambda h: ReverseKLOfPairs(0.5)(pair(h, order=0))[0])(0.0)
    assert loss == pytest.approx(0, abs=1e-6) and slope == pytest.approx(0, abs=1e-6)
    s = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(ReverseKLOfPairs(0.5)(pair(1.0, order=0)), s * np.log(s) + (1 - s) * np.log(1 - s) + np.log(2), rtol=1e-5)


def test_exos_gradient_is_that_of_the_regularised_reward():
    """Oracle 5: all answers of a uniform reference as the group, beta_pi = 1: grad L = -(1 / beta_r) grad( E[r] - beta_r KL(pi || pi_ref) )."""
    beta_r, uniform = 0.4, jnp.full(3, -jnp.log(3.0))
    logits = jnp.array([0.3, -0.2, 0.5])
    loss = lambda x: ReverseKL(1.0, beta_r)(columns(jax.nn.log_softmax(x)[None], REWARDS[None], start=uniform[None]))[0]  # noqa: E731
    value = lambda x: sequences.regularised_objective(jax.nn.log_softmax(x), uniform, REWARDS, beta_r)  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(logits), -jax.grad(value)(logits) / beta_r, atol=1e-6)


def test_exo_is_the_reverse_of_the_forward_kl():
    """They are the same numbers with the two distributions exchanged, so they agree nowhere else than at the minimum."""
    a, b = jnp.array([[0.3, -1.0, 0.7]]), jnp.array([[1.0, 0.2, 0.1]])
    p, q = jax.nn.softmax(a), jax.nn.softmax(b)
    np.testing.assert_allclose(reverse_kl(a, jnp.log(q)), (p * jnp.log(p / q)).sum(), rtol=1e-5)
    assert abs(reverse_kl(a, jnp.log(q)) - reverse_kl(b, jnp.log(p)))[0] > 1e-2


# -- CoPG --------------------------------------------------------------------------------------------------------------


def test_copg_at_the_optimum():
    """Oracle 1: no loss and no gradient in any sample."""
    beta = 0.5
    best = REFERENCE + REWARDS / beta
    per_pair = lambda x: Contrastive(beta)(all_pairs(x, REWARDS, start=REFERENCE))  # noqa: E731
    np.testing.assert_allclose(per_pair(best), 0, atol=1e-10)
    np.testing.assert_allclose(jax.jacobian(per_pair)(best), 0, atol=1e-6)


def test_copg_contains_ipo():
    """Oracle 2: with R(y_w) - R(y_l) = 1/2 it is beta^2 / 2 times IPO with tau = beta."""
    beta, h = 0.3, 1.7
    halves = columns([[h, 0.0]], [[0.5, 0.0]], start=0.0)
    np.testing.assert_allclose(Contrastive(beta)(halves), beta**2 / 2 * Squared(beta)(pair(h)), rtol=1e-4)


def test_copgs_gradient_is_rloo():
    """Oracle 3: grad L = -2 beta g sample by sample, and on the policy's own pairs E[g] is the regularised policy gradient."""
    beta, logits = 0.5, jnp.array([0.4, -0.3, 0.2])
    log_p = lambda x: jax.nn.log_softmax(x)  # noqa: E731
    regularised = REWARDS - beta * (log_p(logits) - REFERENCE)
    scores = jax.jacobian(log_p)(logits)
    slopes = jax.jacobian(lambda x: Contrastive(beta)(all_pairs(x, REWARDS, start=REFERENCE)))(logits)
    i, j = np.array([(i, j) for i in range(3) for j in range(3) if i != j]).T
    g = 0.5 * (regularised[i] - regularised[j])[:, None] * (scores[i] - scores[j])
    np.testing.assert_allclose(slopes, -2 * beta * g, atol=1e-6)
    pi = jax.nn.softmax(logits)
    expected = ((pi[i] * pi[j])[:, None] * g).sum(0)
    value = lambda x: sequences.regularised_objective(log_p(x), REFERENCE, REWARDS, beta)  # noqa: E731
    np.testing.assert_allclose(expected, jax.grad(value)(logits), atol=1e-6)


def test_copg_ignores_a_constant_of_the_prompt():
    """Oracle 4."""
    listed = all_pairs(jnp.array([0.4, -0.3, 0.2]), REWARDS, start=REFERENCE)
    shifted = listed._replace(score=listed.score + 5)
    np.testing.assert_allclose(Contrastive(0.5)(shifted), Contrastive(0.5)(listed), rtol=1e-4)


@pytest.mark.parametrize("k", [2, 5])
def test_the_mean_over_pairs_is_the_unbiased_variance(k):
    """Oracle 5: 1 / (k - 1) sum_{i > j} (a_i - a_j)^2 = k times the unbiased variance."""
    a = np.random.default_rng(0).standard_normal((3, k))
    total = sum((a[:, i] - a[:, j]) ** 2 for i in range(k) for j in range(i)) / (k - 1)
    np.testing.assert_allclose(total, k * a.var(1, ddof=1))
    np.testing.assert_allclose(mean_pair_difference(a), total / k)
    with pytest.raises(ValueError, match="a pair needs 2"):
        mean_pair_difference(a[:, :1])


def test_copg_learns_the_regularised_optimum_from_a_log():
    """Random pairs with rewards; the policy's own table starts elsewhere, and is the reference."""
    task = log_of_pairs(arms=3, pairs=64, steps=400)
    arms = task.preferences.responses[:, :, 0]
    log = type(task.preferences)(task.preferences.prompts, task.preferences.responses, task.preferences.mask, REWARDS[arms])
    task = type(task)(task.model, None, 400, 1, (), None, "rewards", preferences=log, held_out=log)
    method = replace(registry.load("copg")(task), {"beta": 0.5, "groups": 16, "learning_rate": 0.1})
    state = method.init(task, jax.random.key(0))
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: (method.step(task, s)[0], None), s, length=400))(state)
    best = sequences.regularised_optimum(task.model.log_probs()[0], REWARDS, 0.5).log_probs
    np.testing.assert_allclose(method.policy(state).log_probs()[0], best, atol=1e-3)
