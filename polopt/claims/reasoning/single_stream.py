"""Single-stream: no completion is wasted, and no completion waits for its group."""

import dataclasses
import heapq

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import SUCCESS, learn, side, success
from polopt.core.parts import part
from polopt.data import testbeds
from polopt.loops.language import Aggregation, NoPenalty
from polopt.loops.prompting import Grouped, written
from polopt.methods.reasoning.grpo import grpo
from polopt.methods.reasoning.single_stream import single_stream
from polopt.optim.sgd import Sgd
from polopt.policies.language.sampling import Sampling

PROMPTS, SIZE, STEPS, RATE = 256, 64, 200, 0.6
RESPONSES, SLOTS = 2048, 64
HALF, END = "success after 100 iterations", "success after 200 iterations"
WASTED, SPEED = "share of groups without a gradient", "completions in the time of one batch after another"


@part
class Independent:
    """Prompts drawn anew in every iteration, not in epochs."""

    prompts: int = 8
    completions: int = 8

    groups = Grouped.groups
    size = Grouped.size
    temperature = 1.0
    refuse = Grouped.refuse
    tell = Grouped.tell

    def init(self, task, key):
        return ()

    def gather(self, state, task, policy, key):
        k_prompts, k_write = jax.random.split(key)
        prompts = jax.random.choice(k_prompts, len(task.prompts), (self.prompts,), replace=False).astype(jnp.int32)
        return written(task, policy, prompts, k_write, Sampling(), repeats=self.completions), state


def problem(seed: int):
    rates = 0.02 + 0.96 * np.random.default_rng(seed).beta(0.6, 0.6, PROMPTS)
    return testbeds.bandit(prompts=PROMPTS, success=rates, steps=STEPS, seed=seed)


def speed_up(seed: int) -> float:
    """Of refilling a slot as soon as it is free, over waiting for the slowest of every batch."""
    latency = np.random.default_rng(seed).lognormal(0, 1, RESPONSES)
    waiting = latency.reshape(-1, SLOTS).max(axis=1).sum()
    free = [0.0] * SLOTS
    for time in latency:
        heapq.heappush(free, heapq.heappop(free) + time)
    return waiting / max(free)


def run(seeds: list[int]) -> dict[str, Side]:
    step, sums = Sgd(RATE * SIZE), Aggregation("constant", scale=1.0)
    stream = dataclasses.replace(single_stream(), step_rule=step, aggregation=sums, minibatches=1)
    groups = dataclasses.replace(grpo(), sampler=Independent(), penalty=NoPenalty(), step_rule=step, aggregation=sums)
    methods = {"SPO": stream, "GRPO": groups, "GRPO in epochs": dataclasses.replace(groups, sampler=Grouped(8, 8))}
    sides = {}
    for name, method in methods.items():
        found = learn(method, problem, seeds, success)
        curve = found[SUCCESS]
        numbers = {HALF: curve[:, 100], END: curve[:, -1]}
        if name == "SPO":
            numbers[SPEED] = np.array([speed_up(seed) for seed in seeds])
        else:
            numbers[WASTED] = 1 - found["groups/informative"].mean(axis=1)
        sides[name] = side(method, numbers, {SUCCESS: curve})
    return sides


CLAIM = Claim(
    method="single_stream",
    statement="At equally many completions single ones with a tracked baseline learn faster half-way through training than groups, most of which "
    "say nothing; and nothing waits for the slowest of a group.",
    baseline="GRPO, 8 prompts of 8 completions, without a penalty; prompts drawn independently, and in epochs",
    task="T-BANDIT, 256 prompts of success .02 + .96 Beta(.6, .6), 10 answers, 64 completions an iteration, steps of .6; 2048 lognormal(0, 1) "
    "latencies on 64 slots",
    run=run,
    checks=(
        Check(HALF, "SPO", over="GRPO", above=0.02),
        Check(HALF, "SPO", over="GRPO in epochs", above=0.0),
        Check(WASTED, "GRPO", above=0.5),
        Check(SPEED, "SPO", above=3.0),
    ),
    seconds=15,
    analysis="All holds but one check. A stricter baseline is there too: GRPO whose prompts come in shuffled epochs, as trainers draw them, and "
    "not independently. It closes three quarters of the gap (.892 half-way, against .859 and SPO's .904), so most of the gain over the other is "
    "that no prompt is missed for long; what remains is .011 with an interval from -.002 to .026, too little for ten seeds.",
)
