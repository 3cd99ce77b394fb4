"""A problem of two states and two steps, and all its episodes as the loop of whole episodes has them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import parts
from polopt.core.networks import Network
from polopt.envs.exact import finite
from polopt.envs.exact.dynamics import TabularDynamics
from polopt.envs.exact.problems import random_mdp
from polopt.envs.exact.tabular import TabularMDP
from polopt.envs.jax_env import JaxEnvironment
from polopt.loops.episodes import Episodes, Trajectories
from polopt.methods.policy_gradient.npg_igt import Transported

HORIZON = 2


def loop(**changes) -> Episodes:
    return parts.replace(Episodes(Transported(), network=Network(hidden=())), {"horizon": HORIZON, "discount": 0.8, **changes})


def problem() -> TabularMDP:
    return random_mdp(jax.random.key(3), 2, 2, discount=0.8, concentration=1.0)


def tabular_actor(method: Episodes, mdp: TabularMDP, seed=0, scale=1.0):
    """A softmax table with random logits."""
    actor = method.actor(JaxEnvironment("exact", TabularDynamics(mdp)), jax.random.key(seed))
    leaves, structure = jax.tree.flatten(actor)
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
    return jax.tree.unflatten(structure, [scale * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)])


def logits(actor, states: int):
    return jax.vmap(lambda s: actor((), s, ())[1].logits)(jnp.eye(states))


def everything(mdp: TabularMDP) -> tuple[Trajectories, jax.Array, finite.Trajectories]:
    """Every episode of HORIZON steps as episodes of the loop."""
    found = finite.enumerate_trajectories(mdp, HORIZON)
    inputs = jax.nn.one_hot(found.states[:, :-1], mdp.states), ()
    actions = found.actions.astype(jnp.int32)
    cost = jnp.zeros((*actions.shape, 0))
    return Trajectories(inputs, actions, jax.nn.one_hot(actions, mdp.actions), found.rewards, cost, jnp.ones(actions.shape, bool)), found


def exact(mdp, actor):
    return finite.objective(mdp, jax.nn.softmax(logits(actor, mdp.states)), HORIZON)


def one_by_one(estimate, trajectories, probability):
    """The expectation of an estimate from one episode."""
    single = jax.vmap(lambda t: estimate(jax.tree.map(lambda x: x[None], t)))(trajectories)
    return jax.tree.map(lambda x: jnp.tensordot(probability, x, 1), single)


def close(found, expected, tolerance=1e-9):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance)
