"""On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning.

Yifan Zhang, Yifeng Liu, Huizhuo Yuan, Yang Yuan, Quanquan Gu, Andrew Chi-Chih Yao. 2025. arXiv:2505.17508

For J = E_pi[R] - beta D the gradients and losses of four divergences D from the reference, with the importance weights that GRPO's penalty
leaves out. The samples are of pi_old, w = pi / pi_old, u = log(pi / ref), v = ref / pi_old, and grad J = E_old[ c grad log pi ]:

    D                                           c                       differentiable loss
    forward               KL(ref || pi)         w A + beta v            -w A - beta v u
    unnormalised_forward  the same, any mass    w A + beta (v - w)      -w A + beta (-v u + w - v)
    reverse               KL(pi || ref)         w (A - beta (u + 1))    -w A + beta w u
    unnormalised_reverse  the same, any mass    w (A - beta u)          -w A + beta (w u - w + v)

-sg(c) log pi has the gradient of each loss in expectation, and takes bounds: the clipped form cuts w to [1 - low, 1 + high] inside c, the
masked one gives no gradient where A > 0 and w >= 1 + high, A < 0 and w < 1 - low, or A < 0 and w > dual. Constants such as beta in c have a mean
of 0 on-policy, and lose it where w is cut. The reference here is pi_old, as the paper trains: it moves with every iteration.
"""

from __future__ import annotations

import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import Centred
from polopt.loops.language import Language, Update
from polopt.loops.prompting import Informative
from polopt.loops.wording import clipped_share
from polopt.methods._language import adam
from polopt.methods.registry import composition
from polopt.objectives import divergences, surrogates
from polopt.objectives.backend import check_choice

DIVERGENCES = ("forward", "unnormalised_forward", "reverse", "unnormalised_reverse")


def kl_coefficient(w, v, divergence: str):
    """What beta multiplies in c, from w = pi / pi_old and v = ref / pi_old."""
    check_choice("kl_coefficient", "divergence", divergence, DIVERGENCES)
    if divergence == "forward":
        return v + 0 * w
    if divergence == "unnormalised_forward":
        return v - w
    u = array_namespace(w).log(w / v)
    return -w * (u + 1) if divergence == "reverse" else -w * u


def differentiable_loss(log_prob, old_log_prob, ref_log_prob, advantage, beta, divergence: str):
    """The loss of each token whose gradient is that of -J in expectation over pi_old."""
    penalty = divergences.kl_loss(log_prob, ref_log_prob, old_log_prob=old_log_prob, estimator=divergence)
    return surrogates.importance_weighted(log_prob, old_log_prob, advantage) + beta * penalty


def clipped_coefficient(log_ratio, advantage, beta, divergence: str, low, high):
    """c with w cut to [1 - low, 1 + high], for ref = pi_old."""
    xp = array_namespace(log_ratio)
    w = xp.clip(xp.exp(log_ratio), 1 - low, 1 + high)
    return w * advantage + beta * kl_coefficient(w, 1.0, divergence)


def masked_coefficient(log_ratio, advantage, beta, divergence: str, low, high, dual, limit):
    """c, 0 where the trust region is left, for ref = pi_old; what beta multiplies is cut to +- limit."""
    xp = array_namespace(log_ratio)
    w = xp.exp(log_ratio)
    c = w * advantage + beta * xp.clip(kl_coefficient(w, 1.0, divergence), -limit, limit)
    return xp.where(left(w, advantage, low, high, dual), xp.zeros_like(c), c)


def left(w, advantage, low, high, dual):
    """Whether a token has left the trust region in the direction in which its advantage pushes."""
    return ((advantage > 0) & (w >= 1 + high)) | ((advantage < 0) & ((w < 1 - low) | (w > dual)))


@part
class ClippedREINFORCE:
    """-sg(c) log pi with the importance weight cut inside c."""

    divergence: str = hyper("unnormalised_reverse", choices=DIVERGENCES)  # D, from the old policy
    beta: float = hyper(1e-4, at_least=0)  # its weight
    low: float = hyper(0.2, above=0)  # w counts as 1 - low below it
    high: float = hyper(0.28, above=0)  # and as 1 + high above it

    def loss(self, update: Update, key):
        log_ratio = update.log_prob - update.old_log_prob
        c = clipped_coefficient(log_ratio, update.advantage, self.beta, self.divergence, self.low, self.high)
        cut = (log_ratio > jnp.log1p(self.high)) | (log_ratio < jnp.log1p(-self.low))
        return surrogates.policy_gradient(update.log_prob, c), clipped_share(update, cut)


@part
class MaskedREINFORCE:
    """-sg(c) log pi with no gradient outside PPO's trust region."""

    divergence: str = hyper("unnormalised_reverse", choices=DIVERGENCES)  # D, from the old policy
    beta: float = hyper(1e-4, at_least=0)  # its weight
    low: float = hyper(0.2, above=0)  # no gradient below 1 - low where the advantage is negative
    high: float = hyper(0.28, above=0)  # nor from 1 + high on where it is positive
    dual: float = hyper(10.0, above=1)  # nor above this where it is negative
    limit: float = hyper(10.0, above=0)  # what beta multiplies is cut to +- this

    def loss(self, update: Update, key):
        log_ratio, bounds = update.log_prob - update.old_log_prob, (self.low, self.high, self.dual)
        c = masked_coefficient(log_ratio, update.advantage, self.beta, self.divergence, *bounds, self.limit)
        return surrogates.policy_gradient(update.log_prob, c), clipped_share(update, left(jnp.exp(log_ratio), update.advantage, *bounds))


@part
class Differentiable:
    """The fully differentiable loss, without bounds."""

    divergence: str = hyper("unnormalised_reverse", choices=DIVERGENCES)  # D, from the old policy
    beta: float = hyper(1e-4, at_least=0)  # its weight

    def loss(self, update: Update, key):
        old = update.old_log_prob
        return differentiable_loss(update.log_prob, old, old, update.advantage, self.beta, self.divergence), {}


def _composed(task: LanguageTask | None, objective) -> Language:
    return Language(
        sampler=Informative(completions=16),
        advantage=Centred(),
        objective=objective,
        step_rule=adam(task),
        minibatches=4,
    )


@composition
def rpg(task: LanguageTask | None = None) -> Language:
    """RPG-REINFORCE with the paper's clip, 4 minibatches of 2 prompts (the paper: 16 of 32)."""
    return _composed(task, ClippedREINFORCE())


@composition
def masked(task: LanguageTask | None = None) -> Language:
    """The same with PPO's trust region as a mask."""
    return _composed(task, MaskedREINFORCE())


@composition
def differentiable(task: LanguageTask | None = None) -> Language:
    """The differentiable loss, without bounds."""
    return _composed(task, Differentiable())
