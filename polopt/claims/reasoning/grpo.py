"""GRPO: what a prompt pays for any answer does not matter, without a critic.

With rewards of 0 and 1 alone there is no clear gain over imitating right answers on this problem: .791 against .786 on seeds 100 to 109, each at its
best Adam rate of ten; with plain steps of one length imitation was ahead by .02.
"""

import dataclasses

import jax
import jax.numpy as jnp

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import learn, side
from polopt.data import testbeds
from polopt.loops.credit import Raw
from polopt.loops.language import NoPenalty
from polopt.loops.prompting import Grouped
from polopt.methods.reasoning.grpo import grpo
from polopt.optim.adam import Adam

STEPS = 100
SUCCESS, END = "exact success", "exact success at the end"


def problem(seed: int):
    """T-LIN whose prompts pay 0 to 2 for any answer, and 1 more for the right one."""
    task = testbeds.linear(steps=STEPS, seed=seed)
    offset = jax.random.uniform(jax.random.key(seed), (len(task.prompts), 1), maxval=2.0)
    return dataclasses.replace(task, prompts=dataclasses.replace(task.prompts, facts=task.prompts.facts + offset))


def observe(task, policy):
    return {SUCCESS: jnp.mean(testbeds.exact_returns(task, policy) - jnp.min(task.prompts.facts, axis=1))}


def run(seeds: list[int]) -> dict[str, Side]:
    step = Adam(0.3, anneal=False, max_grad_norm=None, epsilon=1e-8)
    shared = dataclasses.replace(grpo(), sampler=Grouped(prompts=8, completions=8), step_rule=step, penalty=NoPenalty())
    plain = dataclasses.replace(shared, advantage=Raw())
    slow = dataclasses.replace(plain, step_rule=dataclasses.replace(step, learning_rate=0.05))
    methods = {"GRPO": shared, "REINFORCE": plain, "REINFORCE, small steps": slow}
    sides = {}
    for name, method in methods.items():
        curve = learn(method, problem, seeds, observe)[SUCCESS]
        sides[name] = side(method, {END: curve[:, -1]}, {SUCCESS: curve})
    return sides


CLAIM = Claim(
    method="grpo",
    statement="The mean and the deviation of a completion's own group stand in for a critic: what a prompt pays for any answer is taken out.",
    baseline="REINFORCE, which has neither a baseline nor a critic, at the same step size and at a sixth of it",
    task="T-LIN, 32 prompts, 10 answers, 12 features, rewards raised by U(0, 2) for each prompt; 8 prompts of 8 completions an iteration, 100 "
    "iterations, Adam at .3, no penalty",
    run=run,
    checks=(
        Check(END, "GRPO", over="REINFORCE", above=0.03),
        Check(END, "GRPO", over="REINFORCE, small steps", above=0.03),
    ),
    seconds=15,
)
