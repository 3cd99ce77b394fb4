"""Oracles of SAC: soft targets, the temperature, ensembles as in REDQ; and MDPO's off-policy form, of which SAC is a case."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.data.replay import Transitions
from polopt.loops.actor_critic import draw
from polopt.loops.temperature import Fixed, Learned, temperature_loss
from polopt.methods.policy_gradient.mdpo import SoftMirrorDescent, q_logarithm, soft_mirror_loss
from tests.methods.actor_critic.test_ddpg import learner_and_batch


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_target_counts_the_entropy():
    rule, learner, batch = learner_and_batch("sac:fixed", **{"rule.temperature.alpha": 0.3})
    key = jax.random.key(2)
    y = rule.target(learner, batch, key)
    now = draw(learner.actor, batch.next_observation, jax.random.split(key)[0])
    value = jax.vmap(learner.target_critic)(*batch.next_observation, now.action).min(axis=1)
    np.testing.assert_allclose(y, batch.reward + batch.discount * (value - 0.3 * now.log_prob), rtol=1e-5)


def test_the_temperature_rises_while_the_entropy_is_too_small():
    log_prob = jnp.array([2.0, 4.0])  # an entropy of -3
    assert jax.grad(temperature_loss)(0.5, log_prob, -1.0) == pytest.approx(-2.0)
    assert jax.grad(temperature_loss)(0.5, log_prob, -3.0) == pytest.approx(0.0)
    learned = Learned(initial=1.0)
    state = learned.init()
    assert float(learned.value(learned.update(state, log_prob, 1, 0.0))) > 1.0
    assert float(learned.value(learned.update(state, -log_prob, 1, 0.0))) < 1.0
    assert float(Fixed(0.2).value(Fixed(0.2).update((), log_prob, 1, 0.0))) == pytest.approx(0.2)


def test_the_entropy_is_kept_at_its_target():
    """One state, one step, reward -4 (a - .3)^2: whatever the temperature that takes, the policy has the target entropy and the best mean."""
    fast = {"rule.actor_step.learning_rate": 3e-3, "rule.critic_step.learning_rate": 3e-3, "rule.temperature.step.learning_rate": 3e-3}
    rule, learner, _ = learner_and_batch("sac", **fast, **{"rule.critic_network.hidden": (32, 32)})
    action = jnp.linspace(-1, 1, 64)[:, None]
    inputs = (jnp.ones((64, 1)), ())
    batch = Transitions(inputs, action, -4 * (action[:, 0] - 0.3) ** 2, jnp.zeros(64), inputs, jnp.ones(64), jnp.zeros((64, 2), jnp.int32))

    def update(learner, key):
        learner, _, metrics = rule.update(learner, batch, 0.0, key)
        return learner, metrics["entropy"]

    learner, entropy = jax.lax.scan(update, learner, jax.random.split(jax.random.key(0), 3000))
    np.testing.assert_allclose(entropy[-500:].mean(), -1.0, atol=0.15)
    np.testing.assert_allclose(learner.actor.draw(jnp.ones(1), ()), [0.3], atol=0.07)


ENSEMBLE = {"rule.subset": 2, "rule.actor_value": "mean"}


def test_an_ensemble_draws_its_critics_and_leads_by_their_mean():
    """The target and the actor's loss of randomised ensembles (REDQ, arXiv:2101.05982)."""
    rule, learner, batch = learner_and_batch("sac", **ENSEMBLE, **{"rule.critics": 4})
    key = jax.random.key(5)
    k_action, k_subset = jax.random.split(key)
    now = draw(learner.actor, batch.next_observation, k_action)
    value = jax.vmap(learner.target_critic)(*batch.next_observation, now.action)
    y = rule.target(learner, batch, key)
    alpha = rule.temperature.value(learner.extra)
    pairs = {(i, j) for i in range(4) for j in range(i)}
    fits = [pair for pair in pairs if np.allclose(y, batch.reward + batch.discount * (value[:, pair].min(axis=1) - alpha * now.log_prob), rtol=1e-5)]
    assert len(fits) == 1
    loss, log_prob = rule.actor_loss(learner.actor, learner, batch, key)
    mine = draw(learner.actor, batch.observation, key)
    mean = jax.vmap(learner.critic)(*batch.observation, mine.action).mean(axis=1)
    np.testing.assert_allclose(loss, jnp.mean(alpha * mine.log_prob - mean), rtol=1e-5)


def test_the_actor_moves_once_in_delay_updates():
    rule, learner, batch = learner_and_batch("sac", **{"rule.delay": 3})
    moved, shown = [], []
    for i in range(6):
        after, _, metrics = rule.update(learner, batch, 0.0, jax.random.key(i))
        moved.append(not same(after.actor, learner.actor))
        assert same(after.extra, learner.extra) != moved[-1] and not same(after.critic, learner.critic)
        shown.append(float(metrics["entropy"]))
        learner = after
    assert moved == [False, False, True] * 2
    assert [s != 0 for s in shown] == moved


# -- MDPO, off-policy --------------------------------------------------------------------------------------------------


def mirror(**changes):
    rule, learner, batch = learner_and_batch("mdpo:off_policy", **changes)
    return rule, learner, batch


def test_with_equal_weights_mdpo_is_sac_in_value_and_gradient():
    """Oracle 3: kappa = lam gives alpha log pi - Q with alpha = lam, whatever pi_k is."""
    log_prob, value = jnp.array([-0.3, 1.2, 0.4]), jnp.array([1.0, 2.0, -1.0])
    for old in (jnp.zeros(3), jnp.array([5.0, -2.0, 0.1])):
        loss = lambda lp, v: soft_mirror_loss(lp, old, v, 0.3, 0.3).mean()  # noqa: E731
        sac = lambda lp, v: (0.3 * lp - v).mean()  # noqa: E731
        np.testing.assert_allclose(loss(log_prob, value), sac(log_prob, value), rtol=1e-6)
        for got, expected in zip(jax.grad(loss, (0, 1))(log_prob, value), jax.grad(sac, (0, 1))(log_prob, value)):
            np.testing.assert_allclose(got, expected, rtol=1e-6)
    rule, learner, batch = mirror(**{"rule.proximity": 0.3, "rule.temperature": 0.3, "rule.regularisation": 0.0})
    soft, _, _ = learner_and_batch("sac:fixed", **{"rule.temperature.alpha": 0.3})
    old = jax.tree.map(lambda x: x + 0.1, learner.actor)
    stale = learner.__class__(**{**vars(learner), "target_actor": old})
    twin = learner.__class__(**{**vars(learner), "critic": learner.critic[0], "extra": ()})
    key = jax.random.key(3)
    a = jax.grad(lambda actor: rule.actor_loss(actor, stale, batch, key)[0])(learner.actor)
    b = jax.grad(lambda actor: soft.actor_loss(actor, twin, batch, key)[0])(learner.actor)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(x, y, atol=2e-6)


def test_without_entropy_the_loss_is_the_proximity_minus_the_scaled_value():
    """t_k (times the loss) gives log pi - log pi_k - t_k Q, the paper's form; t_k -> infinity leaves -Q."""
    log_prob, old, value = jnp.array([0.4]), jnp.array([0.1]), jnp.array([2.0])
    for t in (0.1, 3.0):
        np.testing.assert_allclose(t * soft_mirror_loss(log_prob, old, value, 1 / t, 0.0), log_prob - old - t * value, rtol=1e-6)
    np.testing.assert_allclose(soft_mirror_loss(log_prob, old, value, 0.0, 0.0), -value)


def test_the_q_logarithm_tends_to_the_logarithm():
    log_x = jnp.log(jnp.array([0.2, 1.0, 3.0]))
    np.testing.assert_allclose(q_logarithm(log_x, 1.0), log_x)
    np.testing.assert_allclose(q_logarithm(log_x, 1.0 + 1e-3), log_x, atol=2e-3)
    np.testing.assert_allclose(q_logarithm(log_x, 2.0), jnp.array([-0.8, 0.0, 2.0]), rtol=1e-5)
    assert np.isfinite(jax.grad(lambda q: q_logarithm(log_x, q).sum())(1.0))


def test_the_policy_before_is_renewed_now_and_then():
    rule, learner, batch = mirror(**{"rule.refresh_every": 2})
    once, _, _ = rule.update(learner, batch, 0.0, jax.random.key(0))
    twice, _, _ = rule.update(once, batch, 0.0, jax.random.key(1))
    assert same(once.target_actor, learner.actor) and not same(once.actor, learner.actor)
    assert same(twice.target_actor, twice.actor)


def test_the_values_of_mdpo_fit_their_targets():
    """With the actor held still, V comes to min Q - lam log pi of its own draws, averaged, and Q to r where the episode ends."""
    fast = {"rule.critic_step.learning_rate": 1e-2, "rule.value_step.learning_rate": 1e-2, "rule.actor_step.learning_rate": 1e-30}
    fast["rule.critic_network.activation"] = "tanh"
    rule, learner, batch = mirror(**fast)
    assert isinstance(rule, SoftMirrorDescent)
    batch = batch._replace(discount=jnp.zeros(6))
    learner, _ = jax.lax.scan(lambda l, k: (rule.update(l, batch, 0.0, k)[0], ()), learner, jax.random.split(jax.random.key(0), 2500))
    q, v = learner.critic
    np.testing.assert_allclose(jax.vmap(q)(*batch.observation, batch.action), jnp.stack([batch.reward] * 2, 1), atol=0.05)

    def soft(key):
        now = draw(learner.actor, batch.observation, key)
        return jax.vmap(q)(*batch.observation, now.action).min(axis=1) - rule.temperature * now.log_prob

    expected = jax.lax.map(soft, jax.random.split(jax.random.key(1), 300)).mean(axis=0)
    np.testing.assert_allclose(jax.vmap(lambda *i: v((), *i)[1])(*batch.observation), expected, atol=0.15)


def test_a_subset_larger_than_the_ensemble_is_refused():
    rule, _, _ = learner_and_batch("sac")
    assert "draws 3 critics for a target, but has 2" in parts.replace(rule, {"subset": 3}).refuse(None)
