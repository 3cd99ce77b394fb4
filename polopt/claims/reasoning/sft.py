"""SFT: the demonstrations' likelihood is reached."""

import jax.numpy as jnp

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import SUCCESS, learn, side, success
from polopt.core import parts
from polopt.data import testbeds
from polopt.methods.reasoning.sft import sft

STEPS = 300
LOSS = "mean negative log-likelihood of a demonstration's token"
FIRST, LAST, END = f"{LOSS} at first", f"{LOSS} at the end", "success at the end"


def problem(seed: int):
    return testbeds.autoregressive(prompts=16, length=4, vocabulary=3, seed=seed, steps=STEPS)


def observe(task, policy):
    given = task.prompts
    shown = policy.score(given.tokens, given.mask, given.demonstration, given.demonstration_mask).log_prob
    return {LOSS: -jnp.mean(shown), **success(task, policy)}


def run(seeds: list[int]) -> dict[str, Side]:
    method = parts.replace(sft(problem(0)), {"learning_rate": 0.05, "anneal": False})
    found = learn(method, problem, seeds, observe)
    numbers = {FIRST: found[LOSS][:, 0], LAST: found[LOSS][:, -1], END: found[SUCCESS][:, -1]}
    return {"SFT": side(method, numbers, {LOSS: found[LOSS], SUCCESS: found[SUCCESS]})}


CLAIM = Claim(
    method="sft",
    statement="Maximum likelihood reproduces the demonstrations of its prompts, and does what they do.",
    baseline="the policy that training starts from",
    task="T-AR, 16 prompts with one right answer each as the demonstration, Adam at a constant .05, 300 iterations of all of them",
    run=run,
    checks=(
        Check(FIRST, "SFT", above=0.5),
        Check(LAST, "SFT", below=0.01),
        Check(END, "SFT", above=0.95),
    ),
    seconds=10,
)
