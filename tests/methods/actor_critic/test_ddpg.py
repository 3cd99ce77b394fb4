"""DDPG's and TD3's oracles: the deterministic gradient, the targets, the slow copies."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.critics.action_value import polyak
from polopt.data.replay import Transitions
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.methods.actor_critic.ddpg import action_gradient_loss
from polopt.methods.actor_critic.td3 import Smoothed
from polopt.policies.distributions import SquashedGaussian


def test_the_actor_climbs_a_known_critic():
    """Oracle 1: Q = -(a - 2 s)^2, mu = theta s, s in {-1, 1}: the gradient is -2 (theta - 2), 4 at 0, and theta comes to 2."""
    states = jnp.array([-1.0, 1.0])
    loss = lambda theta: action_gradient_loss(lambda a: -((a - 2 * states) ** 2), theta * states)  # noqa: E731
    np.testing.assert_allclose(-jax.grad(loss)(0.0), 4.0, rtol=1e-6)
    theta = jax.lax.fori_loop(0, 100, lambda _, t: t - 0.1 * jax.grad(loss)(t), 0.0)
    np.testing.assert_allclose(theta, 2.0, atol=1e-5)


def test_targets_follow_slowly():
    """Oracle 3: from 0 towards 1, tau = .001, 1000 steps."""
    target = jax.lax.fori_loop(0, 1000, lambda _, t: polyak(t, jnp.ones(()), 0.001), jnp.zeros(()))
    np.testing.assert_allclose(target, 0.632305, atol=1e-4)


@pytest.mark.parametrize("std", [0.05, 0.4, 1.0])
def test_the_reparameterised_gradient_of_a_quadratic_is_the_deterministic_one(std):
    """Oracle 4, over the draws of a Gaussian around mu: E grad = the gradient at the mean."""
    states, target = jnp.array([-1.0, 0.5]), 0.7
    noise = jax.random.normal(jax.random.key(0), (4000, 1))
    noise = jnp.concatenate([noise, -noise])  # so that its mean is exactly 0
    stochastic = jax.grad(lambda t: jnp.mean((t * states[None] + std * noise - target) ** 2))(0.3)
    np.testing.assert_allclose(stochastic, jax.grad(lambda t: jnp.mean((t * states - target) ** 2))(0.3), rtol=1e-4)


def learner_and_batch(key="ddpg", **changes):
    task = ControlTask(make("probe:action-continuous"), 1000)
    method = parts.replace(registry.load(key)(task), {"rule.actor_network.hidden": (8,), "rule.critic_network.hidden": (8,), **changes})
    learner = method.rule.init(task.env, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4)
    size = task.env.observation_space.shape[0]
    batch = Transitions(
        (jax.random.normal(keys[0], (6, size)), ()),
        jax.random.uniform(keys[1], (6, 1), minval=-1),
        jax.random.normal(keys[2], (6,)),
        jnp.array([0.9, 0.0, 0.9, 0.0, 0.9, 0.9]),
        (jax.random.normal(keys[3], (6, size)), ()),
        jnp.ones(6),
        jnp.zeros((6, 2), jnp.int32),
    )
    return method.rule, learner, batch


def test_termination_cuts_the_bootstrap_and_truncation_does_not():
    """Oracle 5; the replay gives the discount 0 for a terminated transition only."""
    rule, learner, batch = learner_and_batch()
    y = rule.target(learner, batch, jax.random.key(2))
    cut = np.asarray(batch.discount) == 0
    np.testing.assert_array_equal(y[cut], batch.reward[cut])
    next_action = jax.vmap(learner.target_actor)(*batch.next_observation)
    bootstrap = jax.vmap(learner.target_critic)(*batch.next_observation, next_action)[:, 0]
    np.testing.assert_allclose(y[~cut], (batch.reward + 0.9 * bootstrap)[~cut], rtol=1e-5)


def test_the_actors_loss_leaves_the_critic_alone():
    """One update moves the critic exactly as its regression alone does."""
    rule, learner, batch = learner_and_batch()
    after, _, _ = rule.update(learner, batch, 0.0, jax.random.key(2))
    still = parts.replace(rule, {"actor_step.learning_rate": 1e-30})
    alone, _, _ = still.update(learner, batch, 0.0, jax.random.key(2))
    for a, b in zip(jax.tree.leaves(after.critic), jax.tree.leaves(alone.critic)):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(after.actor), jax.tree.leaves(learner.actor)))


def test_td3_with_one_critic_no_smoothing_and_no_delay_is_ddpg():
    rule, learner, batch = learner_and_batch()
    plain = {"rule.critics": 1, "rule.delay": 1, "rule.target_action.std": 1e-30, "rule.critic_step.learning_rate": 1e-3}
    other, _, _ = learner_and_batch("td3", **plain)
    a, _, _ = rule.update(learner, batch, 0.0, jax.random.key(2))
    b, _, _ = other.update(learner, batch, 0.0, jax.random.key(2))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def test_the_smaller_critic_makes_the_targets():
    rule, learner, batch = learner_and_batch("td3", **{"rule.target_action.std": 1e-30})
    learner = eqx.tree_at(lambda l: l.target_critic.members[1].head.bias, learner, jnp.array([-0.04]))  # so that each is the smaller one somewhere
    action = jax.vmap(learner.target_actor)(*batch.next_observation)
    both = jax.vmap(learner.target_critic)(*batch.next_observation, action)
    assert (both[:, 0] < both[:, 1]).any() and (both[:, 0] > both[:, 1]).any()
    y = rule.target(learner, batch, jax.random.key(2))
    np.testing.assert_allclose(y, batch.reward + batch.discount * both.min(axis=1), rtol=1e-5)


def test_the_actor_and_the_targets_move_at_every_second_update():
    rule, learner, batch = learner_and_batch("td3")
    once, _, _ = rule.update(learner, batch, 0.0, jax.random.key(2))
    twice, _, _ = rule.update(once, batch, 0.0, jax.random.key(3))

    def same(a, b):
        return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))

    assert same(once.actor, learner.actor) and same(once.target_critic, learner.target_critic) and not same(once.critic, learner.critic)
    assert not same(twice.actor, once.actor) and not same(twice.target_critic, once.target_critic) and not same(twice.target_actor, once.target_actor)


def test_smoothing_is_clipped_noise():
    action = Smoothed(std=0.2, clip=0.5)(jnp.zeros((20_000, 1)), jax.random.key(0))
    np.testing.assert_allclose(action.std(), 0.197, atol=0.005)  # 0.2, with 1.2 % of the draws brought to 0.5
    assert float(jnp.abs(action).max()) == pytest.approx(0.5)
    assert float(jnp.abs(Smoothed(std=5.0, clip=0.3)(jnp.full((100, 1), 0.9), jax.random.key(0))).max()) <= 1.0


def test_the_squashed_density_is_that_of_tanh():
    """log pi(a) = log N(u) - sum log(1 - tanh(u)^2), finite far out."""
    one = SquashedGaussian(jnp.array([0.3]), jnp.array([-0.5]), jnp.float32(-1), jnp.float32(1))
    u = np.linspace(-4, 4, 9)
    normal = -0.5 * ((u - 0.3) / np.exp(-0.5)) ** 2 + 0.5 - 0.5 * np.log(2 * np.pi)
    got = [float(one.log_prob(jnp.array([x], jnp.float32))) for x in u]
    np.testing.assert_allclose(got, normal - np.log1p(-np.tanh(u) ** 2), rtol=2e-5)
    assert np.isfinite(float(one.log_prob(jnp.array([20.0]))))
