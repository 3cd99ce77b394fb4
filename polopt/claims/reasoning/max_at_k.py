"""max@k: who wants the best of four takes the risky arm, who wants the mean the safe one."""

from dataclasses import replace

import jax.numpy as jnp

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import learn, side
from polopt.claims.lotteries import Outcome, best_of, lottery
from polopt.envs.exact import sequences
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods.reasoning.max_at_k import MaxAtK
from polopt.optim.sgd import Sgd

PROMPTS, COMPLETIONS, K, RATE = 20, 8, 4, 0.5  # the rate of each problem's own table, whose gradient is a mean over its completions
SAFE, RISKY = Outcome(0, 1.0, 0.5), (Outcome(1, 0.25, 1.0), Outcome(1, 0.75, 0.0))
OUTCOMES = (SAFE, *RISKY, Outcome(2, 1.0, 0.1), Outcome(3, 1.0, 0.15), Outcome(4, 1.0, 0.2), Outcome(5, 1.0, 0.25))
BEST, MEAN = f"exact E max of {K}", "exact E reward"


def observe(task, policy):
    rewards = jnp.array([o.reward for o in OUTCOMES])
    log_p = policy.log_probs()
    return {BEST: jnp.mean(best_of(log_p, rewards, K)), MEAN: jnp.mean(sequences.expected(log_p, rewards))}


def run(seeds: list[int]) -> dict[str, Side]:
    grpo = Language(
        sampler=Grouped(PROMPTS, COMPLETIONS),
        advantage=GroupRelative(),
        objective=Clipped(),
        step_rule=Sgd(RATE * PROMPTS),
        aggregation=Aggregation("sequence"),
    )
    sides = {}
    for name, method in {"max@4": replace(grpo, advantage=MaxAtK(K)), "GRPO": grpo}.items():
        curves = learn(method, lambda seed: lottery(OUTCOMES, prompts=PROMPTS, steps=300), seeds, observe)
        curves = {m: curves[m] for m in (BEST, MEAN)}
        sides[name] = side(method, {m: v[:, -1] for m, v in curves.items()}, curves)
    return sides


CLAIM = Claim(
    method="max_at_k",
    statement="What maximises the best of four completions takes an arm that seldom pays much, where GRPO takes the one that always pays some.",
    baseline="GRPO with the same rewards",
    task="6 arms: .5 for sure, 1 with probability .25 (best of 4: .68), and .1 to .25; 20 problems, 8 completions each, SGD with rate .5, 300 steps",
    run=run,
    checks=(
        Check(BEST, "max@4", over="GRPO", above=0.15),
        Check(MEAN, "max@4", over="GRPO", below=0.0),
    ),
    seconds=5,
)
