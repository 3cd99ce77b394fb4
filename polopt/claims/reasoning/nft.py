"""NFT: what is wrong teaches as much as GRPO learns from it, by likelihood alone."""

from dataclasses import replace

import jax.numpy as jnp

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import learn, side
from polopt.data.testbeds import bandit, exact_returns
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods.reasoning.nft import ImplicitNegative, PromptWeight
from polopt.optim.sgd import Sgd

PROMPTS, RATE = 32, 0.5  # the rate of each prompt's own table, whose gradient is a mean over its completions
SHORT, MIDDLE, LAST = (f"exact accuracy after {n} batches" for n in (10, 30, 60))


def problem(seed: int):
    return bandit(prompts=PROMPTS, answers=20, low=0.05, high=0.5, seed=seed, steps=60)


def run(seeds: list[int]) -> dict[str, Side]:
    nft = Language(
        sampler=Grouped(PROMPTS, 8),
        advantage=PromptWeight(),
        objective=ImplicitNegative(),
        step_rule=Sgd(RATE * PROMPTS),
        aggregation=Aggregation("constant"),
        epochs=4,
    )
    methods = {
        "NFT": nft,
        "rejection fine-tuning": replace(nft, objective=ImplicitNegative(negative_weight=0.0)),
        "Dr. GRPO": replace(nft, advantage=GroupRelative("none"), objective=Clipped(0.2, 0.28)),
        "GRPO": replace(nft, advantage=GroupRelative(), objective=Clipped(0.2, 0.28)),
    }
    return {name: measured(method, seeds) for name, method in methods.items()}


def measured(method, seeds) -> Side:
    accuracy = learn(method, problem, seeds, lambda task, policy: {"accuracy": jnp.mean(exact_returns(task, policy))})["accuracy"]
    return side(method, {SHORT: accuracy[:, 10], MIDDLE: accuracy[:, 30], LAST: accuracy[:, 60]}, {"exact accuracy": accuracy})


CLAIM = Claim(
    method="nft",
    statement="Likelihood of right answers and, under the implicit negative policy, of wrong ones learns far faster than rejection fine-tuning, "
    "which has the right ones alone, and as well as GRPO.",
    baseline="the same loss without its negative part (rejection fine-tuning); Dr. GRPO and GRPO, both clipped at .2 and .28",
    task="bandit of 32 prompts and 20 answers, one right, first success .05 to .5; 8 completions of each prompt, 60 batches of 4 updates by SGD, "
    "rate .5",
    run=run,
    checks=(
        Check(MIDDLE, "NFT", over="rejection fine-tuning", above=0.05),
        *(Check(m, "NFT", over="Dr. GRPO", above=-0.02) for m in (MIDDLE, LAST)),
        *(Check(m, "NFT", over="Dr. GRPO", below=0.02) for m in (MIDDLE, LAST)),
        Check(LAST, "NFT", over="GRPO", above=-0.03),
        Check(LAST, "NFT", over="GRPO", below=0.03),
    ),
    seeds=20,
    seconds=10,
)
