"""CQL's oracles: the integral, the push and its fixed point, and the learnt weight."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.loops.actor_critic import regress
from polopt.methods.offline.cql import Constant, Lagrange, conservative_gap, log_integral
from tests.methods.offline.helpers import logged, rule_and_batch, update


@pytest.mark.parametrize("dimensions", [1, 3])
def test_the_integral_of_a_constant(dimensions):
    """Q = c on [-1, 1]^d: log integral = c + d log 2, exactly, by uniform samples."""
    log_density = jnp.full((10, 4), -dimensions * math.log(2))
    np.testing.assert_allclose(log_integral(jnp.full((10, 4), 1.5), log_density), 1.5 + dimensions * math.log(2), rtol=1e-6)


def test_the_integral_of_an_exponential_by_any_samples():
    """Q = 2 a: integral of exp(2 a) over [-1, 1] is sinh(2); importance weights make a Gaussian-tanh draw as good as a uniform one."""
    n = 200_000
    uniform = jax.random.uniform(jax.random.key(0), (n,), minval=-1.0)
    np.testing.assert_allclose(log_integral(2 * uniform, jnp.full(n, -math.log(2))), math.log(math.sinh(2)), atol=0.01)
    raw = jax.random.normal(jax.random.key(1), (n,))
    density = -0.5 * raw**2 - 0.5 * math.log(2 * math.pi) - jnp.log1p(-jnp.tanh(raw) ** 2)
    np.testing.assert_allclose(log_integral(2 * jnp.tanh(raw), density), math.log(math.sinh(2)), atol=0.01)


def test_the_gradient_pushes_down_by_softmax_and_up_at_the_logged_action():
    q = jnp.array([[1.0, 0.0, -1.0]])
    slope = jax.grad(lambda q: conservative_gap(jax.nn.logsumexp(q, axis=1)[:, None], q[:, 1:2])[0])(q)
    np.testing.assert_allclose(slope[0], jax.nn.softmax(q[0]) - jnp.eye(3)[1], rtol=1e-6)


def test_the_fixed_point_of_a_table():
    """With pi = softmax(Q) the minimum has Q = y - alpha (pi / mu - 1): below the target where pi exceeds mu, above where it does not."""
    mu, y, alpha = jnp.array([0.6, 0.3, 0.1]), jnp.array([1.0, 1.2, 0.8]), 0.5

    def loss(q):
        return alpha * (jax.nn.logsumexp(q) - mu @ q) + 0.5 * mu @ (q - y) ** 2

    q = jax.lax.fori_loop(0, 5000, lambda _, q: q - 0.3 * jax.grad(loss)(q), jnp.zeros(3))
    pi = jax.nn.softmax(q)
    np.testing.assert_allclose(q, y - alpha * (pi / mu - 1), atol=1e-4)
    assert float(pi @ (q - y)) < 0  # the value of pi is a lower bound


def test_proposals_have_their_densities():
    rule, learner, batch = rule_and_batch("cql", **{"rule.samples": 5})
    actions, log_density = rule.proposals(learner.actor, batch, jax.random.key(0))
    assert actions.shape == (15, 6, 1) and log_density.shape == (15, 6) and float(jnp.abs(actions).max()) <= 1
    np.testing.assert_allclose(log_density[:5], -math.log(2), rtol=1e-6)


def test_without_weight_the_critic_is_only_regressed():
    rule, learner, batch = rule_and_batch("cql", **{"rule.weight.weight": 0.0})
    y = rule.target(learner, batch, jax.random.split(jax.random.key(0), 3)[0])
    gradient = jax.grad(lambda critic: regress(critic, batch, y)[0])(learner.critic)
    critic, _ = rule.critic_step.update(gradient, learner.optimisers["critic"], learner.critic, 0.0)
    after, _ = update(rule, learner, batch)
    for x, wanted in zip(jax.tree.leaves(after.critic), jax.tree.leaves(critic)):
        np.testing.assert_allclose(x, wanted, rtol=1e-4, atol=1e-6)


def test_weight_closes_the_gap():
    gaps = []
    for weight in (0.0, 5.0):
        rule, learner, batch = rule_and_batch("cql:discrete", spaces.Discrete(3), **{"rule.weight.weight": weight, "rule.step.learning_rate": 3e-3})
        gaps.append(float(update(rule, learner, batch, 300)[1]["gap"]))
    assert gaps[1] < 0.4 < gaps[0] - 0.5, gaps


def test_the_learnt_weight_rises_while_the_gap_is_too_large():
    lagrange = Lagrange(target=1.0)
    start = lagrange.init()
    assert lagrange.value(lagrange.update(start, jnp.array([3.0, 2.0]), 0.0)) > lagrange.value(start) == 1.0
    assert lagrange.value(lagrange.update(start, jnp.array([0.0, 0.5]), 0.0)) < 1.0
    assert Constant(2.0).value(()) == 2.0


def test_the_wrong_kind_of_action_is_refused_with_what_fits():
    box, _, _ = rule_and_batch("cql")
    discrete, _, _ = rule_and_batch("cql:discrete", spaces.Discrete(3))
    assert "Take bc, iql or cql:discrete" in box.refuse(logged(spaces.Discrete(3)))
    assert discrete.refuse(logged()).endswith("Take bc, iql or cql")
