"""PROPS: data of an adapted behaviour are closer to the policy than its own draws, and older data can then be used once more."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import STEPS, configuration, simulated, train_curves
from polopt.core.parts import hyper, part, replace
from polopt.envs.exact import bandits, problems
from polopt.envs.exact.dynamics import BanditDynamics, TabularDynamics
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.task import ControlTask
from polopt.loops.behaviour import Buffered
from polopt.methods.policy_gradient.props import Clipped, props

SETTINGS = tuple((arms, samples) for arms in (5, 10) for samples in (100, 400))
DRAWS = 3  # data sets of a seed in each setting
GRID = "KL(data || policy) in the states of a 5 x 5 grid, 5 actions, 400 samples"
ERROR = {(arms, samples): f"KL(data || policy), {arms} actions, {samples} samples" for arms, samples in SETTINGS}
GOAL, BUDGET = 400, 30_000  # of CartPole: the return and the steps
EVERY = 64  # steps between two adaptations there; with the released 8 the claim takes a quarter of an hour
SPENT = f"steps to a return of {GOAL}"


@part
class TabularStep:
    """A gradient step of a fixed size on a table of logits: the weights of a policy that sees a unit vector, and not the bias they share."""

    rate: float = hyper(1.0, above=0)

    def init(self, params):
        return ()

    def update(self, gradient, state, params, progress):
        moved = params.head.weight - self.rate * gradient.head.weight
        return eqx.tree_at(lambda actor: actor.head.weight, params, moved), state


def collector(env, samples: int, adapted: bool):
    """A tabular policy that collects so many samples, with a behaviour adapted every 8 of them or without."""
    behaviour = Buffered(Clipped(step=TabularStep(), minibatches=1) if adapted else None, batches=1, every=8)
    method = dataclasses.replace(props(ControlTask(env, 1)), behaviour=behaviour)
    sizes = {"num_envs": 1, "num_steps": samples, "network.hidden": (), "critic": False, "normalise_rewards": False}
    return replace(method, {**sizes, "normalise_observations": False})


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def errors(env, samples: int, adapted: bool, keys):
    """The mean KL(pi_D || pi), over the samples of one data set a key, of a random softmax policy."""
    method = collector(env, samples, adapted)
    task = ControlTask(env, 1)

    def one(key, state):
        k_logits, k_collect = jax.random.split(key)
        head = state.learner.actor.head
        table = jax.random.normal(k_logits, head.weight.shape)
        state = eqx.tree_at(lambda s: (s.learner.actor.head.weight, s.learner.actor.head.bias), state, (table, jnp.zeros_like(head.bias)))
        rollout = method.behaviour.collect(method, env, state, k_collect)[1]
        places = jax.nn.one_hot(rollout.observation[:, 0], table.shape[0])
        counts = jnp.einsum("ns,na->sa", places, jax.nn.one_hot(rollout.raw_action[:, 0], table.shape[1]))
        visits = counts.sum(axis=1, keepdims=True)
        frequency = counts / jnp.maximum(visits, 1)
        kl = jax.scipy.special.xlogy(frequency, frequency) - frequency * jax.nn.log_softmax(table)
        return jnp.sum(visits * kl) / samples

    # Not by vmap; see polopt.claims.measures.
    return jax.vmap(one)(keys, jax.lax.map(lambda key: method.init(task, key), keys))


def sampling_errors(adapted: bool, seeds: list[int]) -> dict[str, np.ndarray]:
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), draw) for seed in seeds for draw in range(DRAWS)])
    grid = JaxEnvironment("grid", TabularDynamics(problems.gridworld(["....."] * 5, stay=True), 100))
    tasks = {GRID: (grid, 400)}
    for arms, samples in SETTINGS:
        bandit = BanditDynamics(bandits.random_bandit(jax.random.key(0), arms))
        tasks[ERROR[arms, samples]] = (JaxEnvironment("bandit", bandit), samples)
    return {name: np.asarray(errors(*given, adapted, keys), np.float64).reshape(-1, DRAWS).mean(axis=1) for name, given in tasks.items()}


def learner(behaviour, task, seeds: list[int]) -> Side:
    """PPO on CartPole with a behaviour: the steps after which a batch's mean return is at the goal; the whole budget where it never is."""
    method = dataclasses.replace(props(task), behaviour=behaviour)
    curves = train_curves(method, task, seeds)
    arrived = np.nan_to_num(curves.returns) >= GOAL
    spent = np.where(arrived.any(axis=1), curves.steps[arrived.argmax(axis=1)], curves.steps[-1]).astype(float)
    return Side(configuration(method), {SPENT: spent}, {"return": (curves.steps, curves.returns, STEPS)})


def run(seeds: list[int]) -> dict[str, Side]:
    task = simulated("CartPole-v1", BUDGET)
    behaviours = {
        "PPO, 1 batch": Buffered(None, batches=1),
        "PPO, 2 batches": Buffered(None, batches=2),
        "PROPS, 2 batches": dataclasses.replace(props(task).behaviour, every=EVERY),
    }
    sides = {name: learner(behaviour, task, seeds) for name, behaviour in behaviours.items()}
    for name, adapted in (("own draws", False), ("PROPS data", True)):
        sides[name] = Side({"every": 8, "step": 1.0, "data sets a seed": DRAWS}, sampling_errors(adapted, seeds))
    return sides


CLAIM = Claim(
    method="props",
    statement="With as many samples the data of an adapted behaviour are closer to the policy than its own draws, and PPO learns faster from "
    "two batches of such data than from two batches without adaptation, and no slower than from one batch.",
    baseline="independent draws of the policy; PPO on one batch and on two, with everything else the same",
    task="random softmax policies over 5 and 10 actions, 100 and 400 samples, adapted every 8 with a tabular step of 1, and the states of a "
    "5 x 5 grid; CartPole-v1, 30k steps, batches of 2048, adapted every 64",
    run=run,
    checks=(
        *(Check(name, "PROPS data", over="own draws", ratio=True, below=0.5) for name in ERROR.values()),
        Check(GRID, "PROPS data", over="own draws", ratio=True, below=1),
        Check(SPENT, "PROPS, 2 batches", over="PPO, 1 batch", below=1),
        Check(SPENT, "PROPS, 2 batches", over="PPO, 2 batches", below=0),
    ),
    seconds=240,
    slow=True,
)
