"""S2PG: notes to itself solve a memory task without backpropagation through time, and their gradient is cheaper than a recurrent network's."""

import time

import jax
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import FINAL_RETURN, configuration, trained
from polopt.core.networks import Network
from polopt.core.parts import replace
from polopt.envs.exact import tabular
from polopt.envs.exact.dynamics import TabularDynamics
from polopt.envs.exact.problems import cue
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.task import ControlTask
from polopt.loops.descent import Descent
from polopt.loops.on_policy import OnPolicy
from polopt.loops.surrogates import LogLikelihood
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.policy_gradient.ppo import ppo
from polopt.methods.policy_gradient.s2pg import s2pg
from polopt.optim.adam import Adam

LENGTH, EPISODES, UPDATES = 5, 500, 800  # of the tabular task
LONGER, STEPS = 8, 400_000  # of the task with a network
SEQUENCES, HORIZON, WIDTH, REPEATS = 64, 128, 64, 30  # of the timed gradient
TIME = "seconds for one gradient"


def tabular_task(mdp) -> ControlTask:
    return ControlTask(JaxEnvironment("cue", TabularDynamics(mdp)), UPDATES * EPISODES * LENGTH)


def tabular_method() -> OnPolicy:
    """A table of logits, the return of whole episodes, one step of Adam .05 a batch."""
    step = Adam(learning_rate=0.05, anneal=False, max_grad_norm=None)
    sizes = dict(num_envs=EPISODES, num_steps=LENGTH, critic=False, standardise="batch")
    return OnPolicy(LogLikelihood(), GAE(discount=1.0, lam=1.0), Descent(step, epochs=1, minibatches=1), network=Network(hidden=()), **sizes)


def seconds(methods: dict, seed: int) -> dict[str, float]:
    """The median time of the policy's gradient on SEQUENCES of HORIZON steps, the methods in turn."""
    task = ControlTask(JaxEnvironment("cue", TabularDynamics(cue(LONGER))), 1)
    timed = {}
    for name, method in methods.items():
        state = jax.jit(lambda key, m=method: m.init(task, key))(jax.random.key(seed))
        batch = jax.jit(lambda s, m=method: m.judge(s, s.acting, m.collect(task.env, s, s.key)[1])[0])(state)
        gradient = jax.jit(jax.grad(lambda actor, b, m=method: m.policy_loss(actor, (), b)[0]))
        jax.block_until_ready(gradient(state.learner.actor, batch))
        timed[name] = (gradient, state.learner.actor, batch, [])
    for _ in range(REPEATS):
        for gradient, actor, batch, found in timed.values():
            began = time.perf_counter()
            jax.block_until_ready(gradient(actor, batch))
            found.append(time.perf_counter() - began)
    return {name: float(np.median(found)) for name, (*_, found) in timed.items()}


def run(seeds: list[int]) -> dict[str, Side]:
    options = dict(episodes=500)
    sides = {
        "tabular notes": trained(tabular_method(), tabular_task(tabular.with_memory(cue(LENGTH), 2)), seeds, **options),
        "tabular without memory": trained(tabular_method(), tabular_task(cue(LENGTH)), seeds, **options),
    }
    task = ControlTask(JaxEnvironment("cue", TabularDynamics(cue(LONGER))), STEPS)
    sides["PPO with notes"] = trained(replace(s2pg(task), {"memory.size": 2}), task, seeds, **options)
    sizes = {"num_envs": SEQUENCES, "num_steps": HORIZON, "network.hidden": (WIDTH,)}
    timed = {
        "notes": replace(s2pg(task), {**sizes, "memory.size": WIDTH}),
        "GRU": replace(ppo(task), {**sizes, "network.core": "gru", "network.core_size": WIDTH}),
    }
    medians = [seconds(timed, seed) for seed in seeds]
    return sides | {name: Side(configuration(m), {TIME: np.array([found[name] for found in medians])}) for name, m in timed.items()}


CLAIM = Claim(
    method="s2pg",
    statement="A stochastic internal state learnt as a part of the action solves a memory task without backpropagation through time, where a "
    "policy without memory is at chance, and one gradient takes less time than a recurrent network's.",
    baseline="the same learner without memory; a GRU of the same width with backpropagation through time",
    task="the cue task: a bit shown at the first step decides the right last action; a table of 2 notes at length 5 (500 episodes an update, 800 "
    "updates), PPO with 2 Gaussian numbers at length 8 (400k steps); the median time of a gradient on 64 sequences of 128 steps, width 64",
    run=run,
    checks=(
        Check(FINAL_RETURN, "tabular notes", above=0.95),
        Check(FINAL_RETURN, "tabular without memory", above=0.4),
        Check(FINAL_RETURN, "tabular without memory", below=0.6),
        Check(FINAL_RETURN, "PPO with notes", above=0.9),
        Check(TIME, "notes", over="GRU", ratio=True, below=0.5),
    ),
    seconds=60,
)
