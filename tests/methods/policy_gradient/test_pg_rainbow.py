"""PG-Rainbow's oracles: the quantile loss, what the critic reads, and what the quantiles learn."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.core.networks import Feedforward
from polopt.core.spaces import Box, Discrete
from polopt.critics.distilled import Distilled
from polopt.critics.quantile import QuantileNetwork, midpoints, quantile_regression
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.methods.policy_gradient.pg_rainbow import quantiles_of, recorded
from polopt.optim.adam import Adam

HIDDEN = {f"{name}.hidden": (8,) for name in ("ppo.network", "ppo.critic_network", "quantile_network")}
SMALL = {"num_envs": 4, "num_steps": 8, "updates": 2, "epochs": 1, **HIDDEN}


def built(env="probe:action", **changes):
    task = ControlTask(make(env), 1000)
    method = parts.replace(registry.load("pg_rainbow")(task), {**SMALL, "ppo.improver.minibatches": 1, **changes})
    assert method.refuse(task) is None
    return task, method, jax.jit(lambda k: method.init(task, k))(jax.random.key(0))


@pytest.mark.parametrize("delta, loss", [(-1.0, 0.375), (1.0, 0.125), (2.0, 0.375)])
def test_quantile_huber(delta, loss):
    """Oracle 1: tau = .25, kappa = 1."""
    np.testing.assert_allclose(quantile_regression(jnp.zeros(1), jnp.array([0.25]), jnp.array([delta]), 1.0), loss, rtol=1e-6)


def test_the_loss_averages_over_targets_and_sums_over_quantiles():
    quantiles, tau, targets = jnp.array([0.0, 1.0]), jnp.array([0.25, 0.75]), jnp.array([-1.0, 1.0, 2.0])
    each = [[float(quantile_regression(q[None], t[None], x[None], 1.0)) for x in targets] for q, t in zip(quantiles, tau)]
    np.testing.assert_allclose(quantile_regression(quantiles, tau, targets, 1.0), np.mean(each, axis=1).sum(), rtol=1e-6)


@pytest.mark.parametrize("env", ["probe:action", "probe:action-continuous"])
def test_the_critic_starts_as_the_mean_quantile(env):
    """Oracle 2: with V_theta = 1 and f_psi the mean, V_psi is the expected return that the quantiles say, averaged over actions."""
    task, method, state = built(env)
    critic = state.ppo.learner.critic
    plain = eqx.tree_at(lambda c: (c.outer.weight, c.value.head.weight), critic, replace_fn=jnp.zeros_like)
    inputs = state.ppo.normaliser(task.env.reset(jax.random.key(1), 1)[1][0])
    network, actor = critic.reader
    distribution = actor((), *inputs)[1]
    if env == "probe:action":
        per_action = jnp.stack([quantiles_of(network, inputs, jnp.int32(a), midpoints(16)).mean() for a in range(2)])
        expected = per_action @ jax.nn.softmax(distribution.logits)
    else:
        expected = quantiles_of(network, inputs, distribution.mode(), midpoints(16)).mean()
    np.testing.assert_allclose(plain((), *inputs)[1], expected, rtol=1e-5)


def test_with_quantiles_of_one_and_the_mean_it_is_ppo():
    """Oracle 3: q_phi = 1 and f_psi the mean give the value network, and the same policy gradient."""
    task, method, state = built()
    critic = state.ppo.learner.critic
    ones = eqx.tree_at(lambda n: n.head, critic.reader[0], jax.tree.map(jnp.zeros_like, critic.reader[0].head))
    ones = eqx.tree_at(lambda n: n.head.bias, ones, jnp.ones(2))
    plain = eqx.tree_at(lambda c: (c.outer.weight, c.reader), critic, (jnp.zeros_like(critic.outer.weight), (ones, critic.reader[1])))
    for seed in range(3):
        inputs = (jax.random.normal(jax.random.key(seed), (1,)), ())
        np.testing.assert_allclose(plain((), *inputs)[1], critic.value((), *inputs)[1], rtol=1e-5)
    learner = dataclasses.replace(state.ppo.learner, critic=plain)
    as_ppo = dataclasses.replace(state.ppo.learner, critic=critic.value)
    batches = []
    for chosen in (learner, as_ppo):
        inner = dataclasses.replace(state.ppo, learner=chosen)
        _, rollout, _ = method.ppo.collect(task.env, inner, jax.random.key(5))
        batches.append(method.ppo.judge(inner, inner.acting, rollout)[0])
    np.testing.assert_allclose(batches[0].advantage, batches[1].advantage, atol=1e-5)
    np.testing.assert_allclose(batches[0].target, batches[1].target, atol=1e-5)


def test_the_quantiles_of_a_coin():
    """Oracle 4: returns 0 and 1, each with probability 1/2: Z_.25 -> 0, Z_.75 -> 1, the mean 1/2."""
    network = QuantileNetwork(Feedforward((16,), "relu"), Box(-1.0, 1.0, (1,)), Discrete(1), 32, jax.random.key(0))
    step = Adam(learning_rate=3e-3, anneal=True, max_grad_norm=None)
    inputs = (jnp.ones(1), ())

    def update(carry, x):
        network, state = carry
        t, key = x
        k_tau, k_target = jax.random.split(key)
        tau = jax.random.uniform(k_tau, (32,))
        targets = jax.random.bernoulli(k_target, shape=(32,)).astype(jnp.float32)
        gradient = jax.grad(lambda n: quantile_regression(quantiles_of(n, inputs, jnp.int32(0), tau), tau, targets, 0.05))(network)
        return step.update(gradient, state, network, t), ()

    steps = 4000
    keys = jax.random.split(jax.random.key(1), steps)
    (network, _), _ = jax.lax.scan(update, (network, step.init(network)), (jnp.arange(steps) / steps, keys))
    found = quantiles_of(network, inputs, jnp.int32(0), jnp.array([0.25, 0.75]))
    np.testing.assert_allclose(found, [0.0, 1.0], atol=0.08)
    np.testing.assert_allclose(quantiles_of(network, inputs, jnp.int32(0), midpoints(16)).mean(), 0.5, atol=0.06)


def test_nothing_of_ppo_reaches_the_quantiles():
    """Oracle 5: the gradient of PPO's loss in phi is 0, and its optimiser leaves what the critic reads as it is."""
    task, method, state = built(**{"refresh_every": 1_000_000})
    _, rollout, _ = method.ppo.collect(task.env, state.ppo, jax.random.key(5))
    batch = method.ppo.judge(state.ppo, state.ppo.acting, rollout)[0]
    gradient = jax.grad(lambda learner: method.ppo.loss(learner, (), batch, 0.5)[0])(state.ppo.learner)
    assert isinstance(gradient.critic, Distilled)
    assert all(not np.any(x) for x in jax.tree.leaves(gradient.critic.reader))
    assert any(np.any(x) for x in jax.tree.leaves((gradient.critic.inner, gradient.critic.outer))) and np.any(gradient.critic.value.head.weight)
    after, _ = jax.jit(method.step)(task, state)
    before, kept = (jax.tree.leaves(s.ppo.learner.critic.reader) for s in (state, after))
    assert all(np.array_equal(a, b) for a, b in zip(before, kept))


def test_the_critic_reads_what_was_learnt_at_a_refresh():
    task, method, state = built(**{"refresh_every": 2})
    step = jax.jit(method.step)
    once, _ = step(task, state)
    twice, _ = step(task, once)

    def reads(s, network):
        return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(s.ppo.learner.critic.reader[0]), jax.tree.leaves(network)))

    assert reads(once, state.quantiles.network) and not reads(once, once.quantiles.network) and reads(twice, twice.quantiles.network)


def test_the_replay_gets_every_step_of_ppo():
    task, method, state = built("probe:truncation")
    after, _ = jax.jit(method.step)(task, state)
    steps = recorded(after.ppo)
    assert int(after.ring.filled) == 8 and steps.ended.any() and not steps.terminated.any()
    for stored, seen in zip(jax.tree.leaves(after.ring.steps), jax.tree.leaves(steps)):
        np.testing.assert_array_equal(stored[:8], seen)


@pytest.mark.parametrize(
    "env, changes, reason",
    [
        ("probe:action-continuous", {"on_policy": False}, "no greedy action"),
        ("probe:action", {"ppo.critic": False}, "distils into a critic"),
    ],
)
def test_what_cannot_work_is_refused(env, changes, reason):
    task = ControlTask(make(env), 1000)
    assert reason in parts.replace(registry.load("pg_rainbow")(task), changes).refuse(task)
