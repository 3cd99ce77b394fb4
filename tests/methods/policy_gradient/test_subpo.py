"""SubPO's oracles: the gradient of the exact objective, the identities with REINFORCE, the baseline's rewards."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.envs.exact import finite
from polopt.envs.exact.dynamics import TabularDynamics
from polopt.envs.exact.problems import random_mdp
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.make import make
from polopt.envs.set_rewards import Coverage, SetRewards
from polopt.envs.task import ControlTask
from polopt.methods import registry

HORIZON, STATES, ACTIONS = 2, 3, 2
COVERS = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], bool)
ENVS = 4096


@pytest.fixture(scope="module")
def problem():
    return random_mdp(jax.random.key(0), STATES, ACTIONS, discount=1.0, concentration=1.0)


def task(problem, **changes) -> ControlTask:
    rewards = SetRewards(TabularDynamics(problem), Coverage(COVERS), STATES, HORIZON, **{"observe": "table", **changes})
    return ControlTask(JaxEnvironment("tiny", rewards), 10**6)


def method(name: str, on: ControlTask, **changes):
    sizes = {"num_envs": ENVS, "num_steps": HORIZON, "network.hidden": ()}
    return parts.replace(registry.load(name)(on), {**sizes, **changes})


def trajectory_values(trajectories, mode):
    """F(tau), or the modular sum over what is visited after s_0, of every trajectory."""
    visited = np.asarray(trajectories.states)
    if mode == "modular":
        return COVERS.sum(1)[visited[:, 1:]].sum(1)
    return COVERS[visited].any(1).sum(1)


def exact_objective(problem, logits, mode="set"):
    """J of a time-indexed table (H, S, A) by enumeration of all trajectories."""
    trajectories = finite.enumerate_trajectories(problem, HORIZON)
    chances = finite.trajectory_probabilities(trajectories, jax.nn.softmax(logits))
    return chances @ jnp.asarray(trajectory_values(trajectories, mode), jnp.float32)


def estimate(name: str, on: ControlTask, keys, **changes):
    """The table's logits (H, S, A) and the mean gradient estimate of J in them, with its standard error, over fresh rollouts."""
    loop = method(name, on, **changes)
    state = loop.init(on, jax.random.key(1))
    weight = 0.7 * jax.random.normal(jax.random.key(2), state.learner.actor.head.weight.shape)
    state = eqx.tree_at(lambda s: s.learner.actor.head.weight, state, weight)

    @jax.jit
    def one(key):
        fresh = loop.refresh(on, eqx.tree_at(lambda s: s.key, state, key))
        batch = loop.judge(fresh, fresh.acting, loop.collect(on.env, fresh, key)[1])[0]
        gradient = jax.grad(lambda actor: loop.policy_loss(actor, (), batch)[0])(fresh.learner.actor)
        return -HORIZON * gradient.head.weight.reshape(HORIZON + 1, STATES, ACTIONS)[:HORIZON]

    many = np.stack([one(key) for key in keys])
    return weight.reshape(HORIZON + 1, STATES, ACTIONS)[:HORIZON], many.mean(0), many.std(0) / np.sqrt(len(many))


def test_the_estimate_follows_the_gradient_of_the_set_value(problem):
    """Oracle 4: the mean estimate against the exact gradient, itself checked by finite differences."""
    on = task(problem)
    logits, given, error = estimate("subpo", on, jax.random.split(jax.random.key(3), 16))
    exact = np.asarray(jax.grad(lambda x: exact_objective(problem, x))(logits))
    assert (abs(given - exact) < 4 * error + 1e-3).all()
    for at in ((0, 0, 0), (1, 2, 1)):
        bump = jnp.zeros_like(logits).at[at].set(0.05)
        slope = (exact_objective(problem, logits + bump) - exact_objective(problem, logits - bump)) / 0.1
        assert float(slope) == pytest.approx(exact[at], abs=1e-3)


def test_the_baseline_follows_the_modular_gradient(problem):
    logits, given, error = estimate("subpo:modpo", task(problem), jax.random.split(jax.random.key(3), 16))
    modular, whole = (np.asarray(jax.grad(lambda x, mode=mode: exact_objective(problem, x, mode))(logits)) for mode in ("modular", "set"))
    assert (abs(given - modular) < 4 * error + 1e-3).all()
    assert (abs(given - whole) > 6 * error).any()


def test_without_a_future_it_is_the_gradient_of_each_gain_alone(problem):
    """The first step's score times the first gain only."""
    logits, given, error = estimate("subpo", task(problem), jax.random.split(jax.random.key(3), 16), discount=0.0)

    def first_gain(x):
        trajectories = finite.enumerate_trajectories(problem, HORIZON)
        chances = finite.trajectory_probabilities(trajectories, jax.nn.softmax(x))
        visited = np.asarray(trajectories.states)
        gains = COVERS[visited[:, :2]].any(1).sum(1) - COVERS[visited[:, 0]].sum(1)
        return chances @ jnp.asarray(gains, jnp.float32)

    alone, whole = (np.asarray(jax.grad(f)(logits)) for f in (first_gain, lambda x: exact_objective(problem, x)))
    assert (abs(given[0] - alone[0]) < 4 * error[0] + 1e-3).all()
    assert (abs(given[0] - whole[0]) > 6 * error[0]).any()


def test_a_modular_value_makes_it_reinforce(problem):
    """Oracle 1: F counts weights, so that marginal gains of first visits are additive; on a walk that never returns all three agree."""
    P = jnp.zeros((4, 2, 4)).at[0, 0, 1].set(1).at[0, 1, 2].set(1).at[1, :, 3].set(1).at[2, :, 3].set(1).at[3, :, 3].set(1)
    line = dataclasses.replace(random_mdp(jax.random.key(0), 4, 2, discount=1.0), transition=P, start=jnp.eye(4)[0])
    disjoint = Coverage(np.eye(4), [1.0, 2.0, 5.0, 3.0])
    on = ControlTask(JaxEnvironment("line", SetRewards(TabularDynamics(line), disjoint, 4, 2, observe="table")), 10**4)
    states = []
    for name in ("subpo", "subpo:modpo"):
        loop = parts.replace(registry.load(name)(on), {"num_envs": 64, "num_steps": 2})
        states.append(jax.jit(lambda k, loop=loop: loop.step(on, loop.init(on, k))[0].learner)(jax.random.key(0)))
    for x, y in zip(*map(jax.tree.leaves, states)):
        np.testing.assert_array_equal(x, y)


def test_histories_and_recurrent_cores():
    """SubPO-NM and its GRU form take a step on the grid."""
    for env, changes in (("coverage:grid:history", {}), ("coverage:grid:state", {"network.core": "gru", "network.core_size": 8})):
        on = ControlTask(make(env), 1000)
        loop = parts.replace(registry.load("subpo")(on), {"num_envs": 8, "network.hidden": (8,), **changes})
        assert loop.refuse(on) is None and loop.num_steps == 16
        _, metrics = jax.jit(lambda k, loop=loop, on=on: loop.step(on, loop.init(on, k)))(jax.random.key(0))
        assert metrics["episode/count"] == 8 and metrics["episode/length"] == 8 * 16


def test_the_baselines_hyperparameters_are_explained():
    helps = parts.field_help(registry.load("subpo:modpo")(None))
    assert helps["num_steps"] == parts.field_help(registry.load("subpo")(None))["num_steps"] != ""
