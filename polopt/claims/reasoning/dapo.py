"""DAPO: every group of an update says something, and the same number of updates teaches more."""

import dataclasses

import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import SUCCESS, learn, side, success
from polopt.data import testbeds
from polopt.loops.prompting import Grouped, Informative
from polopt.methods.reasoning.dapo import dapo
from polopt.optim.adam import Adam

STEPS, PROMPTS = 60, 64
INFORMATIVE, AREA = "share of groups with a gradient", "mean success over training"


def problem(seed: int):
    """Half of the prompts hopeless or solved, as a run meets them."""
    rates = np.concatenate([np.full(16, 0.98), np.full(16, 0.01), np.linspace(0.1, 0.6, 32)])
    return testbeds.bandit(prompts=PROMPTS, success=rates, steps=STEPS, seed=seed)


def run(seeds: list[int]) -> dict[str, Side]:
    step = Adam(0.1, anneal=False, max_grad_norm=1.0, epsilon=1e-8)
    method = dataclasses.replace(dapo(problem(0)), step_rule=step, sampler=Informative(tries=16))
    methods = {"DAPO": method, "without dynamic sampling": dataclasses.replace(method, sampler=Grouped())}
    sides = {}
    for name, method in methods.items():
        found = learn(method, problem, seeds, success)
        curve = found[SUCCESS]
        numbers = {INFORMATIVE: found["groups/informative"].mean(axis=1), AREA: curve.mean(axis=1)}
        sides[name] = side(method, numbers, {SUCCESS: curve})
    return sides


CLAIM = Claim(
    method="dapo",
    statement="Drawing prompts until every group has right and wrong answers leaves no group of an update without a gradient, and learns faster "
    "for the same number of updates (it writes more completions for them).",
    baseline="the same without dynamic sampling",
    task="T-BANDIT, 64 prompts, a quarter solved (.98), a quarter hopeless (.01), the others .1 to .6; 8 groups of 8, Adam at .1, 60 iterations",
    run=run,
    checks=(
        Check(INFORMATIVE, "DAPO", above=0.95),
        Check(INFORMATIVE, "without dynamic sampling", below=0.7),
        Check(AREA, "DAPO", over="without dynamic sampling", above=0.01),
    ),
    seconds=15,
)
