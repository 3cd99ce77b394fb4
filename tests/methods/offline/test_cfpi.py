"""CFPI: the model of the log, whose actions the critics follow, what these are fitted to, and what is deployed on top of IQL."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts, spaces
from polopt.critics.quantile import midpoints, quantile_regression
from polopt.data.dataset import DataTask
from polopt.loops.following import OneStep
from polopt.loops.offline import Logged, knowing
from polopt.methods.offline import cfpi
from polopt.methods.offline.bc import cloning_loss
from polopt.methods.offline.iql import iql
from polopt.methods.policy_gradient.pg_rainbow import quantiles_of
from polopt.policies.closed_form import improved
from tests.methods.offline.helpers import BOX, logged, rule_and_batch, update

ROWS = jnp.array([0, 3, 5, 11, 10, 2])  # of episodes of 5 and of 7 steps, the second cut


@functools.cache
def known(key: str = "cfpi", **changes):
    """(rule that has the log, learner, batch of the rows ROWS)."""
    rule, learner, batch = rule_and_batch(key, **{"rule.components": 2, "rule.cosines": 8, **changes})
    return knowing(rule, logged(BOX), None), learner, batch._replace(index=jnp.stack([ROWS, jnp.zeros(6, int)], axis=1))


@jax.jit
def quantiles(member, inputs, action, tau):
    """(n, N) of one critic for a batch."""
    return jax.vmap(lambda i, a, t: quantiles_of(member.network, i, a, t))(inputs, action, tau)


@jax.jit
def gradient_of_cloning(actor, batch):
    return jax.grad(cloning_loss)(actor, batch, batch.weight)


def test_the_model_is_a_density_over_all_actions():
    """It integrates to 1, and its means are apart from the start, even where nothing is seen."""
    _, learner, _ = known()
    mixture = eqx.filter_jit(learner.actor)(jnp.zeros(2), ())
    grid = jnp.linspace(-30, 30, 60_001)[:, None]
    np.testing.assert_allclose(jax.jit(lambda: jnp.exp(jax.vmap(mixture.log_prob)(grid)).sum() * 1e-3)(), 1.0, rtol=1e-3)
    assert mixture.experts.mean.shape == (2, 1) and jnp.all(jnp.abs(mixture.experts.mean) < 1)
    assert jnp.abs(mixture.experts.mean[0] - mixture.experts.mean[1]) > 0.05


def test_the_model_finds_both_kinds_of_actions():
    """Where one half did -.5 and the other .5 it has a Gaussian for each."""
    rule, learner, batch = known()
    rule = parts.replace(rule, {"actor_step.learning_rate": 3e-2})
    batch = batch._replace(action=jnp.array([[0.5], [-0.5]] * 3), observation=(jnp.zeros((6, 2)), ()))

    @jax.jit
    def learnt():
        def step(_, carry):
            return rule.actor_step.update(gradient_of_cloning(carry[0], batch), carry[1], carry[0], 0.0)

        return jax.lax.fori_loop(0, 300, step, (learner.actor, learner.optimisers["actor"]))[0](jnp.zeros(2), ())

    mixture = learnt()
    np.testing.assert_allclose(jnp.sort(mixture.experts.mean[:, 0]), [-0.5, 0.5], atol=0.02)
    np.testing.assert_allclose(mixture.weights, [0.5, 0.5], atol=0.05)


def test_the_next_action_is_the_logs():
    """That of the following row, and a draw of the model where the episode was cut."""
    rule, learner, batch = known()
    find = jax.jit(lambda key: rule.following(rule, learner, batch, key)[0])
    a, b = (find(jax.random.key(i)) for i in (0, 1))
    keep = np.array([0, 1, 2, 4, 5])
    np.testing.assert_allclose(a[keep], logged(BOX).action[ROWS[keep] + 1] / 2, rtol=1e-6)
    np.testing.assert_array_equal(a[keep], b[keep])
    assert not np.allclose(a[3], b[3])


def test_the_improved_policy_is_followed_once_warm_and_held():
    """The log's actions for three updates, then those of the policy of update 3, with noise, and from update 5 on those of update 5."""
    changes = {"rule.following.warmup": 3, "rule.following.every": 2, "noise.std": 1e-6}
    rule, learner, batch = known("cfpi:iterative", **changes)
    other = eqx.tree_at(lambda x: x.actor, learner, jax.tree.map(lambda x: 1.3 * x, learner.actor))
    find = jax.jit(lambda learner: rule.following(rule, learner, batch, jax.random.key(0)))

    @jax.jit
    def best(learner):
        return jax.vmap(lambda v: improved(rule.improvement, learner.actor, learner.critic, v, ()))(batch.next_observation[0])

    memory, found = learner.extra, {}
    for count in range(6):
        now = eqx.tree_at(lambda x: (x.count, x.extra), learner if count < 4 else other, (jnp.int32(count), memory))
        found[count], memory = find(now)
    logged_next = jax.jit(lambda key: rule.following.logged(rule, learner, batch, key)[0])(jax.random.split(jax.random.key(0))[0])
    assert not np.allclose(best(learner), best(other), atol=1e-2)
    for count, wanted in enumerate([logged_next, logged_next, logged_next, best(learner), best(learner), best(other)]):
        np.testing.assert_allclose(found[count], wanted, atol=1e-4)


@pytest.mark.parametrize("targets", ["own", "least"])
def test_what_the_critics_are_fitted_to(targets):
    """A sum over critics of the quantile regression to r + gamma Z-(s', a') at the same fractions, of their own slow copies or the smallest."""
    rule, learner, batch = known(**{"rule.targets": targets})
    slow = eqx.tree_at(lambda c: c.members[0].network.head.bias, learner.target_critic, jnp.array([0.1]))
    key, later = jax.random.key(3), batch.action[::-1]
    loss = jax.jit(lambda critic: rule.critic_loss(critic, slow, batch, later, key))(learner.critic)
    draws = jax.vmap(lambda k: jax.random.uniform(k, (2, 8)))(jax.random.split(key, 6))
    tau, after = draws[:, 0], [quantiles(member, batch.next_observation, later, draws[:, 1]) for member in slow.members]
    after = after if targets == "own" else [np.minimum(*after)] * 2
    total = 0.0
    for member, z in zip(learner.critic.members, after, strict=True):
        here, y = quantiles(member, batch.observation, batch.action, tau), batch.reward[:, None] + batch.discount[:, None] * z
        each = jax.vmap(lambda *row: quantile_regression(*row, 1.0))(here, tau, y)
        total += each.mean()
    np.testing.assert_allclose(loss, total, rtol=1e-5)


def test_critics_come_to_the_quantiles_of_what_follows():
    """Rewards of 0 or 1 by chance at one pair, where every episode ends: the value is their mean."""
    rule, learner, batch = known()
    rule = parts.replace(rule, {"critic_step.learning_rate": 1e-2, "kappa": 0.01})
    same = batch._replace(
        observation=(jnp.ones((6, 2)), ()), action=jnp.zeros((6, 1)), reward=jnp.array([0.0, 1, 0, 1, 0, 1]), discount=jnp.zeros(6)
    )
    learner, _ = update(rule, learner, same, 400)
    for member in learner.critic.members:
        value = eqx.filter_jit(member)(jnp.ones(2), (), jnp.zeros(1))
        np.testing.assert_allclose(value, 0.5, atol=0.1)
        found = quantiles(member, (jnp.ones((1, 2)), ()), jnp.zeros((1, 1)), jnp.append(midpoints(32), jnp.array([0.2, 0.8]))[None])[0]
        np.testing.assert_allclose(value, found[:-2].mean(), rtol=1e-5)
        assert member.count == 32 and found[-2] < 0.3 and found[-1] > 0.7


def test_one_update_clones_and_moves_the_slow_critics():
    rule, learner, batch = known()
    after, _ = update(rule, learner, batch)
    actor, _ = rule.actor_step.update(gradient_of_cloning(learner.actor, batch), learner.optimisers["actor"], learner.actor, 0.0)
    slow = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, learner.target_critic, after.critic)
    for found, wanted in ((after.actor, actor), (after.target_critic, slow)):
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_rewards_are_the_logged_ones_one_at_a_time():
    for fields in ({}, {"scale": 2.0, "shift": -1.0}, {"span": 10.0}):
        np.testing.assert_array_equal(OneStep(**fields)(logged(BOX)), Logged(**fields)(logged(BOX)))
    assert OneStep().n_step == 1 and "rewards.n_step" not in parts.fields(cfpi.cfpi(None))


def test_on_top_of_iql_the_learning_is_iqls():
    """The plug-in changes what is deployed: from IQL's mean along its critics, and without a budget the mean itself."""
    task = DataTask(logged(BOX), 10)
    sizes = {"rule.base.actor_network.hidden": (8,), "rule.base.critic_network.hidden": (8,), "updates": 3, "batch_size": 8}
    method = parts.replace(cfpi.iql(None), sizes)
    base = parts.replace(iql(None), {name.replace("base.", ""): value for name, value in sizes.items()})
    state, alone = (jax.jit(lambda m: m.step(task, m.init(task, jax.random.key(0)))[0])(m) for m in (method, base))
    for x, y in zip(jax.tree.leaves(state.learner), jax.tree.leaves(alone.learner), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    observation = task.dataset.observation[0]
    mean = base.policy(alone).act((), observation)[1]
    np.testing.assert_allclose(parts.replace(method, {"delta": 0.0}).policy(state).act((), observation)[1], mean, rtol=1e-4, atol=1e-5)
    assert not np.allclose(method.policy(state).act((), observation)[1], mean, atol=1e-3)


@pytest.mark.parametrize("composed", [cfpi.cfpi, cfpi.iterative, cfpi.iql])
def test_whole_number_actions_are_refused_with_what_fits(composed):
    assert "Take bc, iql or cql" in composed(None).rule.refuse(logged(spaces.Discrete(3)))
