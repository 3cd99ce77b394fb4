"""PROPS's oracles: the behaviour's loss and gradient, PPO without adaptation, and the buffer."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from polopt.core import parts
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.behaviour import Buffered, Itself, seen
from polopt.methods import registry
from polopt.methods.policy_gradient.props import behaviour_loss, divided

SMALL = {"num_envs": 4, "num_steps": 6, "improver.epochs": 2, "improver.minibatches": 2, "network.hidden": (8,), "critic_network.hidden": (8,)}


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_larger_of_ratio_and_clipped_ratio_in_three_libraries():
    """Oracle 1, with gradients."""
    rng = np.random.default_rng(0)
    target = -rng.gamma(2.0, 0.5, size=50)
    log_prob = target + 0.5 * rng.normal(size=50)
    ratio = np.exp(log_prob - target)
    expected = np.maximum(ratio, np.clip(ratio, 0.7, 1.3))
    slope = np.where(ratio > 0.7, ratio, 0)
    np.testing.assert_allclose(behaviour_loss(log_prob, target, 0.3), expected, rtol=1e-12)
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(lambda x: behaviour_loss(x, jnp.asarray(target), 0.3).sum())(jnp.asarray(log_prob))
        np.testing.assert_allclose(value, expected.sum(), rtol=1e-12)
        np.testing.assert_allclose(gradient, slope, rtol=1e-12)
    x = torch.tensor(log_prob, requires_grad=True)
    loss = behaviour_loss(x, torch.tensor(target), 0.3)
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(loss.sum(), x)[0], slope, rtol=1e-12)


def slope(logits, actions, clip=0.3):
    target = jax.nn.log_softmax(logits)[jnp.array(actions)]
    return jax.grad(lambda z: behaviour_loss(jax.nn.log_softmax(z)[jnp.array(actions)], target, clip).mean())(logits)


def test_what_is_there_too_often_becomes_less_likely():
    """Oracle 2: D = {0, 0, 0, 1} of a fair coin."""
    gradient = slope(jnp.zeros(2), [0, 0, 0, 1])
    np.testing.assert_allclose(gradient, [0.25, -0.25], atol=1e-7)
    np.testing.assert_allclose(-0.1 * gradient, [-0.025, 0.025], atol=1e-7)


def test_at_the_learner_the_gradient_is_frequency_minus_probability():
    """Oracle 3: 0 where they match."""
    logits = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    np.testing.assert_allclose(slope(logits, [0, 0, 1, 2]), 0, atol=1e-7)
    np.testing.assert_allclose(slope(logits, [0, 1, 1, 2]), [-0.25, 0.25, 0.0], atol=1e-7)


def test_without_a_width_what_is_less_likely_already_no_longer_pulls():
    """Oracle 4: max(rho, 1)."""
    gradient = jax.grad(lambda x: behaviour_loss(x, jnp.zeros(3), 0.0).sum())(jnp.array([-0.2, 0.2, -1.0]))
    np.testing.assert_allclose(gradient, [0, np.exp(0.2), 0], rtol=1e-6)


@pytest.mark.parametrize("filled, count", [(10, 3), (2, 4), (0, 3), (16, 4), (1, 1)])
def test_minibatches_divide_what_is_filled(filled, count):
    there = jnp.arange(16) % 16 < filled
    there = jax.random.permutation(jax.random.key(0), there)
    indices, counted = divided(there, count, jax.random.key(1))
    chosen = np.asarray(indices)[np.asarray(counted) > 0]
    assert sorted(chosen) == np.flatnonzero(there).tolist()
    sizes = np.asarray(counted).sum(axis=1)
    assert sizes.max() - sizes.min() <= 1 and len(sizes) == count


# -- the loop ----------------------------------------------------------------------------------------------------------


@functools.cache
def started(name: str = "props", env: str = "probe:credit", **changes):
    task = ControlTask(make(env), 1000)
    method = parts.replace(registry.load(name)(task), {**SMALL, **changes})
    return task, method, jax.jit(lambda key: method.init(task, key))(jax.random.key(0))


RECURRENT = {"network.core": "gru", "critic_network.core": "gru", "network.core_size": 4, "critic_network.core_size": 4}


@pytest.mark.parametrize("core", [{}, RECURRENT], ids=["none", "gru"])
@pytest.mark.parametrize("adapted", [False, True])
def test_one_batch_without_adaptation_is_ppo(core, adapted):
    """Bit for bit when the learner collects; to rounding through the adapted path, with an adaptation that leaves the actor as it is."""
    task, method, start = started(**core)
    behaviour = Buffered(Unmoved() if adapted else None, batches=1, every=4)
    ends = []
    for b in (Itself(), behaviour):
        own = dataclasses.replace(method, behaviour=b)
        ends.append(jax.jit(lambda key, m=own: m.step(task, m.step(task, m.init(task, key))[0])[0])(jax.random.key(0)))
    for x, y in zip(jax.tree.leaves(ends[0].learner), jax.tree.leaves(ends[1].learner), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5) if adapted else np.testing.assert_array_equal(x, y)


@parts.part
class Unmoved:
    """The learner's actor."""

    def __call__(self, loop, actor, data, weight, key):
        return actor


def steps(task, method, state, count: int):
    """The states and rollouts of some iterations, each as it was collected and as it was learnt from."""
    found = []
    for _ in range(count):
        key = jax.random.split(state.key, 3)[1]
        fresh = jax.jit(lambda s, k: method.behaviour.collect(method, task.env, s, k)[1])(state, key)
        found.append((state, fresh, jax.jit(lambda s, r: method.behaviour.recall(method, s, s.acting.memory, r))(state, fresh)))
        state = jax.jit(lambda s: method.step(task, s)[0])(state)
    return found


@pytest.mark.parametrize("core", [{}, RECURRENT], ids=["none", "gru"])
def test_the_learner_sees_the_last_batches_the_newest_first(core):
    task, method, start = started(**core, **{"behaviour.batches": 3, "behaviour.every": 8})
    found = steps(task, method, start, 4)
    rewards = [np.asarray(fresh.reward) for _, fresh, _ in found]
    expected = [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 2, 1)]  # while the buffer fills, what is there stands for what is missing
    for (_, _, (memory, rollout, _)), batches in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rollout.reward, np.concatenate([rewards[k] for k in batches], axis=1))
        starts = [found[k][0].acting.memory for k in batches]
        for got, *parts_ in zip(jax.tree.leaves(memory), *map(jax.tree.leaves, starts), strict=True):
            np.testing.assert_array_equal(got, np.concatenate(parts_))


def test_old_probabilities_are_the_learners():
    """Whoever drew the action: the ratio of the learner is 1 before its first step."""
    task, method, start = started(**{"behaviour.every": 4})
    state, _, (memory, rollout, _) = steps(task, method, start, 3)[-1]
    batch = method.judge(state, state.acting._replace(memory=memory), rollout)[0]
    assert batch.log_prob.shape == (2 * 24,)
    metrics = method.policy_loss(state.learner.actor, (), batch)[1]
    assert float(metrics["ratio_deviation"]) < 1e-5


@pytest.mark.parametrize("name", ["props", "props:ros"])
@pytest.mark.parametrize("core", [{}, RECURRENT], ids=["none", "gru"])
def test_the_behaviour_makes_its_data_less_likely_and_starts_anew_each_time(name, core):
    _, method, state = started(name, **core)
    rollout = method.collect(started(name, **core)[0].env, state, jax.random.key(1))[1]
    actor = state.learner.actor
    data = seen(method, state, state.acting.memory, rollout.observation, rollout.start, rollout.raw_action)
    weight = method.batch_major((jnp.arange(6)[:, None] < jnp.full(4, 3)[None]).astype(jnp.float32))

    def likelihood(phi, weight=weight):
        log_prob = jax.vmap(lambda d, r: d.log_prob(r))(method.forward(phi, 0, data), method.samples(data.raw_action))
        return float(jnp.sum(method.samples(weight) * log_prob))

    adapt = jax.jit(lambda w, d: method.behaviour.adaptation(method, actor, d, w, jax.random.key(2)))
    adapted = adapt(weight, data)
    assert likelihood(adapted) < likelihood(actor)
    same = adapt(jnp.zeros_like(weight), data)
    for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(actor), strict=True):
        np.testing.assert_array_equal(x, y)
    # What lies in places that are not filled yet has no part in it.
    raw = method.time_major(data.raw_action)
    spoilt = data._replace(raw_action=method.batch_major(raw.at[3:].set(1 - raw[3:])))
    for x, y in zip(jax.tree.leaves(adapt(weight, spoilt)), jax.tree.leaves(adapted), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_a_tight_limit_stops_the_behaviour_early():
    """One step is taken before the divergence is seen to exceed the limit, many with a loose one."""
    moved = []
    for limit in (1e-9, 10.0):
        task, method, state = started(**{"behaviour.adaptation.target_kl": limit})
        rollout = method.collect(task.env, state, jax.random.key(1))[1]
        data = seen(method, state, (), rollout.observation, rollout.start, rollout.raw_action)
        adapted = method.behaviour.adaptation(method, state.learner.actor, data, jnp.ones(24), jax.random.key(2))
        differences = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), adapted, state.learner.actor)
        moved.append(max(float(x) for x in jax.tree.leaves(differences)))
    assert 0 < moved[0] < 2.1e-3 < moved[1]  # a step of Adam is at most its rate of 1e-3
