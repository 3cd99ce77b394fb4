"""Dr. GRPO: its gradient points where the expected reward grows, GRPO's does not."""

import dataclasses

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import COSINE, LENGTH, gradients, side, stopping
from polopt.data import testbeds
from polopt.loops.language import NoPenalty
from polopt.loops.prompting import Grouped
from polopt.methods.reasoning.dr_grpo import dr_grpo
from polopt.methods.reasoning.grpo import grpo

DRAWS, PROMPTS, SIZE = 2000, 8, 8


def problem(seed: int):
    return stopping(testbeds.autoregressive(prompts=PROMPTS, ones=0.3, seed=seed))


def run(seeds: list[int]) -> dict[str, Side]:
    sampler = Grouped(prompts=PROMPTS, completions=SIZE)
    task = problem(0)
    methods = {
        "Dr. GRPO": dataclasses.replace(dr_grpo(task), sampler=sampler, minibatches=1),
        "GRPO": dataclasses.replace(grpo(task), sampler=sampler, penalty=NoPenalty()),
    }
    sides = {}
    for name, method in methods.items():
        found = gradients(method, problem, seeds, DRAWS)
        numbers = {COSINE: found[COSINE]}
        if name == "Dr. GRPO":  # known exactly: the group's mean holds the own reward, and sums are divided by the greatest length
            numbers[LENGTH] = found[LENGTH] * SIZE / (SIZE - 1) * task.length
        sides[name] = side(method, numbers, {})
    return sides


CLAIM = Claim(
    method="dr_grpo",
    statement="Without the divisions by the deviation and by the length the gradient of GRPO is that of the expected reward, up to a constant.",
    baseline="GRPO without its penalty",
    task="T-AR of 8 prompts whose completions end at token 0, so that lengths differ; 2000 batches of 8 completions a prompt, at the first policy",
    run=run,
    checks=(
        Check(COSINE, "Dr. GRPO", above=0.99),
        Check(COSINE, "GRPO", below=0.97),
        Check(COSINE, "Dr. GRPO", over="GRPO", above=0.03),
        Check(LENGTH, "Dr. GRPO", above=0.97),
        Check(LENGTH, "Dr. GRPO", below=1.03),
    ),
    seconds=10,
)
