"""Proximal Supervised Fine-Tuning.

Wenhong Zhu, Ruobing Xie, Rui Wang, Xingwu Sun, Di Wang, Pengfei Liu. 2025. arXiv:2508.17784

Fine-tuning is a policy gradient on demonstrations with advantage 1; given PPO's clip, a demonstrated token stops to count once its probability
has risen by more than the clip factor since the batch was drawn. With rho = pi / pi_old of a demonstrated token, pi_old the policy at the start
of the batch's updates,

    loss   = -1/#tokens sum_t min( rho_t, 1 + eps )         the lower bound of PPO never acts where A = 1
    weight = rho_t where rho_t < 1 + eps, else 0            on grad log pi; fine-tuning: 1

The first update of a batch is fine-tuning's, and so are all with one update a batch. The region binds on unlikely tokens only: at pi_old = .9 the
ratio cannot pass 1.11. The clip slows what is learnt and does not change where it ends.
"""

from __future__ import annotations

import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import Ones
from polopt.loops.language import Language, Update
from polopt.loops.prompting import Demonstrated
from polopt.loops.wording import clipped_share
from polopt.methods._language import adam
from polopt.methods.registry import composition
from polopt.objectives import surrogates


def proximal_likelihood(log_prob, old_log_prob, high):
    """-min(rho, 1 + high) of each demonstrated token: PPO's surrogate at advantage 1."""
    return surrogates.clipped(log_prob, old_log_prob, 1 + 0 * old_log_prob, high)


@part
class ProximalLikelihood:
    """Importance-weighted likelihood of demonstrations that stops at 1 + high."""

    high: float = hyper(0.28, above=0)  # eps: a token counts until its probability has grown by this share

    def loss(self, update: Update, key):
        loss = update.advantage * proximal_likelihood(update.log_prob, update.old_log_prob, self.high)
        return loss, clipped_share(update, update.log_prob - update.old_log_prob > jnp.log1p(self.high))


@composition
def psft(task: LanguageTask | None = None) -> Language:
    """PSFT: 64 demonstrations an iteration in 8 minibatches (the paper's weight decay and warm-up are left out)."""
    small = task is not None and len(task.prompts) < 64
    return Language(sampler=Demonstrated(8 if small else 64), advantage=Ones(), objective=ProximalLikelihood(), step_rule=adam(task), minibatches=8)
