"""Polyak steps in the loop: the value and its gradient belong together, known optima stop them, and twins pull each other up.

The step alone is in tests/optim/test_polyak.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polopt.core import parts
from polopt.envs.exact import finite
from polopt.envs.exact.bandits import bernoulli
from polopt.envs.exact.dynamics import BanditDynamics, TabularDynamics
from polopt.envs.exact.tabular import TabularMDP
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.methods.policy_gradient import polyak_pg
from polopt.methods.policy_gradient.polyak_pg import Known, Twins, estimate
from polopt.optim.polyak import twin_target
from tests.loops.enumerated import HORIZON, close, everything, logits, loop, one_by_one, problem, tabular_actor


def test_the_value_and_the_gradient_are_of_one_function():
    """With the entropy in both: over all episodes, value and gradient are those of E[sum gamma^t (r_t + tau H_t)]."""
    with jax.enable_x64(True):
        method, mdp, tau = loop(), problem(), 0.7
        actor = tabular_actor(method, mdp)
        trajectories, found = everything(mdp)

        def soft(actor):
            policy = jax.nn.softmax(logits(actor, mdp.states))
            reward = mdp.reward - tau * jnp.sum(policy * jnp.log(policy), axis=1, keepdims=True)
            return finite.objective(mdp.with_reward(reward), policy, HORIZON)

        probability = finite.trajectory_probabilities(found, jax.nn.softmax(logits(actor, mdp.states)))
        value, gradient = one_by_one(lambda t: estimate(method, actor, t, tau), trajectories, probability)
        np.testing.assert_allclose(value, soft(actor))
        close(gradient, jax.grad(soft)(actor))
        without = one_by_one(lambda t: estimate(method, actor, t, 0.0)[1], trajectories, probability)
        assert optax.tree.norm(optax.tree.sub(gradient, without)) > 0.01


class Exact:
    """A loop on a bandit of one state with exact estimates; actors are logits (2,), scaled rewards are (scale, 0)."""

    def __init__(self, scale=1.0):
        self.rewards = scale * jnp.array([1.0, 0.0])
        self.starts = iter([jnp.array([0.0, 0.0]), jnp.array([1.0, -1.0])])

    def actor(self, env, key):
        return next(self.starts)

    def sample(self, actor, key):
        return self.rewards


@pytest.fixture
def on_a_bandit(monkeypatch):
    def exact_estimate(loop, actor, episodes, tau):
        return jax.value_and_grad(lambda x: jax.nn.softmax(x) @ episodes)(actor)

    monkeypatch.setattr(polyak_pg, "estimate", exact_estimate)


def climbed(ascent, scale, steps):
    with jax.enable_x64(True):
        loop_ = Exact(scale)
        state = ascent.init(loop_, ControlTask(None, 1), jax.random.key(0))
        for t in range(steps):
            state, metrics = ascent(loop_, loop_.sample, state, 0.0, jax.random.key(t))
        return state, metrics


def test_one_state(on_a_bandit):
    """Oracle 4, and oracle 2: the same step at every scale of the rewards."""
    for scale in (1.0, 1e-3, 1e4):
        state, _ = climbed(Known(optimum=scale, longest=None), scale, 1)
        np.testing.assert_allclose(state.actor, [1, -1], rtol=1e-12)  # and sigmoid(2) = .880797


def test_twins_aim_above_the_better(on_a_bandit):
    """One iteration by hand, the same at every scale; the better one is deployed."""
    values = jnp.array([0.5, jax.nn.sigmoid(2.0)])
    target = twin_target(jnp.max(values), values, 2.0)
    for scale in (1.0, 1e-3, 1e4):
        state, metrics = climbed(Twins(longest=None), scale, 1)
        np.testing.assert_allclose(metrics["target"], scale * target, rtol=1e-6)
        for actor, start, value in zip(state.actors, ([0.0, 0.0], [1.0, -1.0]), values):
            p = value * (1 - value)
            np.testing.assert_allclose(actor, np.array(start) + (target - value) / (2 * p**2) * np.array([p, -p]), rtol=1e-5)
        np.testing.assert_array_equal(Twins().actor(state), state.actors[1])
        np.testing.assert_allclose(state.best, scale * values[1], rtol=1e-6)


def test_both_twins_get_near_the_optimum(on_a_bandit):
    state, _ = climbed(Twins(), 1.0, 60)  # at most .3 a step
    assert np.asarray(state.values).min() > 0.95


def test_the_best_value_is_kept():
    """What is aimed at never falls, though estimates do."""
    task = ControlTask(make("exact:chain"), 100_000)
    method = parts.replace(registry.load("polyak_pg")(task), {"horizon": 10, "num_envs": 2})
    state = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
    step, seen, values = jax.jit(lambda s: method.step(task, s)), [], []
    for _ in range(8):
        state, metrics = step(state)
        seen.append(float(state.ascent.best))
        values.append(float(metrics["value"]))
        assert metrics["episode/count"] == 4  # both twins' episodes
    assert seen == sorted(seen) and seen[-1] == max(values) and values != sorted(values)
    leaves = [jax.tree.leaves(actor) for actor in state.ascent.actors]
    assert not np.array_equal(leaves[0][0], leaves[1][0])


def test_the_entropy_bonus_falls_to_zero():
    """At the end of the run the value is the return alone."""
    mdp = TabularMDP(jnp.ones((1, 2, 1)), jnp.zeros((1, 2)), jnp.ones(1), 0.9)
    task = ControlTask(JaxEnvironment("nothing", TabularDynamics(mdp)), 4 * 16 * 5)
    method = parts.replace(registry.load("polyak_pg:known")(task), {"horizon": 5, "discount": 1.0, "entropy": 0.5})
    state = method.init(task, jax.random.key(0))
    step, seen = jax.jit(lambda s: method.step(task, s)), []
    for _ in range(6):
        state, metrics = step(state)
        seen.append(float(metrics["value"]))
    np.testing.assert_allclose(seen[0], 5 * 0.5 * np.log(2), rtol=1e-3)
    assert all(a >= b for a, b in zip(seen, seen[1:])) and seen[4] == seen[5] == 0


def test_it_learns_a_known_optimum():
    """Two arms, of which one earns 1 for sure."""
    task = ControlTask(JaxEnvironment("arms", BanditDynamics(bernoulli(jnp.array([1.0, 0.0])))), 60 * 16)
    method = parts.replace(registry.load("polyak_pg:known")(task), {"horizon": 1, "entropy": 0.0, "optimum": 1.0})
    run = jax.jit(lambda key: jax.lax.fori_loop(0, 60, lambda _, s: method.step(task, s)[0], method.init(task, key)))
    actor = run(jax.random.key(0)).ascent.actor
    assert jax.nn.softmax(actor((), jnp.ones(1), ())[1].logits)[0] > 0.95
