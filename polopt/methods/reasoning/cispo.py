"""MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention.

MiniMax. 2025. arXiv:2506.13585

CISPO clips the importance weight and not the update. PPO's clip drops the gradient of tokens whose ratio grew, which are the rare ones that
begin a new thought; here every token keeps a gradient, of a weight that is bounded and constant.

    A_i  = (r_i - mean_j r_j) / (std_j r_j + 1e-6)
    loss = sum_it - sg( min(r_it, 1 + eps) ) A_i log pi(o_it | q, o_i<t) / sum_i T_i

There is no lower bound, as the paper runs it, and no penalty. The paper tunes eps and gives no number.
"""

from __future__ import annotations

import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Aggregation, Language, Update
from polopt.loops.prompting import Grouped
from polopt.loops.wording import clipped_share
from polopt.methods._language import adam, few
from polopt.methods.registry import composition
from polopt.objectives import surrogates


@part
class TruncatedWeight:
    """-A log pi, weighted by the ratio as a constant with an upper bound; `clipped` is the share of tokens at the bound."""

    high: float = hyper(1.0, above=0)  # the weight is at most 1 + high
    low: float | None = hyper(None, above=0, at_most=1)  # and at least 1 - low; none for no lower bound

    def loss(self, update: Update, key):
        losses = surrogates.cispo(update.log_prob, update.old_log_prob, update.advantage, high=self.high, low=self.low, mask=update.learn)
        ratio = jnp.exp(update.log_prob - update.old_log_prob)
        bounded = ratio > 1 + self.high
        return losses, clipped_share(update, bounded if self.low is None else bounded | (ratio < 1 - self.low))


@composition
def cispo(task: LanguageTask | None = None) -> Language:
    """CISPO with weights of at most 2 and four updates an iteration."""
    return Language(
        sampler=Grouped(prompts=few(task, 64)),
        advantage=GroupRelative(),
        objective=TruncatedWeight(),
        step_rule=adam(task),
        aggregation=Aggregation("token"),
        minibatches=4,
    )
