"""Knapsack RL: Unlocking Exploration of LLMs via Optimizing Budget Allocation.

Ziniu Li, Congliang Chen, Tianyun Yang, Tian Ding, Ruoyu Sun, Ge Zhang, Wenhao Huang, Zhi-Quan Luo. 2025. arXiv:2509.25849

The completions of an iteration are a budget, prompts are what they are spent on: few on what is solved, many on what is hard but not hopeless. With
p_i the success rate of prompt i in its last group and N_i its completions now,

    maximise sum_i V(N_i, p_i)   subject to  sum_i N_i = B,  low <= N_i <= up
    V(N, p)   = ( 1 - p^N - (1-p)^N ) p (1-p)^2        chance of a group with right and wrong answers, times what a gradient step then adds to p
    V(N+1, p) - V(N, p) = p (1-p)^2 ( p^N (1-p) + (1-p)^N p )       falls with N: taking the greatest gains one by one is optimal

What is left once all gains are negligible (below 1e-4, a choice) goes to prompts with p = 0 in turn, then to the others, the harder first: a prompt
that succeeds once in 50 often looks hopeless. Until every prompt of an iteration has been seen, its completions are shared out evenly. Groups differ
in size, so losses are averaged in each prompt first. An estimate from two completions is rough: `memory` keeps a part of the older one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped, Order, draw_prompts, no_verifier, shuffled, too_many, written
from polopt.loops.wording import Clipped
from polopt.methods._language import adam
from polopt.methods.registry import composition
from polopt.policies.language.sampling import Sampling


def value(count, success):
    """V(N, p)."""
    return (1 - success**count - (1 - success) ** count) * success * (1 - success) ** 2


def gain(count, success):
    """V(N + 1, p) - V(N, p)."""
    p = success
    return p * (1 - p) ** 2 * (p**count * (1 - p) + (1 - p) ** count * p)


def allocation(success, budget: int, low: int, up: int, negligible=1e-4):
    """N_i (M,) of prompts with success rates (M,): `budget` in all, each from low to up."""
    xp = array_namespace(success)
    p, count = success[:, None], xp.arange(low, up, dtype=success.dtype)[None, :]
    gains = gain(count, p)
    # A place in the queue behind every gain: in turn among the hopeless, then among the others, the harder ones first.
    behind = -(1 + count / up + xp.where(p > 0, 2 + p, xp.zeros_like(p)))
    order = xp.argsort(-xp.reshape(xp.where(gains > negligible, gains, behind), (-1,)), stable=True)
    taken = xp.reshape(xp.argsort(order), gains.shape) < budget - low * success.shape[0]
    return low + xp.sum(xp.astype(taken, xp.int32), axis=1)


class Known(NamedTuple):
    """The order of prompts, and what is known of each: its success rate (n,), and whether it was ever asked (n,)."""

    order: Order
    success: jax.Array
    seen: jax.Array


@part
class Knapsack:
    """`prompts` prompts in shuffled order, and `completions` of each on average, more where they are worth more."""

    prompts: int = hyper(8, at_least=1)  # different prompts an iteration
    completions: int = hyper(8, at_least=1)  # of each prompt on average
    low: int = hyper(2, at_least=1)  # fewest of a prompt
    up: int = hyper(128, at_least=2)  # most
    negligible: float = hyper(1e-4, at_least=0)  # gain of a completion below which those that never succeeded come first
    memory: float = hyper(0.0, at_least=0, below=1)  # weight of the older estimate of a success rate
    sampling: Sampling = Sampling()

    groups = Grouped.groups
    size = Grouped.size
    temperature = Grouped.temperature

    def refuse(self, task):
        if not self.low <= self.completions <= self.up:
            return f"gives each prompt from {self.low} to {self.up} completions, but {self.completions} on average. Set completions between these"
        return no_verifier(task) or too_many(task, self.prompts)

    def init(self, task, key) -> Known:
        n = len(task.prompts)
        return Known(shuffled(n, key), jnp.zeros((n,)), jnp.zeros((n,), bool))

    def gather(self, state: Known, task, policy, key):
        k_order, k_write = jax.random.split(key)
        prompts, order = draw_prompts(state.order, self.prompts, k_order)
        best = allocation(state.success[prompts], self.size, self.low, self.up, self.negligible)
        counts = jnp.where(jnp.all(state.seen[prompts]), best, self.completions)
        group = jnp.repeat(jnp.arange(self.prompts, dtype=jnp.int32), counts, total_repeat_length=self.size)
        batch = written(task, policy, prompts[group], k_write, self.sampling)
        return batch._replace(group=group), state._replace(order=order)

    def tell(self, state: Known, task, policy, batch) -> Known:
        n = state.success.shape[0]
        right, graded = (jnp.zeros((n,)).at[batch.index].add(x) for x in (jnp.where(batch.valid, batch.reward, 0.0), batch.valid.astype(jnp.float32)))
        found = jnp.clip(right / jnp.maximum(graded, 1.0), 0.0, 1.0)
        mixed = jnp.where(state.seen, self.memory * state.success + (1 - self.memory) * found, found)
        return state._replace(success=jnp.where(graded > 0, mixed, state.success), seen=state.seen | (graded > 0))


@composition
def knapsack_rl(task: LanguageTask | None = None) -> Language:
    """GRPO with a budget of 8 completions a prompt, spent where they are worth most."""
    return Language(
        sampler=Knapsack(), advantage=GroupRelative(), objective=Clipped(0.2, 0.28), step_rule=adam(task), aggregation=Aggregation("group_sequence")
    )
