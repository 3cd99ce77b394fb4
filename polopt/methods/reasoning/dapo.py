"""DAPO: An Open-Source LLM Reinforcement Learning System at Scale.

Qiying Yu, Zheng Zhang, Ruofei Zhu, Yufeng Yuan, Xiaochen Zuo, et al. 2025. arXiv:2503.14476

Four changes to GRPO: the clip is wider above than below, so that rare tokens may grow; prompts are drawn until all groups of the batch have right
and wrong answers; every token counts alike; and long answers are punished softly instead of being cut without a word. There is no penalty.

    r_i  = correct_i + len(T_i),   len(T) = clip( (L_max - L_c - T) / L_c, -1, 0 )
    A_i  = (r_i - mean_j r_j) / (std_j r_j + 1e-6)
    loss = sum_it - min( r_it A_i, clip(r_it, 1 - .2, 1 + .28) A_i ) / sum_i T_i

The sum over tokens is that of the whole update, as the paper's code has it. Groups are chosen by correctness, before lengths count.
"""

from __future__ import annotations

import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Informative
from polopt.loops.wording import Clipped
from polopt.methods._language import adam
from polopt.methods.registry import composition


def overlong(length, longest, cache):
    """(L_max - L_c - T) / L_c, at least -1 and at most 0: nothing up to L_max - L_c tokens, then falling to -1 at L_max."""
    return jnp.clip((longest - cache - length) / cache, -1.0, 0.0)


@part
class SoftOverlong:
    """What is added to the reward of completions that come near to the greatest length."""

    cache: float = hyper(0.2, above=0, at_most=1)  # L_c as a share of the greatest length (the paper's 4096 of 20480 tokens)
    weight: float = hyper(1.0, at_least=0)  # of the punishment; 0 for none

    def __call__(self, task: LanguageTask, batch):
        length = jnp.sum(batch.mask, axis=1).astype(batch.reward.dtype)
        return self.weight * overlong(length, task.length, self.cache * task.length)


@composition
def dapo(task: LanguageTask | None = None) -> Language:
    """DAPO with the paper's clip and length punishment; an iteration's completions are learnt from in four updates."""
    return Language(
        sampler=Informative(),
        advantage=GroupRelative(),
        objective=Clipped(low=0.2, high=0.28),
        step_rule=adam(task),
        shaping=SoftOverlong(),
        aggregation=Aggregation("token"),
        minibatches=4,
    )
