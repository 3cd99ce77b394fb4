"""RAFT: imitating the best of N is learning from rewards, imitating all is not."""

import dataclasses

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import SUCCESS, learn, side, success
from polopt.data import testbeds
from polopt.loops.credit import Ones
from polopt.loops.language import Everything, NoPenalty
from polopt.loops.prompting import Grouped
from polopt.methods.reasoning.best_of_n import best_of_n
from polopt.methods.reasoning.grpo import grpo
from polopt.optim.adam import Adam

STEPS = 60
END = "exact success at the end"


def problem(seed: int):
    return testbeds.linear(steps=STEPS, seed=seed)


def run(seeds: list[int]) -> dict[str, Side]:
    shared = dict(sampler=Grouped(8, 8), step_rule=Adam(0.3, anneal=False, max_grad_norm=None, epsilon=1e-8))
    best = dataclasses.replace(best_of_n(), **shared)
    methods = {
        "RAFT": best,
        "all imitated": dataclasses.replace(best, selection=Everything(), advantage=Ones()),
        "GRPO": dataclasses.replace(grpo(), penalty=NoPenalty(), **shared),
    }
    curves = {name: learn(method, problem, seeds, success)[SUCCESS] for name, method in methods.items()}
    return {name: side(method, {END: curves[name][:, -1]}, {SUCCESS: curves[name]}) for name, method in methods.items()}


CLAIM = Claim(
    method="best_of_n",
    statement="Imitating the best of eight completions climbs as far as a policy gradient from the same completions; the ranking does it.",
    baseline="imitation of all eight, and GRPO, each at the best of three step sizes, which is .3 for all but imitation, for which none helps",
    task="T-LIN, 32 prompts, 10 answers, 12 features; 8 prompts of 8 completions an iteration, 60 iterations",
    run=run,
    checks=(
        Check(END, "RAFT", over="all imitated", above=0.3),
        Check(END, "RAFT", over="GRPO", above=-0.05),
    ),
    seconds=10,
)
