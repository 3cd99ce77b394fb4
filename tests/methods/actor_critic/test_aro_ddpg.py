"""ARO-DDPG's oracles: the Poisson equation, its free constant, the quadratic case, and the average that a table learns."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.claims.actor_critic.aro_ddpg import BEST, SYSTEM, Continuing, cost_of_gain
from polopt.envs.exact import average, lqr, tabular
from polopt.methods.actor_critic.aro_ddpg import differential_error
from tests.methods.actor_critic.test_ddpg import learner_and_batch
from tests.methods.reasoning.identities import agree

CHAIN = tabular.TabularMDP(
    jnp.array([[[0.2, 0.5, 0.3]], [[0.6, 0.1, 0.3]], [[0.3, 0.3, 0.4]]]), jnp.array([[1.0], [-0.5], [2.0]]), jnp.array([1.0, 0.0, 0.0]), 0.9
)
ONLY = jnp.ones((3, 1))  # the policy of a single action


def of_batch(rule, learner, batch):
    """(loss, gradient in the critics, gradient in rho, gradient in the actor)."""
    loss, slopes = jax.value_and_grad(lambda c, r: rule.value_loss(c, r, learner, batch)[0], argnums=(0, 1))(learner.critic, learner.extra.rho)
    return loss, *slopes, jax.grad(rule.actor_loss)(learner.actor, learner.critic, batch)


def test_the_error_on_three_libraries():
    rng = np.random.default_rng(0)
    reward, value, after = rng.normal(size=(3, 5))
    going = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    agree(lambda *x: differential_error(*x) ** 2, reward, np.array(0.3), value, after, going, moves=(1, 2))
    np.testing.assert_allclose(differential_error(reward, 0.3, value, after, going), reward - 0.3 + going * after - value)


def test_one_state():
    """Oracle 1: the error is 0 exactly where rho is the reward, whatever Q."""
    for q in (-3.0, 0.0, 7.0):
        assert differential_error(1.5, 1.5, q, q, 1.0) == 0
        assert differential_error(1.5, 1.0, q, q, 1.0) == 0.5


def test_a_cycle_of_two():
    """Oracle 2: rewards 0 and 1 give rho = .5 and V(s1) - V(s0) = .5."""
    cycle = tabular.TabularMDP(jnp.array([[[0.0, 1.0]], [[1.0, 0.0]]]), jnp.array([[0.0], [1.0]]), jnp.array([1.0, 0.0]), 0.9)
    v = average.bias(cycle, jnp.ones((2, 1)))
    np.testing.assert_allclose([average.gain(cycle, jnp.ones((2, 1))), v[1] - v[0]], [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(differential_error(jnp.array([0.0, 1.0]), 0.5, v, v[::-1], 1.0), 0.0, atol=1e-6)


@pytest.mark.parametrize("update", ["separate", "joint"])
def test_a_constant_in_the_values_changes_nothing(update):
    """Oracle 3: 5 added to every critic, online and slow."""
    rule, learner, batch = learner_and_batch("aro_ddpg", **{"rule.rho_update": update})
    batch = batch._replace(discount=jnp.ones(6))  # nothing ends
    biases = lambda l: [m.head.bias for e in (l.critic, l.target_critic) for m in e.members]  # noqa: E731
    higher = eqx.tree_at(biases, learner, [b + 5.0 for b in biases(learner)])
    for x, y in zip(jax.tree.leaves(of_batch(rule, learner, batch)), jax.tree.leaves(of_batch(rule, higher, batch)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_each_loss_moves_its_own():
    """L_rho is that of the equation and moves rho alone; the critics' loss takes the slow average."""
    rule, learner, batch = learner_and_batch("aro_ddpg")
    learner = eqx.tree_at(lambda l: l.extra, learner, learner.extra._replace(rho=jnp.float32(0.4), slow=jnp.float32(-0.2)))
    after = jax.vmap(learner.target_critic)(*batch.next_observation, jax.vmap(learner.target_actor)(*batch.next_observation)).min(axis=1)
    slow = jax.vmap(learner.target_critic)(*batch.observation, batch.action).min(axis=1)
    going = batch.discount
    _, of_critic, of_rho, _ = of_batch(rule, learner, batch)
    np.testing.assert_allclose(of_rho, -jnp.mean(batch.reward - 0.4 + going * after - slow), rtol=1e-4)

    def critics_alone(critic):
        q = jax.vmap(critic)(*batch.observation, batch.action)
        return jnp.mean(jnp.sum(((batch.reward + 0.2 + going * after)[:, None] - q) ** 2, axis=1)) / 2

    for x, y in zip(jax.tree.leaves(of_critic), jax.tree.leaves(jax.grad(critics_alone)(learner.critic)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_the_joint_form_moves_the_average_by_both_critics():
    rule, learner, batch = learner_and_batch("aro_ddpg", **{"rule.rho_update": "joint"})
    _, (error, _) = rule.value_loss(learner.critic, learner.extra.rho, learner, batch)
    np.testing.assert_allclose(of_batch(rule, learner, batch)[2], -error.mean(axis=0).sum(), rtol=1e-5)


def test_a_solution_stays():
    """Where all rewards are rho and the values are equal, neither form moves anything but the actor."""
    for update in ("separate", "joint"):
        rule, learner, batch = learner_and_batch("aro_ddpg", **{"rule.rho_update": update})
        zero = jax.tree.map(jnp.zeros_like, learner.critic)
        learner = dataclasses.replace(learner, critic=zero, target_critic=zero, extra=type(learner.extra)(jnp.float32(0.7), jnp.float32(0.7)))
        after, _, metrics = rule.update(learner, batch._replace(reward=jnp.full(6, 0.7), discount=jnp.ones(6)), 0.0, jax.random.key(0))
        assert float(metrics["loss/critic"]) == 0 and float(after.extra.rho) == pytest.approx(0.7)
        assert all(not np.any(x) for x in jax.tree.leaves(after.critic))


def test_slow_copies_move_with_the_actor():
    rule, learner, batch = learner_and_batch("aro_ddpg")
    once, _, _ = rule.update(learner, batch, 0.0, jax.random.key(0))
    twice, _, _ = rule.update(once, batch, 0.0, jax.random.key(1))
    assert float(once.extra.rho) != 0 and float(once.extra.slow) == 0
    assert np.array_equal(once.target_actor.head.weight, learner.actor.head.weight)
    np.testing.assert_allclose(twice.extra.slow, 0.005 * twice.extra.rho, rtol=1e-5)
    assert not np.array_equal(twice.actor.head.weight, once.actor.head.weight)


def test_the_quadratic_case():
    """Oracle 4: Q is quadratic with P of the undiscounted Riccati equation, and the average cost P Var(w), 14.86 Var(w)."""
    solution = lqr.riccati(SYSTEM)
    p, k, noise = float(solution.values[0, 0]), float(solution.gain[0, 0]), float(SYSTEM.W[0, 0])
    assert k == pytest.approx(0.2521, abs=1e-4) and p == pytest.approx(14.86, abs=0.01) and p == pytest.approx(BEST, rel=1e-5)
    assert cost_of_gain(k) == pytest.approx(p, rel=1e-5)
    short = [float(lqr.riccati(dataclasses.replace(SYSTEM, discount=gamma)).gain[0, 0]) for gamma in (0.9, 0.8)]
    np.testing.assert_allclose([cost_of_gain(g) for g in short], [16.91, 50.61], rtol=1e-3)
    x, u = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    node, weight = np.polynomial.hermite_e.hermegauss(8)
    after = 1.1 * x[..., None] + u[..., None] + np.sqrt(noise) * node
    reward = -(x**2 + 50 * u**2)
    value = reward - p * (1.1 * x + u) ** 2  # Q = r + E V(s') - rho, V = -P x^2
    errors = differential_error(reward[..., None], -p * noise, value[..., None], -p * after**2, 1.0)
    np.testing.assert_allclose(errors @ (weight / weight.sum()), 0.0, atol=1e-9)


def test_the_limit_of_no_discount():
    """Oracle 5: (1 - gamma) V_gamma tends to rho, and V_gamma - rho / (1 - gamma) to the bias."""
    rho, gamma = average.gain(CHAIN, ONLY), 0.999
    values = tabular.values(dataclasses.replace(CHAIN, discount=gamma), ONLY)
    np.testing.assert_allclose((1 - gamma) * values, rho, atol=3e-3)
    np.testing.assert_allclose(values - rho / (1 - gamma), average.bias(CHAIN, ONLY), atol=2e-2)


def test_a_table_learns_the_average():
    """Oracle 6: one critic, sampled transitions of a chain of three, steps that fall: rho within 2 % after 50,000 updates."""
    rewards, rows = CHAIN.reward[:, 0], jnp.cumsum(CHAIN.transition[:, 0], axis=-1)

    def update(carry, at):
        q, rho, s = carry
        t, u = at
        following = jnp.argmax(u < rows[s])
        error = differential_error(rewards[s], rho, q[s], q[following], 1.0)
        step = 1.0 / (1 + t / 100) ** 0.8
        return (q.at[s].add(step * error), rho + 0.3 * step * error, following), None

    uniform = jax.random.uniform(jax.random.key(0), (50_000,))
    (q, rho, _), _ = jax.lax.scan(update, (jnp.zeros(3), jnp.zeros(()), 0), (jnp.arange(50_000.0), uniform))
    np.testing.assert_allclose(rho, average.gain(CHAIN, ONLY), rtol=0.02)
    exact = average.bias(CHAIN, ONLY)
    np.testing.assert_allclose(q - q[0], exact - exact[0], atol=0.15)


def test_the_continuing_system_starts_anew_without_an_end():
    dynamics = Continuing()
    x, _, reward, _, terminated, truncated = dynamics.step(jnp.array([4.0]), jnp.array([0.0]), jax.random.key(0))
    assert abs(float(x[0])) < 1.5 and float(reward) == pytest.approx(-0.05 * 16) and not terminated and not truncated
    x, *_ = dynamics.step(jnp.array([1.0]), jnp.array([5.0]), jax.random.key(0))  # an input beyond the limit is brought to it
    assert float(x[0]) == pytest.approx(3.1, abs=0.5) or abs(float(x[0])) < 1.5
