"""MBRCSL: rollouts of a model stitch pieces of logged episodes, which supervised learning on the log cannot.

As in the paper's point maze, what reaches the goal in the log came by a detour that costs as much as the goal earns: the step from D to B pays -1.
Without it the log's best return would be the goal's own, which no rollout exceeds, so that none would be kept.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN, configuration
from polopt.core.parts import replace
from polopt.data.dataset import Dataset, DataTask
from polopt.envs.exact.dynamics import TabularDynamics
from polopt.envs.exact.tabular import TabularMDP
from polopt.envs.jax_env import JaxEnvironment
from polopt.methods.offline.mbrcsl import mbrcsl
from polopt.methods.offline.rvs import rvs
from polopt.run.evaluate import episode_returns

A, B, C, D, E, EXIT = range(6)
TO, REWARD = np.full((6, 2), C), np.zeros((6, 2), np.float32)
TO[A], TO[B], TO[D] = (B, EXIT), (C, E), (B, B)
REWARD[A, 1], REWARD[B, 1], REWARD[D] = 0.2, 1.0, -1.0
ENDS = (C, E, EXIT)
EPISODES = (([(A, 1)], 67), ([(A, 0), (B, 0)], 67), ([(D, 0), (B, 1)], 66))  # (states and actions, how often)
HORIZON, PREPARATION, UPDATES, EVALUATED = 2, 2000, 1000, 64
BEST_LOGGED, BEST = 0.2, 1.0  # returns from A


@functools.cache
def environment() -> JaxEnvironment:
    """Episodes from A."""
    mdp = TabularMDP(jnp.eye(6)[TO], jnp.asarray(REWARD), jnp.eye(6)[A], 1.0, terminal=jnp.isin(jnp.arange(6), jnp.array(ENDS)))
    return JaxEnvironment("graph", TabularDynamics(mdp, HORIZON, observe="one-hot"))


def logs(seed: int) -> Dataset:
    """From A a coin leaves by the exit or goes by B to C; from D the way is by B to E. In an order of the seed, and with its actions in D."""
    rng, env = np.random.default_rng((seed, 0xDA7A)), environment()
    order = rng.permutation(np.repeat(np.arange(len(EPISODES)), [often for _, often in EPISODES]))
    state, action = (np.array(column) for column in zip(*(pair for i in order for pair in EPISODES[i][0])))
    action = np.where(state == D, rng.integers(2, size=len(state)), action).astype(np.int32)
    after = TO[state, action]
    ends, one_hot = np.isin(after, ENDS), np.eye(6, dtype=np.float32)
    seen = one_hot[state], action, REWARD[state, action], one_hot[after], ends, np.zeros_like(ends)
    return Dataset(*seen, env.observation_space, env.action_space, "graph")


def learnt(method, seeds: list[int], updates: int) -> Side:
    """A side that is trained from a log of its own for each seed: the mean return of its drawn actions."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(logs(seed) for seed in seeds))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    final = np.asarray(_train(method, stacked, keys, updates=updates), np.float64)
    return Side({**configuration(method), "updates": updates}, {FINAL_RETURN: final})


@functools.partial(jax.jit, static_argnames="updates")
def _train(method, stacked, keys, *, updates: int):
    starts = jax.lax.map(lambda both: method.init(DataTask(both[0], updates), both[1]), (stacked, keys))  # not by vmap; see measures._train

    def one(data, key, state):
        task = DataTask(data, updates)
        state = jax.lax.fori_loop(0, updates // method.updates, lambda _, s: method.step(task, s)[0], state)
        fresh = jax.random.fold_in(key, 0x0F17A1)
        return episode_returns(method.policy(state), environment(), fresh, episodes=EVALUATED, stochastic=True, max_steps=HORIZON)[0].mean()

    return jax.vmap(one)(stacked, keys, starts)


def run(seeds: list[int]) -> dict[str, Side]:
    told = replace(rvs(None), {"network.hidden": (32, 32), "learning_rate": 3e-3, "batch_size": 64})
    sizes = dict.fromkeys(("dynamics_network.hidden", "behaviour_network.hidden", "rule.network.hidden"), (32, 32))
    sizes |= dict.fromkeys(("model_step.learning_rate", "behaviour_step.learning_rate", "rule.step.learning_rate"), 3e-3)
    sizes |= {"rule.batch_size": 64, "models.batch_size": 64, "rule.decay": 0.0, "horizon": HORIZON, "preparation": PREPARATION}
    return {
        "MBRCSL": learnt(replace(mbrcsl(None), sizes), seeds, PREPARATION + UPDATES),
        "RvS told the best logged return": learnt(replace(told, {"rule.target": BEST_LOGGED}), seeds, UPDATES),  # in one step
        "RvS told the best return": learnt(replace(told, {"rule.target": BEST / HORIZON}), seeds, UPDATES),
    }


CLAIM = Claim(
    method="mbrcsl",
    statement="Rollouts of who made the log in a learnt model stitch pieces of different episodes; a policy that is told returns learns from those "
    "that beat the log and is optimal, where one that learns from the log is not.",
    baseline="RvS on the log with the same network and as many updates of it, told the best logged return from the start, or the best return",
    task="graph A-B, D-B, B-C (0), B-E (1) with an exit of .2 at A and a toll of 1 for D-B; 200 logged episodes, of which those from A end in C or "
    "by the exit and those from D in E, in an order of the seed's own; the policy starts at A",
    run=run,
    checks=(
        Check(FINAL_RETURN, "MBRCSL", above=0.95),
        Check(FINAL_RETURN, "RvS told the best logged return", below=0.75),
        Check(FINAL_RETURN, "RvS told the best return", below=0.75),
    ),
    seconds=40,
)
