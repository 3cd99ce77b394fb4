"""BNPO: Beta Normalization Policy Optimization.

Changyi Xiao, Mengdi Zhang, Yixin Cao. 2025. arXiv:2506.02864

With rewards of 0 or 1 a prompt's success rate is like a draw from a Beta distribution. The centred reward is divided by a Beta density whose
parameters are fitted to the batch anew in every iteration, which minimises the variance of the advantages over prompts.

    p_q  = mean of the prompt's rewards,    mu, v = mean and variance (ddof 1) of p_q over prompts
    c    = mu (1 - mu) / v - 1,   a = c mu,   b = c (1 - mu)             p ~ Beta(a, b), by moments
    alpha = max(1 + a/3, 1),      beta = max(1 + b/3, 1)
    f(p) = p^(alpha - 1) (1 - p)^(beta - 1) / B(alpha, beta)
    A_qi = (r_qi - p_q) min(1 / f(p_q), 1e6)

alpha = beta = 1 is REINFORCE with the group's mean, alpha = beta = 3/2 is GRPO up to a factor pi/8. A batch of one prompt, or of prompts with equal
rates, says nothing of the spread and is taken for the first. Rewards must lie between 0 and 1. The paper's sum over several
rewards of a completion is left out: a task has one.
"""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import array_namespace

from polopt.core.parts import hyper
from polopt.data.language import LanguageTask
from polopt.loops.credit import forgetful
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods._language import adam, few
from polopt.methods.registry import composition
from polopt.objectives.advantages import group_relative
from polopt.objectives.backend import Array, as_weights, group_index, group_sum, log_gamma, safe_divide


class Beta(NamedTuple):
    alpha: Array
    beta: Array


def log_beta(alpha, beta):
    """log B(alpha, beta), the Beta function."""
    return log_gamma(alpha) + log_gamma(beta) - log_gamma(alpha + beta)


def fitted(rates, weight) -> Beta:
    """The normaliser of success rates (n,), each of which counts `weight` (n,)."""
    xp = array_namespace(rates, weight)
    count = xp.sum(weight)
    mean = safe_divide(xp.sum(weight * rates), count)
    variance = safe_divide(xp.sum(weight * (rates - mean) ** 2), count - 1)
    # rounding: equal rates have a variance of almost 0, not of 0
    spread = xp.where(variance > 1e-6, variance, xp.ones_like(variance))
    c = mean * (1 - mean) / spread - 1
    return Beta(xp.clip(1 + c * mean / 3, min=1.0), xp.clip(1 + c * (1 - mean) / 3, min=1.0))


def density(p, normaliser: Beta):
    """f(p), which may be 0 at 0 and at 1."""
    alpha, beta = normaliser
    return p ** (alpha - 1) * (1 - p) ** (beta - 1) / array_namespace(p).exp(log_beta(alpha, beta))


def integrated_variance(a, b, normaliser: Beta):
    """E[p (1 - p) / f(p)^2] over p ~ Beta(a, b): B(a + 3 - 2 alpha, b + 3 - 2 beta) B(alpha, beta)^2 / B(a, b)."""
    alpha, beta = normaliser
    return array_namespace(a).exp(log_beta(a + 3 - 2 * alpha, b + 3 - 2 * beta) + 2 * log_beta(alpha, beta) - log_beta(a, b))


def beta_normalised(rewards, group_ids, *, limit=1e6, mask=None):
    """A (N,) from rewards and group ids (N,)."""
    xp = array_namespace(rewards, group_ids)
    index, weight = group_index(group_ids), as_weights(mask, rewards)
    centred = group_relative(rewards, group_ids, scale="none", mask=mask)
    rates = xp.where(weight > 0, rewards - centred, xp.zeros_like(rewards))
    normaliser = fitted(rates, safe_divide(weight, group_sum(weight, index)))
    f = density(xp.clip(rates, 0.0, 1.0), normaliser)
    return centred / xp.clip(f, min=1 / limit)


@forgetful
class BetaNormalised:
    """The centred reward over the Beta density of its group's success rate, fitted to the batch."""

    limit: float = hyper(1e6, above=0)  # greatest factor

    fewest = 2

    def advantage(self, batch, judged):
        return beta_normalised(batch.reward, batch.group, limit=self.limit, mask=batch.valid)


@composition
def bnpo(task: LanguageTask | None = None) -> Language:
    """BNPO with the paper's 32 prompts and 16 completions of each, its clips, token sums, and four updates an iteration."""
    return Language(
        sampler=Grouped(prompts=few(task, 32), completions=16),
        advantage=BetaNormalised(),
        objective=Clipped(low=0.2, high=0.28, dual=10.0),
        step_rule=adam(task),
        aggregation=Aggregation("constant", scale=1.0),
        minibatches=4,
    )
