"""TRPO's oracles: the one-state step in closed form, Fisher-vector products, the natural-gradient identity, the budget."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.optim.trust_region import backtrack, gauss_newton_product, hessian_product, natural_direction


def kl(old, new):
    return jnp.sum(jax.nn.softmax(old) * (jax.nn.log_softmax(old) - jax.nn.log_softmax(new)), axis=-1)


def test_the_step_at_one_state_with_two_actions():
    """Logits 0, A = (1, -1): g = (.5, -.5), x^T F x = 1, beta = sqrt(.02); the new logits are +-.141421 and the KL .0099668."""
    with jax.enable_x64(True):
        old, advantage = jnp.zeros(2), jnp.array([1.0, -1.0])
        gradient = jax.grad(lambda z: jnp.sum(jax.nn.softmax(z) * advantage))(old)
        np.testing.assert_allclose(gradient, [0.5, -0.5])
        product = hessian_product(lambda z: kl(old, z), old)
        np.testing.assert_allclose(jax.vmap(product)(jnp.eye(2)), [[0.25, -0.25], [-0.25, 0.25]], atol=1e-12)
        x, curvature = natural_direction(product, gradient, 10, 0.0)
        np.testing.assert_allclose(x, [1.0, -1.0], atol=1e-9)
        np.testing.assert_allclose(curvature, 1.0, atol=1e-9)
        new = old + jnp.sqrt(2 * 0.01 / curvature) * x
        np.testing.assert_allclose(new, [0.141421, -0.141421], atol=1e-6)
        assert 0.00996 < float(kl(old, new)) <= 0.01


def test_fisher_products_equal_the_expected_outer_product_of_scores():
    with jax.enable_x64(True):
        k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
        logits, states, v = jax.random.normal(k1, (5, 4)), jax.nn.softmax(jax.random.normal(k2, (5,))), jax.random.normal(k3, (5, 4))
        product = hessian_product(lambda z: jnp.sum(states * kl(logits, z)), logits)(v)
        probabilities = jax.nn.softmax(logits)
        scores = jnp.eye(4)[None] - probabilities[:, None]  # d log pi(a|s) / d logits, (states, actions, logits)
        along = jnp.einsum("sak,sk->sa", scores, v)
        expected = states[:, None] * jnp.einsum("sa,sa,sak->sk", probabilities, along, scores)
        np.testing.assert_allclose(product, expected, atol=1e-12)


def test_the_tabular_natural_direction_is_the_advantage_up_to_a_constant_per_state():
    with jax.enable_x64(True):
        k1, k2, k3 = jax.random.split(jax.random.key(1), 3)
        logits, states, q = jax.random.normal(k1, (4, 3)), jax.nn.softmax(jax.random.normal(k2, (4,))), jax.random.normal(k3, (4, 3))
        advantage = q - jnp.sum(jax.nn.softmax(logits) * q, axis=-1, keepdims=True)
        gradient = jax.grad(lambda z: jnp.sum(states[:, None] * jax.nn.softmax(z) * advantage))(logits)
        x, _ = natural_direction(hessian_product(lambda z: jnp.sum(states * kl(logits, z)), logits), gradient, 50, 0.0)
        difference = x - advantage
        np.testing.assert_allclose(difference, jnp.broadcast_to(difference.mean(axis=1, keepdims=True), (4, 3)), atol=1e-7)


def test_gauss_newton_products_equal_the_explicit_matrix():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(2), (6, 3))

        def outputs(w):
            return jnp.tanh(x @ w)

        w, v = jnp.array([0.3, -0.2, 0.5]), jnp.array([1.0, 2.0, -1.0])
        jacobian = jax.jacobian(outputs)(w)
        np.testing.assert_allclose(gauss_newton_product(outputs, w, 0.25)(v), 0.25 * jacobian.T @ (jacobian @ v), atol=1e-12)


@pytest.mark.parametrize("limit, tries, expected", [(1.0, 10, 1.0), (0.7, 10, 0.64), (0.1, 3, 0.0)])
def test_the_line_search_takes_the_first_acceptable_step_or_none(limit, tries, expected):
    found = backtrack({"x": jnp.float32(0)}, {"x": jnp.float32(1)}, lambda p: p["x"] <= limit, tries, 0.8)
    np.testing.assert_allclose(found.fraction, expected, rtol=1e-6)
    np.testing.assert_allclose(found.params["x"], expected, rtol=1e-6)
    assert bool(found.accepted) == (expected > 0)


@pytest.mark.parametrize("env", ["probe:action", "probe:action-continuous"])
def test_no_iteration_spends_more_than_the_budget(env):
    task = ControlTask(make(env), 20 * 64)
    method = registry.load("trpo")(task)
    method = parts.replace(method, {"num_envs": 8, "num_steps": 8, "network.hidden": (8,), "critic_network.hidden": (8,), "value_fit.minibatches": 4})

    def step(state, _):
        state, metrics = method.step(task, state)
        return state, metrics

    _, metrics = jax.jit(lambda key: jax.lax.scan(step, method.init(task, key), None, length=20))(jax.random.key(0))
    assert float(metrics["kl"].max()) <= 0.01 + 1e-6
    assert float(metrics["line_search/accepted"].mean()) > 0.8


def test_theta_old_has_the_score_function_gradient():
    """Oracle 2: the gradient of E[r A] at theta_old is that of E[log pi A]."""
    from polopt.objectives import surrogates

    with jax.enable_x64(True):
        k1, k2, k3 = jax.random.split(jax.random.key(3), 3)
        logits, actions, advantage = jax.random.normal(k1, (9, 3)), jax.random.randint(k2, (9,), 0, 3), jax.random.normal(k3, (9,))

        def log_prob(z):
            return jnp.take_along_axis(jax.nn.log_softmax(z), actions[:, None], axis=1)[:, 0]

        old = log_prob(logits)
        ours = jax.grad(lambda z: surrogates.importance_weighted(log_prob(z), old, advantage).mean())(logits)
        score = jax.grad(lambda z: surrogates.policy_gradient(log_prob(z), advantage).mean())(logits)
        np.testing.assert_allclose(ours, score, atol=1e-12)
