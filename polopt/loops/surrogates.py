"""Surrogates that several papers share."""

from __future__ import annotations

from polopt.core.parts import part
from polopt.objectives import surrogates


def stateless(cls):
    """A surrogate part in which nothing adapts: `cls` need define `loss` only."""
    cls.init = lambda self: ()
    cls.adapt = lambda self, state, kl, progress: state
    return part(cls)


@stateless
class LogLikelihood:
    """The score-function surrogate -log pi(a|s) A."""

    def loss(self, state, update):
        return surrogates.policy_gradient(update.log_prob, update.advantage), {}


@stateless
class ImportanceWeighted:
    """The unclipped surrogate -r A, with r = pi(a|s) / pi_old(a|s)."""

    def loss(self, state, update):
        return surrogates.importance_weighted(update.log_prob, update.old_log_prob, update.advantage), {}
