"""RLOO: unbiased with two completions of a prompt, and quieter than REINFORCE."""

import dataclasses

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import COSINE, LENGTH, VARIANCE, gradients, side, stopping
from polopt.data import testbeds
from polopt.loops.credit import Centred, Raw
from polopt.loops.language import NoPenalty
from polopt.loops.prompting import Grouped
from polopt.methods.reasoning.rloo import rloo

DRAWS, PROMPTS = 2000, 8
PAIRS = "projection on the gradient of E[r] with pairs, over its length"


def problem(seed: int):
    return stopping(testbeds.autoregressive(prompts=PROMPTS, seed=seed))


def run(seeds: list[int]) -> dict[str, Side]:
    four = dataclasses.replace(rloo(), penalty=NoPenalty(), sampler=Grouped(prompts=PROMPTS, completions=4))
    two = dataclasses.replace(four, sampler=Grouped(prompts=PROMPTS, completions=2))
    mean, raw = dataclasses.replace(two, advantage=Centred()), dataclasses.replace(four, advantage=Raw())
    found, pairs, of_mean, of_raw = (gradients(method, problem, seeds, DRAWS) for method in (four, two, mean, raw))
    numbers = {COSINE: found[COSINE], LENGTH: found[LENGTH], PAIRS: pairs[LENGTH], VARIANCE: found[VARIANCE]}
    return {
        "RLOO": side(four, numbers, {}),
        "group mean": side(mean, {PAIRS: of_mean[LENGTH]}, {}),
        "REINFORCE": side(raw, {VARIANCE: of_raw[VARIANCE]}, {}),
    }


CLAIM = Claim(
    method="rloo",
    statement="The mean of the others is a baseline that leaves the gradient unbiased, for pairs too, and takes most of REINFORCE's variance.",
    baseline="REINFORCE without a baseline, and with the mean of the whole group",
    task="T-AR of 8 prompts whose completions end at token 0; 2000 batches of 4 (or 2) completions a prompt, at the first policy, no penalty",
    run=run,
    checks=(
        Check(COSINE, "RLOO", above=0.99),
        Check(LENGTH, "RLOO", above=0.97),
        Check(LENGTH, "RLOO", below=1.03),
        Check(PAIRS, "RLOO", above=0.97),
        Check(PAIRS, "RLOO", below=1.03),
        Check(PAIRS, "group mean", below=0.55),
        Check(VARIANCE, "RLOO", over="REINFORCE", ratio=True, below=0.9),
    ),
    seconds=20,
)
