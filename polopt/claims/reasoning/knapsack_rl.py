"""Knapsack RL: the same number of completions, spent where it helps, finds more informative groups and solves hard prompts sooner."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import learn, side
from polopt.data.testbeds import bandit, exact_returns
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods.reasoning.knapsack_rl import Knapsack, allocation
from polopt.optim.sgd import Sgd

SOLVED, MIDDLING, HARD = 48, 8, 8  # prompts
SUCCESS = np.repeat([0.998, 0.3, 0.02], [SOLVED, MIDDLING, HARD])
PROMPTS, COMPLETIONS, RATE = len(SUCCESS), 8, 0.3
SHARE = "expected share of informative groups, success rates known"
SOLVING, FOUND = "exact accuracy on hard prompts at the end", "share of informative groups in training"


def informative(counts) -> float:
    return float(np.mean(1 - SUCCESS**counts - (1 - SUCCESS) ** counts))


def problem(seed: int):
    return bandit(prompts=PROMPTS, answers=20, success=SUCCESS, seed=seed, steps=60)


def run(seeds: list[int]) -> dict[str, Side]:
    uniform = Language(
        sampler=Grouped(PROMPTS, COMPLETIONS),
        advantage=GroupRelative(),
        objective=Clipped(0.2, 0.28),
        step_rule=Sgd(RATE * PROMPTS),
        aggregation=Aggregation("group_sequence"),
    )
    methods = {"knapsack": replace(uniform, sampler=Knapsack(PROMPTS, COMPLETIONS)), "uniform": uniform}
    counts = {"knapsack": allocation(SUCCESS, PROMPTS * COMPLETIONS, 2, 128), "uniform": np.full(PROMPTS, COMPLETIONS)}
    sides = {}
    for name, method in methods.items():
        curves = learn(method, problem, seeds, lambda task, policy: {"hard": jnp.mean(exact_returns(task, policy)[-HARD:])})
        share = np.full(len(seeds), informative(counts[name]))
        numbers = {SHARE: share, SOLVING: curves["hard"][:, -1], FOUND: curves["groups/informative"].mean(1)}
        sides[name] = side(method, numbers, {"exact accuracy on hard prompts": curves["hard"]})
    return sides


CLAIM = Claim(
    method="knapsack_rl",
    statement="With as many completions in all, spending them by the knapsack raises the expected share of informative groups and solves hard "
    "prompts sooner.",
    baseline="as many completions for every prompt",
    task="bandit of 64 prompts and 20 answers, one right: first success .998 (48 prompts), .3 (8) and .02 (8); 512 completions a step, 60 steps, "
    "rate .3",
    run=run,
    checks=(
        Check(SHARE, "knapsack", over="uniform", ratio=True, above=1.2),
        Check(SOLVING, "knapsack", over="uniform", above=0.05),
    ),
    seconds=10,
)
