"""Objectives of the language loop that several papers share: the loss of each token from the log-probabilities of an update."""

from __future__ import annotations

import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.loops.language import Update
from polopt.objectives import surrogates


def clipped_share(update: Update, clipped) -> dict:
    """The share of learnt tokens whose gradient is cut, as a metric."""
    return {"clipped": jnp.sum(clipped & update.learn) / jnp.maximum(jnp.sum(update.learn), 1)}


@part
class LogLikelihood:
    """-A log pi(token): the score-function surrogate, and with advantages of 1 maximum likelihood."""

    def loss(self, update: Update, key):
        return surrogates.policy_gradient(update.log_prob, update.advantage), {}


@part
class Clipped:
    """PPO's clipped surrogate on tokens, with bounds of its own above and below, and a second bound for negative advantages."""

    low: float = hyper(0.2, above=0)  # the ratio earns nothing below 1 - low where the advantage is negative
    high: float = hyper(0.2, above=0)  # nor above 1 + high where it is positive
    dual: float | None = hyper(None, above=1)  # greatest ratio that counts where the advantage is negative; none for no bound

    def loss(self, update: Update, key):
        sample = update.log_prob, update.old_log_prob, update.advantage
        ratio = jnp.exp(update.log_prob - update.old_log_prob)
        cut = jnp.where(update.advantage > 0, ratio > 1 + self.high, (update.advantage < 0) & (ratio < 1 - self.low))
        return surrogates.clipped(*sample, self.low, self.high, self.dual, mask=update.learn), clipped_share(update, cut)


def of_completion(x, learn):
    """(n,) the mean of x (n, T) over the tokens of each completion that are learnt from; 0 where there are none."""
    return jnp.sum(jnp.where(learn, x, 0.0), axis=1) / jnp.maximum(jnp.sum(learn, axis=1), 1)


def log_ratios(log_prob, reference, learn):
    """(n,) log pi(completion) - log reference(completion), over the tokens that are learnt from."""
    return jnp.sum(jnp.where(learn, log_prob - reference, 0.0), axis=1)


def each_token(loss, learn):
    """(n, T): a loss of completions (n,), borne by each of their tokens. `Aggregation("sequence")` makes their mean of it."""
    return jnp.broadcast_to(loss[:, None], learn.shape)


def few(share, mask):
    """max(1, round(share N)), N the tokens of the mask."""
    xp = array_namespace(mask)
    return xp.clip(xp.round(share * xp.sum(xp.astype(mask, xp.float32))), min=1)


def largest(x, mask, count):
    """Which elements of x, out of those of the mask, are the `count` largest; of equal ones the first."""
    xp = array_namespace(x)
    flat = xp.reshape(xp.where(mask, x, xp.full_like(x, -xp.inf)), (-1,))
    rank = xp.argsort(xp.argsort(-flat, stable=True))
    return mask & (xp.reshape(rank, x.shape) < count)
