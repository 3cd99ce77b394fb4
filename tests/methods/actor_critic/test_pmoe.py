"""PMOE's oracles: one expert is SAC, what the weights are regressed to, who gets a gradient, and the mixture's density."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts, spaces
from polopt.core.networks import Feedforward
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.methods.actor_critic.pmoe import best_expert, frequency_loss, primary_loss
from polopt.policies.distributions import SquashedGaussian
from polopt.policies.experts import Mixture, UnitExperts
from tests.methods.actor_critic.test_ddpg import learner_and_batch
from tests.methods.reasoning.identities import agree

RNG = np.random.default_rng(0)
BOX = spaces.Box(-1.0, 1.0, (1,))


def a_mixture(logits=(0.3, -0.5, 1.0)) -> Mixture:
    mean, log_std = jnp.array([[-0.8], [0.2], [1.1]]), jnp.array([[-1.0], [-0.3], [-0.7]])
    return Mixture(jnp.array(logits), jax.vmap(lambda m, s: SquashedGaussian(m, s, jnp.float32(-1), jnp.float32(1)))(mean, log_std))


def test_the_losses_on_three_libraries():
    log_prob, value = RNG.normal(size=(2, 5, 3))
    best = best_expert(value)
    np.testing.assert_array_equal(best, np.eye(3)[value.argmax(-1)])
    np.testing.assert_array_equal(best_expert(np.array([1.0, 1.0])), [1.0, 0.0])  # the first of equal ones
    agree(lambda x: best_expert(x) * x, value)
    agree(lambda lp, q, share: primary_loss(lp, q, share, 0.3), log_prob, value, best, moves=(0, 1))
    agree(frequency_loss, RNG.dirichlet(np.ones(3), 5), best)


def test_weights_against_the_best():
    """Oracle 2: w = (.5, .5) and the first the best: .25, slopes (-.5, .5), in the logits (-.25, .25)."""
    best = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(frequency_loss(jnp.array([0.5, 0.5]), best), 0.25)
    np.testing.assert_allclose(jax.grad(frequency_loss)(jnp.array([0.5, 0.5]), best), [-0.5, 0.5])
    np.testing.assert_allclose(jax.grad(lambda x: frequency_loss(jax.nn.softmax(x), best))(jnp.zeros(2)), [-0.25, 0.25], rtol=1e-6)


def test_the_weights_become_the_chances():
    """Oracle 3: with experts as they are, descent on the expected L_freq ends where w is the chance to be the best."""
    p = jnp.array([0.2, 0.5, 0.3])
    expected = lambda x: p @ frequency_loss(jnp.broadcast_to(jax.nn.softmax(x), (3, 3)), jnp.eye(3))  # noqa: E731
    logits = jax.lax.fori_loop(0, 3000, lambda _, x: x - jax.grad(expected)(x), jnp.zeros(3))
    np.testing.assert_allclose(jax.nn.softmax(logits), p, atol=1e-4)


def test_the_density_integrates_to_one():
    """Oracle 4, over raw draws u with da = (1 - tanh(u)^2) du; and its mean is that of its draws."""
    mixture, u = a_mixture(), jnp.linspace(-9, 9, 2_001)
    density = jnp.exp(jax.jit(jax.vmap(lambda x: mixture.log_prob(x[None])))(u)) * (1 - jnp.tanh(u) ** 2)
    np.testing.assert_allclose(jnp.trapezoid(density, u), 1.0, atol=1e-4)
    drawn = jax.jit(jax.vmap(mixture.sample))(jax.random.split(jax.random.key(0), 4_000))
    np.testing.assert_allclose(jnp.tanh(drawn).mean(), jnp.trapezoid(density * jnp.tanh(u), u), atol=0.03)


def test_a_mixtures_other_faces():
    mixture, other = a_mixture(), a_mixture((0.0, 0.0, 0.0))
    np.testing.assert_allclose(mixture.mode(), [1.1])
    np.testing.assert_allclose(mixture.kl(mixture), 0.0, atol=1e-7)
    w, v = mixture.weights, other.weights
    np.testing.assert_allclose(mixture.kl(other), jnp.sum(w * jnp.log(w / v)), rtol=1e-5)
    drawn = jax.jit(jax.vmap(mixture.sample))(jax.random.split(jax.random.key(0), 4_000))
    both = jnp.mean(jax.jit(jax.vmap(lambda r: mixture.log_prob(r) - other.log_prob(r)))(drawn))
    assert 0 <= float(both) <= float(mixture.kl(other)) + 0.01
    raw = mixture.sample_each(jax.random.key(1))
    each = [SquashedGaussian(*(x[k] for x in jax.tree.leaves(mixture.experts))).log_prob(raw[k]) for k in range(3)]
    np.testing.assert_allclose(mixture.log_prob_each(raw), jnp.stack(each), rtol=1e-5)
    np.testing.assert_allclose(mixture.action_each(raw), jnp.tanh(raw), rtol=1e-5, atol=1e-6)


def test_experts_start_apart():
    actor = UnitExperts(Feedforward((8,)), BOX, BOX, 100, 0.5, -1.5, jax.random.key(0))
    mixture = actor(jnp.zeros(1), ())
    np.testing.assert_allclose(mixture.experts.mean.std(), 0.5, rtol=0.25)
    np.testing.assert_allclose(mixture.experts.log_std, -1.5)
    np.testing.assert_allclose(actor.draw(jnp.zeros(1), ()), jnp.tanh(mixture.experts.mean[jnp.argmax(mixture.logits)]), rtol=1e-6)


@pytest.mark.parametrize("entropy", ["expert", "mixture"])
def test_one_expert_is_sac(entropy):
    """Oracle 1: the whole update, from the same parameters and key."""
    alone = {"rule.experts": 1, "rule.spread": 0.0, "rule.log_std": 0.0, "rule.tau": 0.005, "rule.entropy": entropy}
    rule, learner, batch = learner_and_batch("pmoe", **alone)
    sac, twin, _ = learner_and_batch("sac")
    learner = eqx.tree_at(lambda l: (l.actor.torso, l.actor.head), learner, (twin.actor.torso, twin.actor.head))
    learner = dataclasses.replace(learner, critic=twin.critic, target_critic=twin.target_critic)
    a, error, metrics = jax.jit(rule.update)(learner, batch, 0.0, jax.random.key(4))
    b, expected, theirs = jax.jit(sac.update)(twin, batch, 0.0, jax.random.key(4))
    np.testing.assert_allclose(error, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["loss/actor"], theirs["loss/actor"], rtol=1e-4)
    moved = lambda l: jax.tree.leaves((l.actor.torso, l.actor.head, l.critic, l.target_critic, l.extra))  # noqa: E731
    for x, y in zip(moved(a), moved(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5)


def test_only_the_best_follows_the_critic():
    """Oracle 5: the head's rows of the other experts have a gradient of exactly 0 from L_prim; with `all` each has one."""
    for improve in ("best", "all"):
        rule, learner, batch = learner_and_batch("pmoe", **{"rule.experts": 3, "rule.improve": improve})
        one = jax.tree.map(lambda x: x[:1], batch)
        key = jax.random.key(1)
        action, _, _ = rule.draw(learner.actor, one.observation, key)
        value = jax.vmap(learner.critic, in_axes=(None, None, 0))(one.observation[0][0], (), action[0]).min(axis=-1)
        gradient = jax.jit(jax.grad(lambda actor: rule.actor_loss(actor, learner, one, key)[0]))(learner.actor)
        moved = np.asarray(gradient.head.bias).reshape(2, 3) != 0  # means, then deviations; L_freq does not reach the head
        wanted = np.arange(3) == int(jnp.argmax(value)) if improve == "best" else np.ones(3, bool)
        np.testing.assert_array_equal(moved, np.broadcast_to(wanted, (2, 3)))
        assert np.all(np.asarray(gradient.gate.bias) != 0)


def test_the_target_takes_an_expert_that_is_drawn():
    rule, learner, batch = learner_and_batch("pmoe", **{"rule.experts": 3})
    key = jax.random.key(2)
    action, log_prob, logits = rule.draw(learner.actor, batch.next_observation, jax.random.split(key)[0])
    which = jax.random.categorical(jax.random.split(key)[1], logits)
    each = jax.vmap(jax.vmap(learner.target_critic, in_axes=(None, None, 0)))(*batch.next_observation, action).min(axis=-1) - log_prob
    y = batch.reward + batch.discount * each[jnp.arange(6), which]
    np.testing.assert_allclose(jax.jit(rule.target)(learner, batch, key), y, rtol=1e-4, atol=1e-5)


def test_the_exact_entropy_counts_all_experts():
    rule, learner, batch = learner_and_batch("pmoe", **{"rule.experts": 3, "rule.entropy": "mixture"})
    action, log_prob, _ = rule.draw(learner.actor, batch.observation, jax.random.key(0))
    vector = batch.observation[0][0]
    raw = jnp.arctanh(action[0])
    np.testing.assert_allclose(log_prob[0], jax.vmap(learner.actor(vector, ()).log_prob)(raw), rtol=1e-3, atol=1e-4)


# -- on-policy ---------------------------------------------------------------------------------------------------------


def on_policy(env="probe:action-continuous", **changes):
    """(task, loop)."""
    task = ControlTask(make(env), 640)
    sizes = {"network.hidden": (8,), "critic_network.hidden": (8,), "memory.judge.hidden": (8,), "num_envs": 4, "num_steps": 8}
    return task, parts.replace(registry.load("pmoe:ppo")(task), {**sizes, "improver.minibatches": 2, "improver.epochs": 1, **changes})


def collected(task, loop):
    """(state, a batch of 32 samples) at the start."""

    @jax.jit
    def made(key):
        state = loop.init(task, key)
        _, rollout, _ = loop.collect(task.env, state, jax.random.key(1))
        return state, loop.judge(state, state.acting, rollout)[0]

    return made(jax.random.key(0))


def test_the_ratio_is_that_of_the_mixture():
    """Of the whole density, which is 1 before the first step; one expert has that of its only distribution."""
    task, loop = on_policy()
    state, batch = collected(task, loop)
    update = loop.update(state.learner.actor, batch)
    np.testing.assert_allclose(update.log_prob, update.old_log_prob, rtol=1e-5, atol=1e-6)
    mixture = loop.forward(state.learner.actor, 0, batch)
    each = jax.vmap(lambda m, r: jax.vmap(lambda e: e.log_prob(r))(m.experts))(mixture, batch.raw_action)
    weights = jax.vmap(lambda m: m.weights)(mixture)
    np.testing.assert_allclose(update.log_prob, jnp.log(jnp.sum(weights * jnp.exp(each), axis=1)), rtol=1e-4, atol=1e-5)
    task, loop = on_policy(**{"memory.count": 1})
    state, batch = collected(task, loop)
    alone = loop.forward(state.learner.actor, 0, batch)
    np.testing.assert_allclose(batch.log_prob, jax.vmap(lambda m, r: m.log_prob_each(r[None])[0])(alone, batch.raw_action), rtol=1e-5, atol=1e-6)


def test_what_is_added_to_the_loss_of_ppo():
    """L_freq moves weights and torso, the value of actions its own network only; PPO's loss does not move that."""
    task, loop = on_policy()
    state, batch = collected(task, loop)
    improver, learner, key = loop.improver, state.learner, jax.random.key(2)
    total, metrics = improver.loss(learner, loop, state.surrogate, batch, key)
    plain, _ = loop.loss(learner, state.surrogate, batch, 0.5)
    np.testing.assert_allclose(total, plain + metrics["loss/frequency"] + metrics["loss/action_value"], rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: improver.loss(x, loop, state.surrogate, batch, key)[0]))(learner)
    without = jax.jit(jax.grad(lambda x: loop.loss(x, state.surrogate, batch, 0.5)[0]))(learner)
    assert not any(np.any(x) for x in jax.tree.leaves((without.actor.judge, without.actor.judge_head)))
    assert all(np.any(x) for x in jax.tree.leaves(gradient.actor.judge_head))
    for x, y in zip(jax.tree.leaves((gradient.actor.heads, gradient.critic)), jax.tree.leaves((without.actor.heads, without.critic)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert not np.allclose(gradient.actor.gate.bias, without.actor.gate.bias)


def test_the_value_of_actions_fits_the_returns():
    """With all else held, descent on the whole loss brings it to the target of each action taken."""
    task, loop = on_policy(**{"memory.judge.hidden": (32,)})
    state, batch = collected(task, loop)
    whose = lambda learner: (learner.actor.judge, learner.actor.judge_head)  # noqa: E731
    step = parts.replace(loop.improver.step, {"learning_rate": 3e-2, "anneal": False, "max_grad_norm": None})

    @jax.jit
    def fitted(judge):
        loss = lambda judge: loop.improver.loss(eqx.tree_at(whose, state.learner, judge), loop, state.surrogate, batch, jax.random.key(2))[0]  # noqa: E731
        descend = lambda _, carry: step.update(jax.grad(loss)(carry[0]), carry[1], carry[0], 0.0)  # noqa: E731
        return jax.lax.fori_loop(0, 1_000, descend, (judge, step.init(judge)))[0]

    actor = eqx.tree_at(whose, state.learner, fitted(whose(state.learner))).actor
    features = jax.vmap(lambda vector: actor.torso((), vector, ())[1])(batch.inputs[0])
    value = jax.vmap(actor.value)(features, jnp.clip(batch.raw_action, -1, 1))
    assert jnp.mean((value - batch.target) ** 2) < 0.05 * jnp.var(batch.target)
