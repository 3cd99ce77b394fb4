"""GORL: a weight for each sample, learnt from a few expert pairs, beats every weight that is one for all.

The critic is given rather than learnt, so that what the weights do is all that differs. The fixed weights go up to 50 as the host divides the
critic's term by its mean size, so that the weight that is best for all is not near 1.
"""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core import spaces
from polopt.core.parts import replace
from polopt.critics.action_value import Ensemble
from polopt.data.dataset import Dataset, DataTask
from polopt.loops.offline import Offline
from polopt.methods.offline.gorl_guided import Guidance, gorl_guided
from polopt.methods.offline.td3_bc import td3_bc

SAMPLES, PAIRS, UPDATES = 4000, 100, 4000
EXPERT, BAD, MISLED, NOISE = 0.6, -0.6, -1.0, 0.1
FIXED = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
ERROR = "squared error to the expert's action"
GORL, BEST = "GORL", "the best fixed weight of each seed"
SIZES = {"batch_size": 256, "actor_network.hidden": (64, 64), "actor_step.learning_rate": 1e-3, "normalise_observations": False}
OBSERVATIONS, ACTIONS = spaces.Box(-1.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, (1,))


class Given(eqx.Module):
    """Q(s, a) that is right where the log is bad, at s_0 > 0, and highest at an action that is never logged where the log is good."""

    def __call__(self, vector, pictures, action):
        return -jnp.mean((action - jnp.where(vector[0] > 0, EXPERT, MISLED)) ** 2)


def logged(key) -> Dataset:
    """One-step episodes at random states: the expert's action where s_0 <= 0, and a bad one elsewhere, with noise."""
    k_state, k_noise = jax.random.split(key)
    state = jax.random.uniform(k_state, (SAMPLES, 2), minval=-1.0)
    taken = jnp.where(state[:, :1] > 0, BAD, EXPERT) + NOISE * jax.random.normal(k_noise, (SAMPLES, 1))
    flags = jnp.ones(SAMPLES, bool)
    return Dataset(state, taken, jnp.zeros(SAMPLES), state, flags, ~flags, OBSERVATIONS, ACTIONS, "bandit")


@functools.partial(jax.jit, static_argnums=2)
@functools.partial(jax.vmap, in_axes=(None, 0, None))
def error(loop: Offline, key, guided: bool):
    """What the policy that the loop learns from a log of the key is away from the expert."""
    k_log, k_expert, k_learn = jax.random.split(key, 3)
    task = DataTask(logged(k_log), UPDATES)
    state, critic = loop.init(task, k_learn), Ensemble(lambda _: Given(), 1, k_learn)
    learner = dataclasses.replace(state.learner, critic=critic, target_critic=critic)
    learner = dataclasses.replace(learner, optimisers={**learner.optimisers, "critic": td3_bc(None).rule.critic_step.init(critic)})
    if guided:
        states = jax.random.uniform(k_expert, (PAIRS, 2), minval=-1.0)
        learner = dataclasses.replace(learner, extra=Guidance(learner.extra.network, (states, ()), jnp.full((PAIRS, 1), EXPERT)))
    state = dataclasses.replace(state, learner=learner)
    state = jax.lax.fori_loop(0, UPDATES // loop.updates, lambda _, s: loop.step(task, s)[0], state)
    fresh = jax.random.uniform(jax.random.fold_in(key, 0xF4E5), (1000, 2), minval=-1.0)
    return jnp.mean((jax.vmap(lambda s: state.learner.actor(s, ()))(fresh) - EXPERT) ** 2)


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    measured = lambda loop, guided: np.asarray(error(loop, keys, guided), np.float64)  # noqa: E731
    gorl, host = replace(gorl_guided(None).loop, SIZES), replace(td3_bc(None), SIZES)
    sides = {GORL: Side({**configuration(gorl), "expert pairs": PAIRS}, {ERROR: measured(gorl, True)})}
    for weight in FIXED:
        fixed = replace(host, {"alpha": host.rule.objective.alpha / weight})
        sides[f"weight {weight:g}"] = Side(configuration(fixed), {ERROR: measured(fixed, False)})
    each = [side.numbers[ERROR] for name, side in sides.items() if name != GORL]
    return sides | {BEST: Side({"weights": FIXED}, {ERROR: np.min(each, axis=0)})}


CLAIM = Claim(
    method="gorl_guided",
    statement="Weights of single samples that are learnt from 100 expert pairs beat every weight that is one for all samples where the log is to be "
    "trusted in one place and not in another.",
    baseline="the host, TD3+BC, with each of nine weights; of each seed the best one of them",
    task="bandit with states in a square; in one half the log does what the expert does and the critic is misled, in the other the critic is right "
    f"and the log bad; {SAMPLES} logged actions, {UPDATES} updates of 256, two layers of 64, Adam 1e-3",
    run=run,
    checks=(
        Check(ERROR, GORL, over=BEST, ratio=True, below=0.5),
        Check(ERROR, GORL, over="weight 1", ratio=True, below=0.5),
    ),
    seconds=120,
)
