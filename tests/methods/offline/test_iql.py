"""IQL's oracles: the expectile, what flows where, the order of the updates, and stochastic dynamics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.claims.offline.iql import expectile_of, implicit_values
from polopt.core import spaces
from polopt.envs.exact import tabular
from polopt.envs.exact.empirical import behaviour, empirical, uniform_log
from polopt.envs.exact.problems import random_mdp
from polopt.methods.offline.bc import cloning_loss
from polopt.methods.offline.iql import Expectile, advantage_weight, value_of
from tests.methods.offline.helpers import rule_and_batch, update


@pytest.mark.parametrize("tau, p, m", [(0.9, 0.1, 0.5), (0.7, 0.5, 0.7), (0.5, 0.3, 0.3)])
def test_the_expectile_of_a_coin(tau, p, m):
    """Oracle 1: tau p / (tau p + (1 - tau)(1 - p)), as the fixed point and as the minimiser of the loss."""
    np.testing.assert_allclose(expectile_of(jnp.array([0.0, 1.0]), jnp.array([1 - p, p]), tau), m, rtol=1e-5)
    loss = lambda v: (1 - p) * Expectile(tau)(v, jnp.float32(0)) + p * Expectile(tau)(v, jnp.float32(1))  # noqa: E731
    v = jax.lax.fori_loop(0, 2000, lambda _, v: v - 0.1 * jax.grad(loss)(v), jnp.float32(0.2))
    np.testing.assert_allclose(v, m, atol=1e-4)


def test_the_gradient_of_the_expectile_loss():
    """Oracle 3: -2 tau where the target is above by 1, 2 (1 - tau) where it is below by 1."""
    slope = jax.grad(lambda v, q: Expectile(0.9)(v, q))
    np.testing.assert_allclose([slope(0.0, 1.0), slope(0.0, -1.0)], [-1.8, 0.2], rtol=1e-6)


def test_the_mean_is_the_behaviours_value():
    """Oracle 2: with tau = .5 V is that of who made the data, and rises with tau towards the best logged action's."""
    mdp = random_mdp(jax.random.key(0), 5, 3, discount=0.9, concentration=0.5)
    counts = uniform_log(mdp, jax.random.key(1), 2000)
    estimated, mu = empirical(mdp, counts), behaviour(counts)
    np.testing.assert_allclose(implicit_values(estimated, mu, 0.5)[0], tabular.values(estimated, mu), rtol=1e-4)
    rising = [np.asarray(implicit_values(estimated, mu, tau)[0]) for tau in (0.5, 0.7, 0.9, 0.99, 0.9999)]
    assert all((b > a).all() for a, b in zip(rising, rising[1:]))
    np.testing.assert_allclose(rising[-1], tabular.optimal(estimated).values, rtol=0.02)


def test_one_action_a_state_is_cloning():
    """Oracle 4: Q = V for every tau, the advantage is 0 and the weight 1."""
    mdp = random_mdp(jax.random.key(0), 5, 3, discount=0.9)
    mu = jnp.broadcast_to(jax.nn.one_hot(1, 3), (5, 3))
    v, q = implicit_values(mdp, mu, 0.9)
    np.testing.assert_allclose(v, q[:, 1], rtol=1e-5)
    np.testing.assert_allclose(advantage_weight(q[:, 1] - v, 3.0, 100.0), 1.0, rtol=1e-4)


def test_luck_is_not_taken_for_skill():
    """Oracle 5: one action whose next state pays 0 or 1: Q = g / 2 for any tau, by V's loss and then Q's mean over s'."""
    transition = jnp.array([[[0.0, 0.5, 0.5, 0.0]], [[0, 0, 0, 1.0]], [[0, 0, 0, 1.0]], [[0, 0, 0, 1.0]]])
    reward = jnp.array([[0.0], [0.0], [1.0], [0.0]])
    mdp = tabular.TabularMDP(transition, reward, jnp.eye(4)[0], 0.9, terminal=jnp.arange(4) == 3)
    v, q = implicit_values(mdp, jnp.ones((4, 1)), 0.99)
    np.testing.assert_allclose([q[0, 0], v[0]], 0.45, rtol=1e-5)


def test_luck_is_not_taken_for_skill_by_the_networks():
    """Oracle 5 for the rule: two equal states with next values 0 and 1, discount .9: Q comes to .45 although tau = .99."""
    rule, learner, batch = rule_and_batch("iql", **{"rule.maximum.tau": 0.99, "rule.critic_step.learning_rate": 0.01})
    rows = jnp.arange(6)
    observation = jnp.where((rows < 2)[:, None], 0.0, jnp.where((rows % 2 == 0)[:, None], 1.0, -1.0)) * jnp.ones((6, 2))
    following = jnp.where((rows == 0)[:, None], 1.0, -1.0) * jnp.ones((6, 2))
    discount, reward = jnp.where(rows < 2, 0.9, 0.0), jnp.where((rows >= 2) & (rows % 2 == 0), 1.0, 0.0)
    same = batch._replace(observation=(observation, ()), next_observation=(following, ()), action=jnp.zeros((6, 1)), discount=discount, reward=reward)
    learner, _ = update(rule, learner, same, 3000)
    q = jax.vmap(learner.critic)(*same.observation, same.action)
    np.testing.assert_allclose(q[:2], 0.45, atol=0.03)
    np.testing.assert_allclose(value_of(learner.extra, same.observation)[:2], 0.45, atol=0.03)


def test_weights():
    """Oracle 6: beta = 0 clones; beta = 3 and A = 2 give exp(6) = 403, cut to 100; no overflow."""
    advantage = jnp.array([2.0, 0.0, -1.0, 1e6])
    np.testing.assert_allclose(advantage_weight(advantage, 0.0, 100.0), 1.0)
    np.testing.assert_allclose(advantage_weight(advantage, 3.0, 100.0), [100.0, 1.0, np.exp(-3), 100.0], rtol=1e-5)


@pytest.mark.parametrize("space", ["box", "whole numbers"])
def test_one_update_in_its_order(space):
    """V moves first, by the slow critics; the policy and Q see the new V; each loss moves its own network only."""
    rule, learner, batch = rule_and_batch("iql", **({} if space == "box" else {"action_space": spaces.Discrete(3)}))
    one_hot = batch.action if space == "box" else jax.nn.one_hot(batch.action, 3)
    q = jnp.min(jax.vmap(learner.target_critic)(*batch.observation, one_hot), axis=1)
    gradient = jax.grad(rule.value_loss)(learner.extra, batch, q)
    value, _ = rule.critic_step.update(gradient, learner.optimisers["value"], learner.extra, 0.0)
    weight = jnp.minimum(jnp.exp(3.0 * (q - value_of(value, batch.observation))), 100.0)
    gradient = jax.grad(cloning_loss)(learner.actor, batch, weight)
    actor, _ = rule.actor_step.update(gradient, learner.optimisers["actor"], learner.actor, 0.0)
    y = batch.reward + batch.discount * value_of(value, batch.next_observation)
    gradient = jax.grad(lambda c: jnp.mean(0.5 * jnp.sum((jax.vmap(c)(*batch.observation, one_hot) - y[:, None]) ** 2, axis=1)))(learner.critic)
    critic, _ = rule.critic_step.update(gradient, learner.optimisers["critic"], learner.critic, 0.0)
    after, _ = update(rule, learner, batch)
    slow = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, learner.target_critic, critic)
    for found, wanted in ((after.extra, value), (after.actor, actor), (after.critic, critic), (after.target_critic, slow)):
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_termination_cuts_the_bootstrap():
    rule, learner, batch = rule_and_batch("iql")
    terminated = batch.discount == 0
    assert terminated.any()
    elsewhere = batch._replace(next_observation=(batch.next_observation[0] + jnp.where(terminated, 5.0, 0.0)[:, None], ()))
    (a, _), (b, _) = update(rule, learner, batch), update(rule, learner, elsewhere)
    for x, y in zip(jax.tree.leaves(a.critic), jax.tree.leaves(b.critic)):
        np.testing.assert_array_equal(x, y)


def test_the_actors_step_falls_along_a_cosine():
    from polopt.optim.adam import Adam
    from polopt.optim.cosine import Cosine

    params, gradient = jnp.zeros(3), jnp.ones(3)
    step = Cosine(Adam(0.1, anneal=False, max_grad_norm=None))
    moved = [float(-step.update(gradient, step.init(params), params, p)[0][0]) for p in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(moved, [0.1, 0.05, 0.0], rtol=1e-4, atol=1e-6)
