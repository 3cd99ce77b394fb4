"""AWAC: the value is the policy's, the weight its advantage, and the limits of the temperature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import spaces
from polopt.methods.offline.bc import cloning_loss
from tests.methods.offline.helpers import rule_and_batch, update


def test_the_value_is_the_mean_over_the_policys_actions():
    """Whole-number actions: the mean of many draws comes to sum_a pi(a|s) min_i Q_i(s, a)."""
    rule, learner, batch = rule_and_batch("awac", spaces.Discrete(3))
    of = lambda a: jnp.min(jax.vmap(lambda v, p: learner.critic(v, p, jnp.eye(3)[a]))(*batch.observation), axis=1)  # noqa: E731
    every = jnp.stack([of(a) for a in range(3)], axis=1)
    pi = jax.nn.softmax(jax.vmap(learner.actor)(*batch.observation).logits)
    found = rule.value(learner.critic, learner.actor, batch.observation, jax.random.key(0), 20_000)
    np.testing.assert_allclose(found, jnp.sum(pi * every, axis=1), atol=0.03)


def test_a_hot_weight_is_cloning():
    """lambda -> infinity: every weight is 1, and the actor moves as behavioural cloning moves it."""
    rule, learner, batch = rule_and_batch("awac", **{"rule.temperature": 1e9})
    gradient = jax.grad(cloning_loss)(learner.actor, batch, jnp.ones(6))
    actor, _ = rule.actor_step.update(gradient, learner.optimisers["actor"], learner.actor, 0.0)
    after, metrics = update(rule, learner, batch)
    np.testing.assert_allclose(metrics["weight"], 1.0, rtol=1e-5)
    for x, wanted in zip(jax.tree.leaves(after.actor), jax.tree.leaves(actor)):
        np.testing.assert_allclose(x, wanted, rtol=1e-4, atol=1e-6)


def test_the_better_action_is_learnt():
    """One state, two actions tried equally often, reward 1 for the second and the end: the policy comes to prefer it, by about exp(1 / lambda)."""
    rates = {"rule.actor_step.learning_rate": 0.01, "rule.critic_step.learning_rate": 0.01}
    rule, learner, batch = rule_and_batch("awac", spaces.Discrete(2), **rates)
    action, one = jnp.array([0, 1, 0, 1, 0, 1]), (jnp.ones((6, 2)), ())
    batch = batch._replace(observation=one, action=action, reward=action.astype(jnp.float32), discount=jnp.zeros(6), next_observation=one)
    learner, _ = update(rule, learner, batch, 1500)
    odds = jnp.exp(jnp.subtract(*learner.actor(jnp.ones(2), ()).logits[::-1]))
    np.testing.assert_allclose(odds, np.e, rtol=0.1)


def test_termination_cuts_the_bootstrap():
    rule, learner, batch = rule_and_batch("awac")
    terminated = batch.discount == 0
    elsewhere = batch._replace(next_observation=(batch.next_observation[0] + jnp.where(terminated, 5.0, 0.0)[:, None], ()))
    (a, _), (b, _) = update(rule, learner, batch), update(rule, learner, elsewhere)
    for x, y in zip(jax.tree.leaves(a.critic), jax.tree.leaves(b.critic)):
        np.testing.assert_array_equal(x, y)
