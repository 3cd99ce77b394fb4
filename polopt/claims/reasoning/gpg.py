"""GPG: prompts that say nothing do not slow down those that do."""

import dataclasses

import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import learn, side
from polopt.data import testbeds
from polopt.loops.credit import Centred
from polopt.loops.language import Aggregation
from polopt.loops.prompting import Grouped
from polopt.methods.reasoning.gpg import gpg
from polopt.optim.sgd import Sgd

STEPS, PROMPTS, MIDDLE, GOAL = 60, 40, 8, 0.9
TIME, CURVE = "iterations until the informative prompts are solved (.9)", "success on the informative prompts"


def problem(seed: int):
    success = np.concatenate([np.full(MIDDLE, 0.3), np.full(16, 0.995), np.full(16, 0.002)])
    return testbeds.bandit(prompts=PROMPTS, success=success, steps=STEPS, seed=seed)


def observe(task, policy):
    return {CURVE: testbeds.exact_returns(task, policy)[:MIDDLE].mean()}


def run(seeds: list[int]) -> dict[str, Side]:
    method = dataclasses.replace(
        gpg(),
        sampler=Grouped(prompts=PROMPTS, completions=8),
        aggregation=Aggregation("constant", scale=1.0),
        step_rule=Sgd(1.0 * PROMPTS),  # 1 for each prompt: the loss is a mean over them
    )
    methods = {"GPG": method, "without alpha": dataclasses.replace(method, advantage=Centred())}
    sides = {}
    for name, method in methods.items():
        curve = learn(method, problem, seeds, observe)[CURVE]
        reached = np.where((curve >= GOAL).any(axis=1), (curve >= GOAL).argmax(axis=1), STEPS + 1)
        sides[name] = side(method, {TIME: reached.astype(float)}, {CURVE: curve})
    return sides


CLAIM = Claim(
    method="gpg",
    statement="Where most prompts of a batch are always or never solved, alpha gives the others the step that they would have had alone.",
    baseline="the same without alpha (Dr. GRPO's advantage)",
    task="T-BANDIT, 40 prompts of success .995 (16), .002 (16) and .3 (8), 10 answers, all prompts in every iteration, 8 completions of each, plain "
    "gradient steps of 1 a prompt; under Adam a constant factor would cancel",
    run=run,
    checks=(Check(TIME, "GPG", over="without alpha", ratio=True, below=0.4),),
    seeds=20,
    seconds=12,
)
