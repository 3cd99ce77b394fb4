"""Language tasks whose rewards are drawn: a policy over arms that writes, as its token, what the chosen arm paid."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.data.language import LanguageTask
from polopt.data.prompts import make_prompts, on_device
from polopt.data.tokenizer import NumberTokenizer
from polopt.data.verifiers import Lookup
from polopt.policies.language.tabular import TabularPolicy


class Outcome(NamedTuple):
    """What an arm may pay."""

    arm: int
    chance: float
    reward: float


class LotteryPolicy(eqx.Module):
    """logits (Q, arms). A token is an outcome: its probability is that of the arm times its chance, so its score is the arm's."""

    logits: jax.Array
    outcomes: tuple[Outcome, ...] = eqx.field(static=True)

    @property
    def vocabulary(self) -> int:
        return len(self.outcomes)

    def table(self) -> TabularPolicy:
        arm, chance = jnp.array([o.arm for o in self.outcomes]), jnp.array([o.chance for o in self.outcomes])
        return TabularPolicy(jax.nn.log_softmax(self.logits)[:, arm] + jnp.log(chance)[None], "bandit")

    def log_probs(self):
        """(Q, outcomes)"""
        return self.table().log_probs()

    def start(self, prompts, mask, length):
        return self.table().start(prompts, mask, length)

    def extend(self, cache, tokens):
        return self.table().extend(cache, tokens)

    def score(self, prompts, mask, completions, completion_mask, temperature=1.0, *, entropy=True):
        return self.table().score(prompts, mask, completions, completion_mask, temperature, entropy=entropy)


def lottery(outcomes: tuple[Outcome, ...], *, prompts: int, steps: int) -> LanguageTask:
    """The same arms under every prompt, each equally likely at first."""
    arms = 1 + max(o.arm for o in outcomes)
    rewards = jnp.broadcast_to(jnp.array([o.reward for o in outcomes]), (prompts, len(outcomes)))
    asked = on_device(make_prompts([[q] for q in range(prompts)], facts=rewards))
    tokenizer = NumberTokenizer(max(prompts, len(outcomes)))
    policy = LotteryPolicy(jnp.zeros((prompts, arms)), outcomes)
    return LanguageTask(policy, Lookup(len(outcomes)), steps, 1, (), tokenizer, "lottery", prompts=asked, held_out=asked)


def best_of(log_probs, rewards, k: int):
    """E max of the rewards of k draws, over distributions (..., outcomes) with rewards (outcomes,)."""
    order = jnp.argsort(rewards)
    below = jnp.cumsum(jnp.exp(log_probs)[..., order], axis=-1) ** k
    below = jnp.minimum(below, 1.0)
    return jnp.sum(rewards[order] * jnp.diff(below, axis=-1, prepend=jnp.zeros_like(below[..., :1])), -1)
