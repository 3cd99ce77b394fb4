"""What the claims of policies that are told an outcome share: logs of a grid in which few walk to the goal and many away from it."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Side
from polopt.claims.measures import FINAL_RETURN, configuration
from polopt.core import spaces
from polopt.data.dataset import Dataset, DataTask, concatenated
from polopt.envs.exact import tabular
from polopt.envs.exact.dynamics import TabularDynamics
from polopt.envs.exact.problems import gridworld
from polopt.envs.jax_env import JaxEnvironment
from polopt.run.collect import record
from polopt.run.evaluate import episode_returns

HORIZON, STEP_REWARD = 30, -0.02
TRANSITIONS, UPDATES, EPISODES = 3_000, 1_000, 64
SHARES = ((True, 0.25), (False, 0.75))  # (towards the goal, share of the transitions)
EPSILON = 0.4  # share of uniform actions of both
SETTING = (
    f"5x5 grid with walls, corner to corner, 1 for the goal and {STEP_REWARD} a step, cut after {HORIZON} steps; {TRANSITIONS} transitions, a log of "
    f"its own for each seed: a quarter by the optimal policy and the rest by the worst, both with {EPSILON:g} uniform actions; {UPDATES} updates; "
    "actions drawn as cloned"
)


class Planner(eqx.Module):
    """The action of a table in each state, seen as a one-hot vector."""

    action: jax.Array
    observation_space: spaces.Space = eqx.field(static=True)
    action_space: spaces.Space = eqx.field(static=True)

    def initial_carry(self):
        return ()

    def act(self, carry, observation, key=None):
        return carry, self.action[jnp.argmax(observation)]


@functools.cache
def problem():
    """(environment, the best action of each state, the worst)."""
    mdp = gridworld(step_reward=STEP_REWARD)
    best = tabular.optimal(mdp).action_values
    env = JaxEnvironment("grid", TabularDynamics(mdp, HORIZON, observe="one-hot"))
    return env, jnp.argmax(best, -1).astype(jnp.int32), jnp.argmin(best, -1).astype(jnp.int32)


@functools.cache
def logs(seed: int) -> Dataset:
    """A log of both walkers."""
    env, best, worst = problem()
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0xDA7A), len(SHARES))
    pieces = []
    for (good, share), key in zip(SHARES, keys):
        walker = Planner(best if good else worst, env.observation_space, env.action_space)
        pieces.append(record(walker, env, round(share * TRANSITIONS), key, epsilon=EPSILON))
    return concatenated(pieces, "grid")


def learnt(method, seeds: list[int]) -> Side:
    """A side that is trained from a log of its own for each seed: the mean return of its drawn actions."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(jax.tree.map(np.asarray, logs(seed)) for seed in seeds))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    env, *_ = problem()
    return Side(configuration(method), {FINAL_RETURN: np.asarray(_train(method, stacked, env, keys), np.float64)})


def made(seeds: list[int]) -> Side:
    """What those who made the logs earned."""
    return Side({"transitions": TRANSITIONS}, {FINAL_RETURN: np.array([logs(seed).episodes().returns.mean() for seed in seeds])})


@jax.jit
def _train(method, stacked, env, keys):
    starts = jax.lax.map(lambda both: method.init(DataTask(both[0], UPDATES), both[1]), (stacked, keys))  # not by vmap; see measures._train

    def one(data, key, state):
        task = DataTask(data, UPDATES)
        state = jax.lax.fori_loop(0, UPDATES // method.updates, lambda _, s: method.step(task, s)[0], state)
        fresh = jax.random.fold_in(key, 0x0F17A1)
        return episode_returns(method.policy(state), env, fresh, episodes=EPISODES, stochastic=True, max_steps=HORIZON)[0].mean()

    return jax.vmap(one)(stacked, keys, starts)
