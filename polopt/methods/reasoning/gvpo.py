"""GVPO: Group Variance Policy Optimization for Large Language Model Post-Training.

Kaichen Zhang, Yuzhong Hong, Junwei Bao, Hongfei Jiang, Yang Song, Dingqian Hong, Hui Xiong. 2025. arXiv:2504.19599

The implicit reward of a policy, beta times its log-ratio to a reference pi', is regressed on the reward inside each group. Both are centred, so the
partition function cancels; the only minimiser is pi' exp(r / beta) / Z, from samples of any distribution with full support and without weights.

    l_i  = log pi(o_i | q) - log pi'(o_i | q)
    w_i  = (r_i - mean_j r_j) - beta (l_i - mean_j l_j)
    L_q  = 1/(G-1) sum_i w_i^2 / 2,                            loss = mean of L_q over prompts
    grad L_q = - beta / (G-1) sum_i w_i grad log pi(o_i | q)

pi' is the policy at the start of the iteration, or with `reference="anchor"` the anchor. In the first update after pi' was taken l is 0 and the
gradient is that of REINFORCE with the group's mean. Groups of equal rewards pull the policy back to pi' and are kept.
"""

from __future__ import annotations

import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import Centred
from polopt.loops.language import Aggregation, Language, Update
from polopt.loops.prompting import Grouped
from polopt.loops.wording import each_token, log_ratios, of_completion
from polopt.methods._language import adam
from polopt.methods.registry import composition
from polopt.objectives.advantages import group_relative
from polopt.objectives.backend import as_weights, group_index, group_sum, safe_divide


def group_variance(log_ratio, centred_reward, group_ids, beta, *, mask=None):
    """(N,) of which the mean over completions is the mean of L_q over prompts of equally many completions; `log_ratio` carries the gradient."""
    weight = as_weights(mask, log_ratio)
    size = group_sum(weight, group_index(group_ids))
    residual = centred_reward - beta * group_relative(log_ratio, group_ids, scale="none", mask=mask)
    return safe_divide(size, size - 1) * residual**2 / 2


@part
class GroupVariance:
    """Half the variance over a group of the implicit reward less the reward, borne by every token."""

    beta: float = hyper(0.1, above=0)  # strength of the divergence from the reference
    reference: str = hyper("old", choices=("old", "anchor"))  # pi'

    def loss(self, update: Update, key):
        reference = update.old_log_prob if self.reference == "old" else update.anchor_log_prob
        log_ratio = log_ratios(update.log_prob, reference, update.learn)
        there = jnp.any(update.learn, axis=1)
        losses = group_variance(log_ratio, of_completion(update.advantage, update.learn), update.group, self.beta, mask=there)
        return each_token(losses, update.learn), {"log_ratio": jnp.mean(log_ratio)}


@composition
def gvpo(task: LanguageTask | None = None) -> Language:
    """GVPO with beta 0.1, five completions of each prompt, and two updates an iteration."""
    return Language(
        sampler=Grouped(completions=5),
        advantage=Centred(),
        objective=GroupVariance(),
        step_rule=adam(task),
        aggregation=Aggregation("sequence"),
        epochs=2,
    )
