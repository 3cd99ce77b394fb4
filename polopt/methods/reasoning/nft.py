"""Bridging Supervised Learning and Reinforcement Learning in Math Reasoning.

Huayu Chen, Kaiwen Zheng, Qinsheng Zhang, Ganqu Cui, Yin Cui, Haotian Ye, Tsung-Yi Lin, Ming-Yu Liu, Jun Zhu, Haoxiang Wang. 2025. arXiv:2505.18116

Negative-aware fine-tuning: maximum likelihood on the policy's own answers, in which wrong answers are modelled too, by an implicit negative
policy made of the same network. pi_old is a mixture of its right and its wrong part; with pi_theta for the right part,

    pi_old  = p pi_theta + (1 - p) pi_-         p: the success rate of the prompt under pi_old, that of its whole group
    R       = pi_theta / pi_old                 of a token
    pi_- / pi_old = (1 - p R) / (1 - p)
    loss    = -omega [ c log R + (1 - c) log v ],       c = 1 for a right answer, else 0
    v       = x + sg( max(x, eps) - x ),   x = (1 - p R) / (1 - p)
    omega   = 1 - p (default), sqrt((1 - p) / p), or 1;  0 where the group is all right or all wrong

The floor under v is straight-through: its gradient is that of x. On grad log pi the weight is omega for right answers and
-omega (p R / (1 - p)) / max(x, eps) for wrong ones. At R = 1 this is Dr. GRPO with the first omega and GRPO with the second. Without the
negative part it is rejection fine-tuning.
"""

from __future__ import annotations

import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import forgetful
from polopt.loops.language import Aggregation, Language, Update
from polopt.loops.prompting import Informative
from polopt.methods._language import adam
from polopt.methods.registry import composition
from polopt.objectives.backend import stop_gradient

LEAST = 0.02  # success rates are kept this far from 0 and 1


def prompt_weight(success, weighting: str):
    """omega of prompts with these success rates."""
    xp = array_namespace(success)
    p = xp.clip(success, LEAST, 1 - LEAST)
    if weighting == "failure":
        return 1 - p
    return xp.sqrt((1 - p) / p) if weighting == "odds" else xp.ones_like(p)


def implicit_negative(log_prob, old_log_prob, correct, success, *, floor=1.0, negative_weight=1.0, log_ratio_limit=10.0):
    """The loss of each token without omega; correct and success broadcast with the log-probabilities, success inside (0, 1)."""
    xp = array_namespace(log_prob, old_log_prob)
    log_ratio = xp.clip(log_prob - stop_gradient(old_log_prob), -log_ratio_limit, log_ratio_limit)
    x = (1 - success * xp.exp(log_ratio)) / (1 - success)
    v = x + stop_gradient(xp.clip(x, min=floor) - x)
    return -xp.where(correct > 0.5, log_ratio, negative_weight * xp.log(v))


@forgetful
class PromptWeight:
    """omega: how much a prompt counts, by its success rate; nothing where all its answers earned the same."""

    weighting: str = hyper("failure", choices=("failure", "odds", "one"))  # 1 - p, sqrt((1 - p) / p), or 1

    def advantage(self, batch, judged):
        p = judged.group_mean
        return jnp.where((p > 0) & (p < 1), prompt_weight(p, self.weighting), 0.0)


@part
class ImplicitNegative:
    """Likelihood of right answers, and of wrong ones under the implicit negative policy."""

    floor: float = hyper(1.0, above=0)  # eps: least value of the negative policy's ratio that divides
    negative_weight: float = hyper(1.0, at_least=0)  # of wrong answers; 0 is rejection fine-tuning
    log_ratio_limit: float = hyper(10.0, above=0)  # log R is cut at +- this

    def loss(self, update: Update, key):
        success = jnp.clip(update.group_mean, LEAST, 1 - LEAST)[:, None]
        given = dict(floor=self.floor, negative_weight=self.negative_weight, log_ratio_limit=self.log_ratio_limit)
        loss = implicit_negative(update.log_prob, update.old_log_prob, update.reward[:, None], success, **given)
        return update.advantage * loss, {"success": jnp.mean(update.group_mean)}


@composition
def nft(task: LanguageTask | None = None) -> Language:
    """NFT on groups with right and wrong answers, 4 minibatches of 2 prompts (the paper: 16 of 32)."""
    return Language(
        sampler=Informative(completions=16),
        advantage=PromptWeight(),
        objective=ImplicitNegative(),
        step_rule=adam(task),
        aggregation=Aggregation("constant", scale=1000.0 if task is None else float(task.length)),
        minibatches=4,
    )
