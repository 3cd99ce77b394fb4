"""AVG's oracles: the scale of the return, unit features, and an update that learns from the action that was taken."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.core.features import UnitFeatures, UnitTorso, unit_length
from polopt.core.normalise import RunningStatistics
from polopt.data.replay import Transitions
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.incremental import Transition
from polopt.loops.temperature import Fixed
from polopt.methods.actor_critic.avg import ReturnScale, avg, return_variance
from polopt.methods.actor_critic.sac import SoftActorCritic
from polopt.policies.distributions import SquashedGaussian
from tests.methods.reasoning.identities import agree

TASK = ControlTask(make("probe:credit-continuous"), 1000)


def small(**changes):
    return parts.replace(avg(TASK), {"actor_network.hidden": (8,), "critic_network.hidden": (8,), **changes})


def a_step(terminated=False, ended=False, reward=0.7):
    inputs, after = (jnp.array([0.3, -0.8]), ()), (jnp.array([-0.1, 0.5]), ())
    return Transition(inputs, jax.random.key(7), jnp.float32(reward), after, jnp.array(terminated), jnp.array(ended or terminated))


def same(a, b, rtol=1e-6, atol=1e-7):
    return all(np.allclose(x, y, rtol=rtol, atol=atol) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_scale_of_the_return():
    """Oracle 1: (r_e, gamma') = (1, .99), (3, .99) and, terminal, (2, 0) give G = 6 and sigma = 2.916756."""
    scale = ReturnScale.start().push(1.0, 0.99, False)
    assert float(scale.sigma()) == 1.0  # nothing is known yet
    scale = scale.push(3.0, 0.99, False).push(2.0, 0.0, True)
    np.testing.assert_allclose(scale.reward.variance[0], 0.666667, rtol=1e-5)
    np.testing.assert_allclose(scale.discount.variance[0], 0.2178, rtol=1e-4)
    assert float(scale.square.mean[0]) == 36 and float(scale.so_far) == 0
    np.testing.assert_allclose(scale.sigma(), 2.916756, rtol=1e-5)
    np.testing.assert_allclose(ReturnScale.start().push(1.0, 0.99, False).push(5.0, 0.99, False).sigma(), 2.0)  # a spread of 2 counts at once
    agree(return_variance, np.array([0.5, 2.0]), np.array([0.2, 0.0]), np.array([36.0, 4.0]), moves=(0, 1, 2))


def test_a_scale_without_spread_is_bounded():
    scale = ReturnScale.start().push(0.0, 0.99, True)
    np.testing.assert_allclose(scale.sigma(), 0.01, rtol=1e-6)


def test_the_correction_of_tanh():
    """Oracle 2."""
    one = SquashedGaussian(jnp.zeros(1), jnp.zeros(1), jnp.float32(-1), jnp.float32(1))
    u = np.linspace(-4, 4, 17)
    got = [float(one.log_prob(jnp.array([x], jnp.float32))) for x in u]
    np.testing.assert_allclose(got, -0.5 * u**2 - 0.5 * np.log(2 * np.pi) - np.log1p(-np.tanh(u) ** 2), rtol=1e-5, atol=1e-5)
    assert np.isfinite(float(one.log_prob(jnp.array([20.0])))) and np.isfinite(float(one.log_prob(jnp.array([-20.0]))))


def test_features_have_length_one():
    """Oracle 3: for every input, so that the head's weight bounds the output; 0 stays 0 and has a finite gradient."""
    torso = UnitTorso(UnitFeatures(hidden=(16, 8)), 3, (), jax.random.key(0))
    x = 100 * jax.random.normal(jax.random.key(1), (50, 3))
    lengths = jax.vmap(lambda v: jnp.linalg.norm(torso((), v, ())[1]))(x)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)
    free = UnitTorso(UnitFeatures(hidden=(16, 8), unit=False), 3, (), jax.random.key(0))
    np.testing.assert_allclose(torso((), x[0], ())[1], unit_length(free((), x[0], ())[1]), rtol=1e-6)
    assert np.isfinite(jax.jacobian(unit_length)(jnp.zeros(3))).all() and not unit_length(jnp.zeros(3)).any()

    method = small()
    learner = method.rule.init(TASK.env, jax.random.key(0))
    head = learner.critic.head
    values = jax.vmap(lambda v, a: learner.critic(v, (), a))(x[:, :2], x[:, 2:])
    assert float(jnp.abs(values).max()) <= float(jnp.linalg.norm(head.weight) + jnp.abs(head.bias).sum()) + 1e-6


def test_running_statistics_are_those_of_all_samples():
    """Oracle 5."""
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (500, 4))
    one_by_one, _ = jax.lax.scan(lambda s, row: (s.update(row[None]), None), RunningStatistics.start(4), x)
    np.testing.assert_allclose(one_by_one.mean, x.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(one_by_one.variance, x.var(axis=0), rtol=1e-4)


def test_the_actor_learns_from_the_action_that_was_taken():
    """Oracle 4: its loss is SAC's on a batch of one with that action and without a slow critic."""
    rule = small().rule
    whole = jax.random.key(7)
    learner, step = rule.init(TASK.env, jax.random.key(0)), a_step()._replace(key=jax.random.split(whole, 1)[0])
    taken = rule.act(learner, step.inputs, step.key)
    loss, (action, log_prob) = rule.actor_loss(learner.actor, learner.critic, step.inputs, step.key)
    np.testing.assert_array_equal(action, taken)
    np.testing.assert_allclose(loss, 0.3 * log_prob - learner.critic(*step.inputs, taken), rtol=1e-5)

    sac = SoftActorCritic(Fixed(0.3))
    batch = jax.tree.map(lambda x: x[None], step.inputs)
    batch = Transitions(batch, taken[None], step.reward[None], jnp.ones(1), batch, jnp.ones(1), jnp.zeros((1, 2), jnp.int32))
    twin = dataclasses.replace(learner, critic=lambda *i: learner.critic(*i)[None], extra=())
    ours = jax.grad(lambda actor: rule.actor_loss(actor, learner.critic, step.inputs, step.key)[0])(learner.actor)
    theirs = jax.grad(lambda actor: sac.actor_loss(actor, twin, batch, whole)[0])(learner.actor)
    assert same(ours, theirs, rtol=1e-4, atol=1e-6)


def test_one_update():
    """Both losses are of the networks as they were, the critic's with the action held fixed, and each step is its own network's."""
    rule = small().rule
    learner = rule.init(TASK.env, jax.random.key(0))
    learner = dataclasses.replace(learner, extra=learner.extra.push(1.0, 0.99, False).push(-4.0, 0.99, False))
    step, key = a_step(), jax.random.key(3)
    after, metrics = rule.update(learner, step, 0.0, key)
    (_, (action, log_prob)), of_actor = jax.value_and_grad(rule.actor_loss, has_aux=True)(learner.actor, learner.critic, step.inputs, step.key)
    sigma = learner.extra.push(step.reward - 0.3 * log_prob, 0.99, False).sigma()
    distribution = learner.actor(*step.after)
    raw = distribution.sample(key)
    v = learner.critic(*step.after, distribution.action(raw)) - 0.3 * distribution.log_prob(raw)
    delta = lambda critic: (step.reward + 0.99 * v - critic(*step.inputs, action)) / sigma  # noqa: E731
    np.testing.assert_allclose(metrics["loss/critic"], delta(learner.critic) ** 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["sigma"], sigma, rtol=1e-6)
    actor, _ = rule.actor_step.update(of_actor, learner.optimisers["actor"], learner.actor, 0.0)
    critic, _ = rule.critic_step.update(jax.grad(lambda c: delta(c) ** 2)(learner.critic), learner.optimisers["critic"], learner.critic, 0.0)
    assert same(after.actor, actor) and same(after.critic, critic)


def test_the_scale_moves_the_critics_loss_only():
    """Oracle 4, the second half."""
    rule, plain = small().rule, small(**{"rule.scale_errors": False}).rule
    learner = rule.init(TASK.env, jax.random.key(0))
    learner = dataclasses.replace(learner, extra=learner.extra.push(1.0, 0.99, False).push(-8.0, 0.99, True))
    a, scaled = rule.update(learner, a_step(), 0.0, jax.random.key(1))
    b, unscaled = plain.update(learner, a_step(), 0.0, jax.random.key(1))
    assert float(scaled["sigma"]) > 1 and same(a.actor, b.actor)
    np.testing.assert_allclose(unscaled["loss/critic"], scaled["loss/critic"] * scaled["sigma"] ** 2, rtol=1e-5)


def test_a_cut_keeps_the_bootstrap_and_ends_the_return():
    rule = small(**{"rule.scale_errors": False}).rule
    learner = rule.init(TASK.env, jax.random.key(0))
    steps = a_step(), a_step(ended=True), a_step(terminated=True)
    (going, a), (cut, b), (over, c) = (rule.update(learner, step, 0.0, jax.random.key(1)) for step in steps)
    assert same(cut.actor, going.actor) and same(cut.critic, going.critic) and float(a["loss/critic"]) == float(b["loss/critic"])
    taken = rule.act(learner, steps[0].inputs, steps[0].key)
    np.testing.assert_allclose(c["loss/critic"], (0.7 - learner.critic(*steps[0].inputs, taken)) ** 2, rtol=1e-5)
    assert float(c["loss/critic"]) != float(b["loss/critic"])
    for after, count in ((going, 0), (cut, 1), (over, 1)):
        assert float(after.extra.square.count) == count and (float(after.extra.so_far) == 0) == bool(count)
    assert float(cut.extra.discount.mean[0]) == pytest.approx(0.99) and float(over.extra.discount.mean[0]) == 0


def test_observations_are_counted_before_they_are_shown():
    """Of episodes of three steps the four observations each are counted once, and those of an ended one before the next begins."""
    method = small(num_steps=3)
    state = method.init(TASK, jax.random.key(0))
    assert float(state.normaliser.statistics.count) == 1 and not np.any(state.acting.inputs[0])
    state, metrics = jax.jit(lambda s: method.step(TASK, s))(state)
    assert float(state.normaliser.statistics.count) == 1 + 3 + 1 and float(metrics["episode/count"]) == 1
    statistics = state.normaliser.statistics
    np.testing.assert_allclose(state.acting.inputs[0], -statistics.mean / np.sqrt(statistics.variance + 1e-8), rtol=1e-5, atol=1e-6)  # it starts at 0


def test_it_learns_a_probe():
    """The action that matches half the sign that is shown."""
    task = ControlTask(make("probe:action-continuous"), 6_000)
    quick = {"rule.alpha": 0.02, "actor_step.learning_rate": 1e-3, "critic_step.learning_rate": 5e-3, "num_steps": 6_000}
    method = parts.replace(avg(task), {"actor_network.hidden": (32,), "critic_network.hidden": (32,), **quick})
    state, _ = jax.jit(lambda key: method.step(task, method.init(task, key)))(jax.random.key(0))
    act = lambda sign: float(method.policy(state).act((), jnp.array([sign]))[1][0])  # noqa: E731
    assert act(1.0) == pytest.approx(0.5, abs=0.2) and act(-1.0) == pytest.approx(-0.5, abs=0.2)
