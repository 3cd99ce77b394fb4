"""Group Sequence Policy Optimization.

Chujie Zheng, Shixuan Liu, Mingze Li, Xiong-Hui Chen, Bowen Yu, et al. 2025. arXiv:2507.18071

The reward is of the completion, so the importance ratio and the clip are too. The ratio is normalised by length, a geometric mean over
tokens: its spread falls with the length, where token ratios bring the noise of every token into the gradient.

    A_i  = (r_i - mean_j r_j) / (std_j r_j + 1e-6)
    s_i  = ( pi(o_i | q) / pi_old(o_i | q) )^(1/T_i)
    loss = 1/N sum_i - min( s_i A_i, clip(s_i, 1 - 3e-4, 1 + 4e-4) A_i )

`token` has a ratio of its own for each token's gradient, s_it = sg(s_i) pi_it / sg(pi_it): with advantages that are constant over a completion
it is the same method, and it also takes others. There is no penalty.
"""

from __future__ import annotations

import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Aggregation, Language, Update
from polopt.loops.prompting import Grouped
from polopt.loops.wording import clipped_share, log_ratios
from polopt.methods._language import adam, few
from polopt.methods.registry import composition
from polopt.objectives import surrogates


@part
class SequenceClipped:
    """The clipped surrogate on the length-normalised ratio of the completion."""

    low: float = hyper(3e-4, above=0)  # the ratio earns nothing below 1 - low where the advantage is negative
    high: float = hyper(4e-4, above=0)  # nor above 1 + high where it is positive
    per_token: bool = False  # the form with a gradient for each token's own advantage

    def loss(self, update: Update, key):
        surrogate = surrogates.gspo_token if self.per_token else surrogates.gspo
        losses = surrogate(update.log_prob, update.old_log_prob, update.advantage, self.low, self.high, mask=update.learn)
        length = jnp.maximum(jnp.sum(update.learn, axis=1), 1)
        s = jnp.exp(log_ratios(update.log_prob, update.old_log_prob, update.learn) / length)[:, None]
        cut = jnp.where(update.advantage > 0, s > 1 + self.high, (update.advantage < 0) & (s < 1 - self.low))
        return losses, clipped_share(update, cut)


def _composed(task: LanguageTask | None, per_token: bool) -> Language:
    return Language(
        sampler=Grouped(prompts=few(task, 64)),
        advantage=GroupRelative(),
        objective=SequenceClipped(per_token=per_token),
        step_rule=adam(task),
        aggregation=Aggregation("sequence"),
        minibatches=4,
    )


@composition
def gspo(task: LanguageTask | None = None) -> Language:
    """GSPO with the paper's widths and four updates an iteration."""
    return _composed(task, per_token=False)


@composition
def token(task: LanguageTask | None = None) -> Language:
    """GSPO's token form."""
    return _composed(task, per_token=True)
