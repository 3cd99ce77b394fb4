"""A*-PO's oracles: optimal values, the regression's gradient and fixed point, and the values that the sampler keeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.loops.language import Aggregation
from polopt.methods.reasoning.a_star_po import Regression, Valued, advantage_regression, optimal_value
from tests.methods.reasoning.helpers import chain, everywhere, update, weights

ONE_OF_EIGHT = np.array([[1.0] + [0.0] * 7, [0.0] * 8, [1.0] * 8])


@pytest.mark.parametrize("temperature, wanted, within", [(0.5, 0.293513, 1e-6), (1e6, 0.125, 1e-6), (1e-3, 1 - 1e-3 * np.log(8), 1e-6)])
def test_optimal_values(temperature, wanted, within):
    """Oracle 1: one right of eight; all wrong 0; all right 1."""
    np.testing.assert_allclose(everywhere(lambda r: optimal_value(r, temperature), ONE_OF_EIGHT), [wanted, 0.0, 1.0], atol=within)


def test_trials_that_failed_are_left_out():
    mask = np.array([[1, 1] + [0] * 6, [0] * 8, [1] * 8], bool)
    found = everywhere(lambda r, m: optimal_value(r, 0.5, m), ONE_OF_EIGHT, mask)
    np.testing.assert_allclose(found, [0.5 * np.log((np.e**2 + 1) / 2), 0.0, 1.0], rtol=1e-6)


def test_the_optimum_has_no_loss():
    """Oracle 2: pi* proportional to pi_ref exp(r / beta), with the exact V*."""
    rng = np.random.default_rng(0)
    beta, reward, ref = 0.7, rng.random(6), rng.dirichlet(np.ones(6))
    value = beta * np.log(ref @ np.exp(reward / beta))
    best = ref * np.exp(reward / beta) / np.exp(value / beta)
    np.testing.assert_allclose(best.sum(), 1.0)
    np.testing.assert_allclose(advantage_regression(np.log(best / ref), reward - value, beta), 0.0, atol=1e-25)


@pytest.mark.parametrize("beta", [1e-3, 0.5])
def test_the_weight_on_grad_log_pi(beta):
    """2 beta w with w = (r - V*) - beta l, on every token; oracle 3 is its value at the reference."""
    ref = jnp.full((3, 2), -1.0)
    step = jnp.array([[0.5, 0.2], [-0.3, 9.0], [1.0, 1.0]])
    learn = jnp.array([[1, 1], [1, 0], [1, 1]], bool)
    a = jnp.array([0.7, -0.3, 0.0])
    for moved in (0.0, 1.0):
        given = update(ref + moved * step, a, anchor=ref, old=ref + 5.0, learn=learn)
        l = moved * jnp.array([0.7, -0.3, 2.0])
        found = weights(Regression(beta), given, Aggregation("sequence"))
        np.testing.assert_allclose(found, learn * (2 * beta * (a - beta * l) / 3)[:, None], rtol=1e-4, atol=1e-7)


def test_the_limit_is_reinforce_with_the_mean_reward():
    """Oracle 4: beta_1 large, beta_2 small and the step over 2 beta_2."""
    value = optimal_value(ONE_OF_EIGHT[:1], 1e8)
    given = update(jnp.full((1, 1), -0.5), 1 - value, anchor=jnp.full((1, 1), -3.0))
    np.testing.assert_allclose(weights(Regression(1e-7), given) / 2e-7, [[1 - 0.125]], rtol=1e-4)


def test_the_sampler_knows_each_prompts_value():
    """Prompts that the first policy always or never solves have V* = 1 and 0; the values come with the batch and are never renewed."""
    task = chain(length=1, success=(1e-6,) * 4 + (1 - 1e-6,) * 4)
    sampler = Valued(prompts=4, trials=8)

    @jax.jit
    def two(key):
        state = sampler.init(task, key)
        batch, after = sampler.gather(state, task, task.model, key)
        return state.value, batch, sampler.tell(after, task, task.model, batch).value

    value, batch, after = two(jax.random.key(0))
    np.testing.assert_allclose(value, [0] * 4 + [1] * 4, atol=1e-6)
    np.testing.assert_array_equal(batch.baseline, value[batch.index])
    np.testing.assert_array_equal(after, value)
    assert len(set(np.asarray(batch.index).tolist())) == 4


def test_many_prompts_are_tried_in_turns():
    """Ten prompts, four at a time: each is tried as often as was asked, with draws of its own."""
    from polopt.loops.prompting import surveyed
    from polopt.policies.language.sampling import Sampling

    task = chain(prompts=10, length=1, success=0.5)
    reward, valid = jax.jit(lambda k: surveyed(task, task.model, k, Sampling(), 64, at_once=4))(jax.random.key(1))
    assert reward.shape == valid.shape == (10, 64) and valid.all()
    np.testing.assert_allclose(reward.mean(axis=1), 0.5, atol=0.25)
    assert len({tuple(row) for row in np.asarray(reward).tolist()}) == 10
