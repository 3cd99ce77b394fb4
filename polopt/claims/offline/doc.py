"""Dichotomy of Control: told a latent that holds no luck, a policy plays the better arm; told the best return, it plays what the log prefers.

The same policy with beta = 0 does as well here: what is encoded to foretell the action says nothing of the reward by itself. The check is of what
the constraint leaves, not of what it takes away.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core import spaces
from polopt.core.parts import replace
from polopt.data.dataset import Dataset, DataTask
from polopt.methods.offline.bc import bc
from polopt.methods.offline.decision_transformer import decision_transformer
from polopt.methods.offline.doc import categorical

CHANCES = jnp.array([0.3, 0.7])  # of a reward of 1 from either arm
GOOD = 0.1  # how often who made the log takes the better one
PULLS, UPDATES = 10_000, 2_000
REWARD, BROKEN = "expected reward", "promised reward - expected reward, in size"
SIZES = {"rule.width": 16, "rule.layers": 1, "rule.step.learning_rate": 3e-3, "updates": 100, "batch_size": 256}
DOC = SIZES | {"rule.history": 1, "rule.future": 1, "rule.network.hidden": (16,)}
DT = SIZES | {"rule.context": 1, "rule.reward_network.hidden": (8,)}
BC = {"rule.network.hidden": (16,), "rule.step.learning_rate": 3e-3, "updates": 100, "batch_size": 256}


def pulls(key) -> Dataset:
    """Episodes of one pull, in a state that is always the same."""
    k_arm, k_reward = jax.random.split(key)
    arm = jax.random.bernoulli(k_arm, GOOD, (PULLS,)).astype(jnp.int32)
    reward = jax.random.bernoulli(k_reward, CHANCES[arm]).astype(jnp.float32)
    state, ends = jnp.zeros((PULLS, 1)), jnp.ones((PULLS,), bool)
    return Dataset(state, arm, reward, state, ends, ~ends, spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2), "bandit")


def told_latent(method, state):
    """(distribution over arms, promise) of the latent that it chooses."""
    policy, state_of_world = method.policy(state), jnp.zeros((1, 1))
    actor = policy.actor
    x = actor.features(state_of_world, jnp.zeros((1, 2)), jnp.zeros((1,), jnp.int32), jnp.ones(1))[0]
    z, promise = policy.chosen(x, jax.random.key(0))
    return actor.distribution(x, z), promise * state.learner.extra.scale


def told_return(method, state):
    policy = method.policy(state)
    asked = (policy.target / policy.scale)[None]
    found = policy.actor(asked, jnp.zeros((1, 1)), jnp.zeros((1, 2)), jnp.zeros((1,), jnp.int32), jnp.ones(1))
    return jax.tree.map(lambda x: x[0], found), policy.target


def told_nothing(method, state):
    return state.learner.actor(jnp.zeros(1), ()), jnp.float32(jnp.nan)


def learnt(method, told, seeds: list[int]) -> Side:
    """A side that is trained on a log of its own for each seed: what its arms pay, by the known chances, and how far its promise is from that."""

    @jax.jit
    def start(key):
        return method.init(DataTask(pulls(jax.random.fold_in(key, 0xDA7A)), UPDATES), key)

    @jax.jit
    @jax.vmap
    def one(key, state):
        task = DataTask(pulls(jax.random.fold_in(key, 0xDA7A)), UPDATES)
        state = jax.lax.fori_loop(0, UPDATES // method.updates, lambda _, s: method.step(task, s)[0], state)
        arms, promise = told(method, state)
        reward = jax.nn.softmax(arms.logits) @ CHANCES
        return reward, jnp.abs(promise - reward)

    keys = [jax.random.key(seed) for seed in seeds]
    starts = jax.tree.map(lambda *x: jnp.stack(x), *map(start, keys))
    reward, broken = (np.asarray(x, np.float64) for x in one(jnp.stack(keys), starts))
    return Side({**configuration(method), "updates": UPDATES}, {REWARD: reward} | ({} if np.isnan(broken).any() else {BROKEN: broken}))


def run(seeds: list[int]) -> dict[str, Side]:
    return {
        "DoC": learnt(replace(categorical(None), DOC), told_latent, seeds),
        "DoC without its constraint": learnt(replace(categorical(None), DOC | {"rule.beta": 0.0}), told_latent, seeds),
        "DT": learnt(replace(decision_transformer(None), DT), told_return, seeds),
        "BC": learnt(replace(bc(None), BC), told_nothing, seeds),
    }


CLAIM = Claim(
    method="doc",
    statement="In a bandit a policy that is told a latent without luck plays the better arm and earns what its value promises; one that is told the "
    "best return plays the arm that the log prefers, and earns far less than it was asked for.",
    baseline="the Decision Transformer asked for the best return of the log, of the same sizes; the same policy with beta = 0",
    task=f"two arms that pay 1 with the chances .3 and .7; {PULLS} pulls of which a tenth is of the better arm, a log of its own for each seed; four "
    f"latents; {UPDATES} updates of 256; expected rewards are exact",
    run=run,
    checks=(
        Check(REWARD, "DoC", above=0.62),
        Check(REWARD, "DT", below=0.42),
        Check(BROKEN, "DoC", below=0.06),
        Check(BROKEN, "DT", above=0.5),
    ),
    seconds=120,
)
