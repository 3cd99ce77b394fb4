"""Cloning: the likeliest actor is the data's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.methods.offline.bc import cloning_loss
from polopt.policies.actor import Normaliser
from polopt.policies.cloned import ClonedActor, ClonedPolicy
from tests.methods.offline.helpers import OBSERVATIONS, rule_and_batch, update


def test_the_loss_is_the_weighted_log_likelihood():
    _, learner, batch = rule_and_batch("bc")
    weight = jnp.arange(6.0)
    mean = np.asarray(jax.vmap(learner.actor)(*batch.observation).mean)
    log_prob = -0.5 * (np.asarray(batch.action) - mean) ** 2 - 0.5 * np.log(2 * np.pi)  # deviation 1
    np.testing.assert_allclose(cloning_loss(learner.actor, batch, weight), -np.mean(np.arange(6) * log_prob[:, 0]), rtol=1e-5)


def test_equal_states_get_the_frequencies_of_their_actions():
    """Whole-number actions in one state: the maximum of the likelihood is their share."""
    rule, learner, batch = rule_and_batch("bc", spaces.Discrete(3), **{"rule.step.learning_rate": 0.05})
    one = jnp.ones_like(batch.observation[0])
    batch = batch._replace(observation=(one, ()), action=jnp.array([0, 0, 0, 1, 1, 2]))
    learner, _ = update(rule, learner, batch, 300)
    np.testing.assert_allclose(jax.nn.softmax(learner.actor(one[0], ()).logits), [1 / 2, 1 / 3, 1 / 6], atol=2e-3)


def test_equal_states_get_mean_and_deviation_of_their_actions():
    rule, learner, batch = rule_and_batch("bc", **{"rule.step.learning_rate": 0.02})
    one, action = jnp.ones_like(batch.observation[0]), jnp.array([-0.4, -0.2, 0.0, 0.2, 0.4, 0.6])[:, None]
    learner, _ = update(rule, learner, batch._replace(observation=(one, ()), action=action), 600)
    found = learner.actor(one[0], ())
    np.testing.assert_allclose(found.mean, 0.1, atol=5e-3)
    np.testing.assert_allclose(jnp.exp(found.log_std), np.std(np.asarray(action)), rtol=0.02)


@pytest.mark.parametrize("space", [spaces.MultiDiscrete((2, 3)), spaces.MultiBinary(4)])
def test_other_whole_numbers_have_a_likelihood_too(space):
    actor = ClonedActor(Feedforward((8,)), OBSERVATIONS, space, jax.random.key(0))
    policy = ClonedPolicy(actor, Normaliser(OBSERVATIONS, None))
    action = policy.act((), jnp.zeros(2), jax.random.key(1))[1]
    assert action.shape == space.shape and np.isfinite(float(actor(jnp.zeros(2), ()).log_prob(action)))


def test_deployed_actions_are_in_the_environments_bounds():
    rule, learner, _ = rule_and_batch("bc")
    policy = rule.policy(learner, Normaliser(OBSERVATIONS, None))
    actions = jax.vmap(lambda key: policy.act((), jnp.zeros(2), key)[1])(jax.random.split(jax.random.key(0), 500))
    assert float(actions.min()) == -2.0 and float(actions.max()) == 2.0  # the Gaussian's draws, brought to the bounds
