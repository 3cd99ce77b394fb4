"""2-GRPO: pairs do nearly what groups of sixteen do, for an eighth of the completions."""

import dataclasses

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import SUCCESS, learn, side, success
from polopt.data import testbeds
from polopt.loops.language import Aggregation
from polopt.loops.prompting import Grouped
from polopt.methods.reasoning.two_grpo import two_grpo
from polopt.optim.sgd import Sgd

PROMPTS, STEPS, HALF = 64, 150, 75
POOL, LONG, POINTS = 512, 400, (100, 200, 400)
MIDDLE, END = "success after 75 iterations, equal prompts", "success after 150 iterations, equal prompts"


def after(steps: int) -> str:
    return f"success after {steps} iterations, equal completions"


def problem(seed: int):
    return testbeds.bandit(prompts=PROMPTS, low=0.1, high=0.8, steps=STEPS, seed=seed)


def large(seed: int):
    return testbeds.bandit(prompts=POOL, low=0.1, high=0.8, steps=LONG, seed=seed)


def run(seeds: list[int]) -> dict[str, Side]:
    method = dataclasses.replace(two_grpo(), aggregation=Aggregation("constant", scale=1.0), minibatches=1)
    sides = {}
    for name, size in (("G = 2", 2), ("G = 16", 16)):
        every = dataclasses.replace(method, sampler=Grouped(prompts=PROMPTS, completions=size), step_rule=Sgd(1.0 * PROMPTS))
        # 256 completions an iteration; pairs have weights of p(1 - p) where groups have sqrt(p(1 - p)), so their step is doubled
        few = dataclasses.replace(method, sampler=Grouped(prompts=256 // size, completions=size), step_rule=Sgd(32.0 if size == 2 else 16.0))
        curve, longer = learn(every, problem, seeds, success)[SUCCESS], learn(few, large, seeds, success)[SUCCESS]
        numbers = {MIDDLE: curve[:, HALF], END: curve[:, -1], **{after(n): longer[:, n] for n in POINTS}}
        sides[name] = side(every, numbers, {SUCCESS: curve, f"{SUCCESS}, equal completions": longer})
    return sides


CLAIM = Claim(
    method="two_grpo",
    statement="With equally many prompts, groups of 2 end within two points of groups of 16, for an eighth of the completions; with equally many "
    "completions and a step that is doubled for their smaller weights they are as good.",
    baseline="the same with groups of 16",
    task="T-BANDIT, 10 answers, success .1 to .8: 64 prompts, all in every iteration, plain steps of 1 a prompt; and 512 prompts, 256 completions an "
    "iteration",
    run=run,
    checks=(
        Check(MIDDLE, "G = 2", over="G = 16", above=-0.02),
        Check(END, "G = 2", over="G = 16", above=-0.01),
        *(Check(after(n), "G = 2", over="G = 16", above=-0.03) for n in POINTS),
        *(Check(after(n), "G = 2", over="G = 16", below=0.03) for n in POINTS),
    ),
    seeds=20,
    seconds=20,
)
