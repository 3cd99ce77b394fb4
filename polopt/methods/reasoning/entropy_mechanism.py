"""The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models.

Ganqu Cui, Yuchen Zhang, Jiacheng Chen, Lifan Yuan, Zhi Wang, Yuxin Zuo, et al. 2025. arXiv:2505.22617

A step of policy gradient lowers the entropy by the covariance of log-probability and advantage, and accuracy R is traded for entropy H along
R = -a exp(H) + b. A few tokens have nearly all of the covariance, and only they are held back. With a step eta on the logits of a table,

    change of H          about -eta Cov_pi( log pi, pi A );  of the natural gradient -eta Cov_pi( log pi, A )
    cov_t                (A_t - mean A) (log pi_t - mean log pi)        over the tokens of the update
    Clip-Cov             -P(r; A) on all but a few tokens, drawn among those with lower < cov_t < upper, which give no gradient
    KL-Cov               -r A on all, + kappa |log pi - log pi_old| on the tokens with the largest cov_t

The few are max(1, round(share N)) of the N tokens. r = pi / pi_old, and P is PPO's surrogate. At r = 1 KL-Cov has the plain gradient: it needs
several updates on a batch. The bounds are in the units of advantage times log-probability, and are not free of the task's scale.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Language, Update
from polopt.loops.prompting import Grouped
from polopt.loops.wording import few, largest
from polopt.methods._language import adam
from polopt.methods.registry import composition
from polopt.objectives import surrogates
from polopt.objectives.backend import as_weights, safe_divide, stop_gradient, zero_masked


def entropy_change(log_p, step):
    """The change of entropy, to first order, by a step (..., actions) on the logits of a softmax: -Cov_pi(log pi, step)."""
    xp = array_namespace(log_p, step)
    p = xp.exp(log_p)
    centred = step - xp.sum(p * step, axis=-1, keepdims=True)
    return -xp.sum(p * log_p * centred, axis=-1)


def token_covariance(log_prob, advantage, mask=None):
    """cov_t of each token, a constant; 0 where masked."""
    xp = array_namespace(log_prob, advantage)
    log_prob, advantage = zero_masked(mask, stop_gradient(log_prob), stop_gradient(advantage))
    weight = as_weights(mask, log_prob)
    log_mean, mean = (safe_divide(xp.sum(x * weight), xp.sum(weight)) for x in (log_prob, advantage))
    return (advantage - mean) * (log_prob - log_mean) * weight


def kl_cov(log_prob, old_log_prob, advantage, chosen, kappa):
    """The loss of each token of KL-Cov: an absolute log-ratio on the chosen ones, and no clip on any."""
    xp = array_namespace(log_prob)
    loss = surrogates.importance_weighted(log_prob, old_log_prob, advantage)
    gap = log_prob - stop_gradient(old_log_prob)
    distance = stop_gradient(xp.sign(gap)) * gap  # |gap| with gradient 0 at 0, where JAX's abs has 1
    return loss + xp.where(chosen, kappa * distance, xp.zeros_like(loss))


def _metrics(update: Update, covariance, chosen) -> dict:
    count = jnp.maximum(jnp.sum(update.learn), 1)
    return {"covariance": jnp.sum(covariance) / count, "held back": jnp.sum(chosen) / count}


@part
class KLCov:
    """Importance-weighted, with a penalty on the tokens of the largest covariance."""

    share: float = hyper(2e-3, at_least=0, at_most=1)  # of the tokens that are penalised, at least one
    kappa: float = hyper(1.0, at_least=0)  # weight of the penalty

    def loss(self, update: Update, key):
        covariance = token_covariance(update.log_prob, update.advantage, update.learn)
        chosen = largest(covariance, update.learn, few(self.share, update.learn))
        loss = kl_cov(update.log_prob, update.old_log_prob, update.advantage, chosen, self.kappa)
        return loss, _metrics(update, covariance, chosen)


@part
class ClipCov:
    """PPO's surrogate without the gradient of a few tokens, drawn among those of large covariance."""

    share: float = hyper(2e-4, at_least=0, at_most=1)  # of the tokens that are dropped, at least one
    lower: float = hyper(1.0)  # covariance above which a token may be dropped
    upper: float = hyper(5.0)  # and below which
    low: float = hyper(1.0, above=0)  # PPO's bound below; 1 is none
    high: float = hyper(1.0, above=0)  # and above
    dual: float = hyper(10.0, above=1)  # greatest ratio that counts where the advantage is negative

    def loss(self, update: Update, key):
        covariance = token_covariance(update.log_prob, update.advantage, update.learn)
        ratio, up = jnp.exp(update.log_prob - update.old_log_prob), update.advantage > 0
        free = jnp.where(up, ratio <= 1 + self.high, ratio >= 1 - self.low)
        candidates = update.learn & (covariance > self.lower) & (covariance < self.upper) & free
        chosen = largest(jax.random.uniform(key, candidates.shape), candidates, few(self.share, update.learn))
        loss = surrogates.clipped(update.log_prob, update.old_log_prob, update.advantage, self.low, self.high, self.dual)
        return jnp.where(chosen, jax.lax.stop_gradient(loss), loss), _metrics(update, covariance, chosen)


def _composed(task: LanguageTask | None, objective) -> Language:
    return Language(sampler=Grouped(), advantage=GroupRelative(), objective=objective, step_rule=adam(task, 5e-7), minibatches=4)


@composition
def entropy_mechanism(task: LanguageTask | None = None) -> Language:
    """KL-Cov with the paper's numbers for 7 billion parameters."""
    return _composed(task, KLCov())


@composition
def clip_cov(task: LanguageTask | None = None) -> Language:
    """Clip-Cov."""
    return _composed(task, ClipCov())
