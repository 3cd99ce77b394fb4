"""Dropout Strategy in Reinforcement Learning: Limiting the Surrogate Objective Variance in Policy Optimization Methods.

Zhengpeng Xie, Changdong Yu, Weizheng Qiao. 2023. arXiv:2310.20380

Importance sampling lets the variance of the surrogate objective grow with its square. D-PPO scores each sample by its cross
terms with the rest of the batch and drops, before PPO's update, those whose score is lowest and so raises the variance most.

With r = pi(a|s) / pi_old(a|s), advantages A standardised over the batch of n samples, and phi_i = r_i A_i:

    Delta_i    = sum_{j != i} phi_i phi_j = phi_i ( S - phi_i ),    S = sum_j phi_j
    n^2 Var    = (n - 1) sum_i phi_i^2 - sum_i Delta_i
    kept       = of {phi >= 0} and of {phi < 0} each the fraction 1 - q with the largest Delta

The choice is made anew before each pass, with the policy as it then is. Dropping biases the mean of phi: at r = 1 and with
S = 0 the largest |phi| go. Variance and mean before and after are logged. Three choices are ours, because the paper's were not
to be had: q = 20 %, the choice once a pass over the whole batch, and value and entropy losses on the kept samples too. With a
recurrent network whole sequences are dropped, by their mean phi.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.on_policy import OnPolicy
from polopt.methods.policy_gradient.ppo import ppo
from polopt.methods.registry import composition


def cross_terms(phi):
    """Delta_i = phi_i (S - phi_i) of surrogate contributions (n,): what the sample shares with all the others."""
    return phi * (array_namespace(phi).sum(phi) - phi)


def kept(phi, count: int):
    """The indices, rising, of the `count` samples to learn from: of each sign of phi (n,) the same share, those of largest Delta.

    A sample's place is its rank by Delta within its sign as a fraction of that sign's samples; the first places of both are kept.
    """
    xp = array_namespace(phi)
    best_first = xp.argsort(-cross_terms(phi), stable=True)
    positive = xp.astype(phi[best_first] >= 0, phi.dtype)
    rank = xp.where(positive > 0, xp.cumulative_sum(positive), xp.cumulative_sum(1 - positive))
    size = xp.where(positive > 0, xp.sum(positive), xp.sum(1 - positive))
    return xp.sort(best_first[xp.argsort((rank - 0.5) / size, stable=True)[:count]])


@part
class DropCrossTerms:
    """The samples without those of the smallest cross terms, for each sign of the surrogate."""

    drop: int = hyper(20, at_least=0, below=100)  # q: percent of the samples that each pass leaves out

    def count(self, n: int) -> int:
        return n - n * self.drop // 100

    def __call__(self, loop, actor, batch, key):
        phi = contributions(loop, actor, batch)
        chosen = kept(phi, self.count(phi.shape[0]))
        return chosen, report(phi, chosen)


def contributions(loop, actor, batch):
    """phi of each sample, or with a recurrent network of each sequence."""
    update = loop.update(actor, batch)
    phi = jnp.exp(update.log_prob - update.old_log_prob) * update.advantage
    return phi.reshape(jax.tree.leaves(batch)[0].shape[0], -1).mean(axis=1)


def report(phi, chosen):
    """Variance and mean of phi before and after dropping."""
    before, after = phi, phi[chosen]
    return {
        "surrogate/variance": jnp.var(before),
        "surrogate/variance_kept": jnp.var(after),
        "surrogate/mean": jnp.mean(before),
        "surrogate/mean_kept": jnp.mean(after),
    }


@composition
def d_ppo(task: ControlTask | None = None) -> OnPolicy:
    """PPO on the samples that D-PPO keeps."""
    plain = ppo(task)
    # Advantages are standardised before samples are dropped: doing it again after would undo a part of the choice.
    return dataclasses.replace(plain, improver=dataclasses.replace(plain.improver, select=DropCrossTerms()), standardise="batch")
