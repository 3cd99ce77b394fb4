"""A*-PO: with one completion a prompt it learns as fast as GRPO with groups of eight."""

import dataclasses

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import SUCCESS, learn, side, success
from polopt.data import testbeds
from polopt.loops.language import Aggregation, NoPenalty
from polopt.loops.prompting import Grouped
from polopt.methods.reasoning.a_star_po import Regression, a_star_po
from polopt.methods.reasoning.grpo import grpo
from polopt.optim.sgd import Sgd

PROMPTS, STEPS, BETA = 64, 400, 0.01
EARLY, MIDDLE, END = (f"success after {n} iterations" for n in (20, 60, STEPS))


def problem(seed: int):
    return testbeds.bandit(prompts=PROMPTS, answers=20, low=0.02, high=0.6, steps=STEPS, seed=seed)


def run(seeds: list[int]) -> dict[str, Side]:
    # a step of 1 on (r - V* - beta l) for each prompt, and of .5 on the sum of a group's advantages
    regression = dataclasses.replace(a_star_po(), objective=Regression(BETA), step_rule=Sgd(PROMPTS / (2 * BETA)), minibatches=1)
    groups = dataclasses.replace(
        grpo(), sampler=Grouped(8, 8), penalty=NoPenalty(), aggregation=Aggregation("constant", scale=1.0), step_rule=Sgd(0.5 * 64)
    )
    sides = {}
    for name, method in {"A*-PO": regression, "GRPO": groups}.items():
        curve = learn(method, problem, seeds, success)[SUCCESS]
        sides[name] = side(method, {EARLY: curve[:, 20], MIDDLE: curve[:, 60], END: curve[:, -1]}, {SUCCESS: curve})
    return sides


CLAIM = Claim(
    method="a_star_po",
    statement="With values estimated once, before training, one completion of each prompt teaches as fast as GRPO's groups of 8 do, at equally many "
    "completions an iteration.",
    baseline="GRPO, 8 prompts of 8 completions, without a penalty",
    task="T-BANDIT, 64 prompts of success .02 to .6, 20 answers, 64 completions an iteration; A*-PO: 8 trials of each prompt first, temperatures .5 "
    "and .01",
    run=run,
    checks=(
        Check(MIDDLE, "A*-PO", over="GRPO", above=-0.01),
        Check(END, "A*-PO", above=0.98),
    ),
    seeds=30,
    seconds=15,
)
