"""GRPO: comparing answers of a prompt beats imitating the right ones."""

import dataclasses

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import SUCCESS, learn, side, success
from polopt.data import testbeds
from polopt.loops.credit import Raw
from polopt.loops.language import NoPenalty
from polopt.loops.prompting import Grouped
from polopt.loops.wording import LogLikelihood
from polopt.methods.reasoning.grpo import grpo
from polopt.optim.sgd import Sgd

STEPS, MIDDLE = 100, 50
HALF, END = "success half-way", "success at the end"


def problem(seed: int):
    return testbeds.linear(steps=STEPS, seed=seed)


def run(seeds: list[int]) -> dict[str, Side]:
    # every update of either has the same length, so neither is helped by the scale of its weights
    shared = dataclasses.replace(grpo(), sampler=Grouped(prompts=8, completions=8), step_rule=Sgd(1.0, norm=0.5), penalty=NoPenalty())
    methods = {"GRPO": shared, "RFT": dataclasses.replace(shared, advantage=Raw(), objective=LogLikelihood())}
    sides = {}
    for name, method in methods.items():
        curve = learn(method, problem, seeds, success)[SUCCESS]
        sides[name] = side(method, {HALF: curve[:, MIDDLE], END: curve[:, -1]}, {SUCCESS: curve})
    return sides


CLAIM = Claim(
    method="grpo",
    statement="Rewards relative to the group's, which punish wrong answers and weigh right ones by how rare they are, teach faster than imitating "
    "right answers.",
    baseline="online rejection fine-tuning: the likelihood of right answers, updates of the same length",
    task="T-LIN, 32 prompts, 10 answers, 12 features; 8 prompts of 8 completions an iteration, updates of norm 0.5, no penalty",
    run=run,
    checks=(
        Check(HALF, "GRPO", over="RFT", above=0.0),
        Check(END, "GRPO", over="RFT", above=0.0),
    ),
    seconds=10,
)
