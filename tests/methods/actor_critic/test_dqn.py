"""DQN's oracles: the backup, the double form, and the target that stands still."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import parts
from polopt.data.replay import Transitions
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.methods.actor_critic.dqn import backup


def test_the_backup_by_hand():
    reward, discount = jnp.array([1.0, 1.0]), jnp.array([0.5, 0.0])
    target, online = jnp.array([[2.0, 6.0], [3.0, 4.0]]), jnp.array([[9.0, 1.0], [0.0, 1.0]])
    np.testing.assert_allclose(backup(reward, discount, target, online, double=False), [4.0, 1.0])
    np.testing.assert_allclose(backup(reward, discount, target, online, double=True), [2.0, 1.0])


def test_double_q_learning_overestimates_less():
    """All true values are 0; noise in the estimates makes the maximum too large, and an independent choice does not."""
    noise = jax.random.normal(jax.random.key(0), (2, 20_000, 5))
    zeros = jnp.zeros(20_000)
    single = backup(zeros, zeros + 1, noise[0], noise[0], False).mean()
    double = backup(zeros, zeros + 1, noise[0], noise[1], True).mean()
    np.testing.assert_allclose(single, 1.16296, atol=0.03)  # the expected largest of five standard normals
    np.testing.assert_allclose(double, 0.0, atol=0.03)


def learner_and_batch(**changes):
    task = ControlTask(make("probe:action"), 1000)
    rule = parts.replace(registry.load("dqn")(task), {"rule.network.hidden": (8,), **changes}).rule
    size = task.env.observation_space.shape[0]
    observation = jax.random.normal(jax.random.key(1), (6, size))
    batch = Transitions(
        (observation, ()),
        jnp.array([0, 1, 0, 1, 0, 1]),
        jnp.arange(6.0),
        jnp.full(6, 0.9),
        (observation + 1, ()),
        jnp.ones(6),
        jnp.zeros((6, 2), jnp.int32),
    )
    return rule, rule.init(task.env, jax.random.key(0)), batch


def test_the_target_is_copied_now_and_then():
    rule, learner, batch = learner_and_batch(**{"rule.target_every": 3})
    copies = []
    for i in range(6):
        learner, _, _ = rule.update(learner, batch, 0.0, jax.random.key(i))
        pairs = zip(jax.tree.leaves(learner.target), jax.tree.leaves(learner.critic))
        copies.append(all(np.array_equal(a, b) for a, b in pairs))
    assert copies == [False, False, True] * 2


def test_a_weight_of_zero_takes_a_transition_out():
    rule, learner, batch = learner_and_batch()
    only = batch._replace(weight=jnp.array([1.0, 0, 0, 0, 0, 0]))
    wild = only._replace(reward=batch.reward.at[1:].set(100.0))
    a, error, _ = rule.update(learner, only, 0.0, jax.random.key(0))
    b, other, _ = rule.update(learner, wild, 0.0, jax.random.key(0))
    for x, y in zip(jax.tree.leaves(a.critic), jax.tree.leaves(b.critic)):
        np.testing.assert_allclose(x, y, atol=1e-7)
    assert not np.allclose(error, other)
