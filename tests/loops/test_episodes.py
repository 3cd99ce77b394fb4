"""The loop of whole episodes: its estimates are right on average, by enumeration, and its episodes end where they end."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polopt.core.spaces import Box, Discrete
from polopt.envs.exact import finite
from polopt.envs.exact.problems import chain
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.episodes import Trajectories
from tests.loops.enumerated import close, everything, exact, logits, loop, one_by_one, problem, tabular_actor


def test_the_gradient_and_the_hessian_product_are_unbiased():
    """Oracle 5 of npg_igt: the expectation over all episodes of a 2-state problem is exact, and needs both terms of B."""
    with jax.enable_x64(True):
        method, mdp = loop(), problem()
        actor, direction = tabular_actor(method, mdp), tabular_actor(method, mdp, seed=1)
        trajectories, found = everything(mdp)
        probability = finite.trajectory_probabilities(found, jax.nn.softmax(logits(actor, mdp.states)))
        np.testing.assert_allclose(one_by_one(method.value, trajectories, probability), exact(mdp, actor))
        close(one_by_one(lambda t: method.gradient(actor, t), trajectories, probability), jax.grad(lambda a: exact(mdp, a))(actor))
        curvature = jax.jvp(jax.grad(lambda a: exact(mdp, a)), (actor,), (direction,))[1]
        close(one_by_one(lambda t: method.hessian_product(actor, t, direction), trajectories, probability), curvature)

        def half(t):
            return jax.jvp(lambda a: method.gradient(a, t), (actor,), (direction,))[1]

        without = one_by_one(half, trajectories, probability)
        assert optax.tree.norm(optax.tree.sub(without, curvature)) > 0.01


def test_weighted_episodes_speak_of_another_actor():
    with jax.enable_x64(True):
        method, mdp = loop(), problem()
        actor, other = tabular_actor(method, mdp), tabular_actor(method, mdp, seed=1)
        trajectories, found = everything(mdp)
        probability = finite.trajectory_probabilities(found, jax.nn.softmax(logits(actor, mdp.states)))
        weights = method.weights(other, actor, trajectories)
        np.testing.assert_allclose(probability @ weights, 1.0)

        def estimate(t):
            return method.gradient(other, t, weights=method.weights(other, actor, t))

        close(one_by_one(estimate, trajectories, probability), jax.grad(lambda a: exact(mdp, a))(other))


def test_the_baseline_of_the_others_leaves_the_gradient_right():
    with jax.enable_x64(True):
        plain, mdp = loop(), problem()
        method = loop(baseline=True, num_envs=2)
        actor = tabular_actor(method, mdp)
        trajectories, found = everything(mdp)
        p = finite.trajectory_probabilities(found, jax.nn.softmax(logits(actor, mdp.states)))
        n = p.shape[0]
        pairs = jax.tree.map(lambda x: jnp.stack([jnp.repeat(x, n, 0), jnp.tile(x, (n,) + (1,) * (x.ndim - 1))], 1), trajectories)
        gradients = jax.vmap(lambda t: method.gradient(actor, t))(pairs)
        mean = jax.tree.map(lambda x: jnp.tensordot(jnp.outer(p, p).ravel(), x, 1), gradients)
        close(mean, jax.grad(lambda a: exact(mdp, a))(actor))
        without = jax.vmap(lambda t: plain.gradient(actor, t))(pairs)
        assert optax.tree.norm(optax.tree.sub(gradients, without)) > 0.1


def test_credit_by_hand():
    """G_t = sum_{h>=t} gamma^h r_h, less what the others that still go on get from the same step on."""
    mask = jnp.array([[True, True, True], [True, True, False], [True, False, False]])
    t = Trajectories((), (), (), jnp.array([[1.0, 2.0, 4.0], [8.0, 16.0, 0.0], [6.0, 0.0, 0.0]]), (), mask)
    np.testing.assert_allclose(loop(discount=0.5).credit(t), [[3, 2, 1], [16, 8, 0], [6, 0, 0]])
    expected = [[3 - 11, 2 - 8, 1], [16 - 4.5, 8 - 2, -1], [6 - 9.5, -5, -1]]
    found = loop(discount=0.5, baseline=True, num_envs=3).credit(t)
    np.testing.assert_allclose(jnp.where(mask, found, 0), jnp.where(mask, jnp.array(expected), 0))
    np.testing.assert_allclose(loop(discount=0.5).value(t), (3 + 16 + 6) / 3)


@dataclass(frozen=True)
class Lamp:
    """A state that counts; action 1 ends the episode at once, and a time limit ends it after 3 steps. Step t earns t + 1."""

    observation_space = Box(0.0, 10.0, (1,))
    action_space = Discrete(2)
    objectives = costs = 0

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.zeros(1)

    def step(self, state, action, key):
        after = state + 1
        return after, after.astype(jnp.float32)[None], after.astype(jnp.float32), jnp.zeros((0,)), action == 1, after == 3


@pytest.mark.parametrize("core", ["none", "gru"])
def test_episodes_end_where_they_end(core):
    """Behind an end everything is 0 and masked; before it, every step is there."""
    method = loop(num_envs=64, horizon=7, **{"network.core": core, "network.core_size": 4})
    task = ControlTask(JaxEnvironment("lamp", Lamp()), 1000)
    state = method.init(task, jax.random.key(0))
    actor = state.ascent.actor
    _, found = jax.jit(lambda key: method.act(task.env, None, state.normaliser, actor, key))(jax.random.key(1))
    lengths = np.asarray(found.mask.sum(1))
    assert set(lengths) == {1, 2, 3}
    for n, mask, reward, action, seen in zip(lengths, found.mask, found.reward, found.raw_action, found.inputs[0]):
        assert mask[:n].all() and not mask[n:].any()
        np.testing.assert_array_equal(reward, [*range(1, n + 1), *[0] * (7 - n)])
        np.testing.assert_array_equal(seen[:, 0], [*range(n), *[0] * (7 - n)])
        assert not action[: n - 1].any() and not action[n:].any()
        assert n == 3 or action[n - 1] == 1
    chances = np.asarray(method.log_prob(actor, found))
    for n in (1, 2):  # the score of an episode is that of its own steps
        np.testing.assert_allclose(chances[lengths == n], chances[lengths == n][0], rtol=1e-5)
    metrics = method.step(task, state)[1]
    assert metrics["episode/count"] == 64 and 64 <= metrics["episode/length"] <= 192


def test_a_recurrent_actor_remembers_in_its_score():
    """The distributions found again are those that acted."""
    method = loop(num_envs=5, horizon=4, **{"network.core": "lstm", "network.core_size": 4})
    task = ControlTask(make("probe:memory"), 1000)
    state = method.init(task, jax.random.key(0))
    actor = tree_noise(state.ascent.actor, jax.random.key(2))
    _, found = method.act(task.env, None, state.normaliser, actor, jax.random.key(1))
    for i in range(5):
        memory, total = actor.torso.initial(), 0.0
        for t in range(4):
            memory, d = actor(memory, found.inputs[0][i, t], ())
            total += float(d.log_prob(found.raw_action[i, t]))
        np.testing.assert_allclose(method.log_prob(actor, found)[i], total, rtol=1e-5)


def tree_noise(tree, key):
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [x + jax.random.normal(k, x.shape) for x, k in zip(leaves, jax.random.split(key, len(leaves)))])


def test_sampled_estimates_approach_the_exact_ones():
    """On `exact:chain` by name, with numbered states: a network without hidden layers is a softmax table."""
    mdp = chain()
    env = make("exact:chain")
    method = loop(num_envs=4000, horizon=20, discount=0.95)
    actor = tabular_actor(method, mdp, scale=0.5)
    state = method.init(ControlTask(env, 1), jax.random.key(0))
    _, found = jax.jit(lambda key: method.act(env, None, state.normaliser, actor, key))(jax.random.key(1))
    policy = jax.nn.softmax(logits(actor, mdp.states))
    np.testing.assert_allclose(method.value(found), finite.objective(mdp, policy, 20), rtol=0.03)
    table = finite.policy_gradient(mdp, logits(actor, mdp.states), 20)
    each = jax.jit(jax.vmap(lambda t: method.gradient(actor, jax.tree.map(lambda x: x[None], t))))(found)
    for estimates, expected in ((each.head.weight, table), (each.head.bias, table.sum(0))):
        error = estimates.std(0) / 4000**0.5
        assert (jnp.abs(estimates.mean(0) - expected) < 4 * error + 1e-6).all() and (error < 0.05).all()


def test_mistakes_are_sentences():
    assert "at least 2" in loop(baseline=True).refuse(ControlTask(make("probe:action"), 1))
    assert "multi-objective" in loop().refuse(ControlTask(make("probe:vector"), 1))
    assert "clip" in loop(bounds="squash").refuse(ControlTask(make("exact:lqr"), 1))
