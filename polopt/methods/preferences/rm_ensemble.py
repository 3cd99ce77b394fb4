"""Reward Model Ensembles Help Mitigate Overoptimization.

Thomas Coste, Usman Anwar, Robert Kirk, David Krueger. 2023. arXiv:2310.02743

What is optimised against one learnt reward finds its errors, and from some point on the true reward falls. k reward models that differ in the
head's first weights and in the order of the data disagree just there, so a conservative aggregate R of R_1 ... R_k is optimised instead:

    mean          (1/k) sum_i R_i
    worst         min_i R_i                                    worst-case optimisation
    uncertainty   (1/k) sum_i R_i - lambda Var_i R_i           uncertainty-weighted optimisation, Var of the population

by best-of-n or by reinforcement learning with the ensemble as verifier. From N scored responses, the true reward of best-of-n is estimated
without bias, with ranks i rising by what is optimised, and its distance from the first policy is known:

    E_n = sum_{i=n..N} C(i-1, n-1) / C(N, n) gold_(i)          KL_n = log n - (n - 1) / n

Rewards are put on one scale before they are aggregated, always.

Defaults: the paper's k = 5, penalty 1e-3, Adam 1e-5, 32 pairs a step; worst case. `rm_ensemble:uncertainty` has the paper's lambda .5 of best-of-n.
"""

from __future__ import annotations

import numpy as np

from polopt.core.parts import hyper, part
from polopt.data.preferences import PreferenceTask
from polopt.loops.preference import AllPairs
from polopt.loops.preference_sources import Logged
from polopt.loops.reward_model import RewardModelling
from polopt.methods._language import sized
from polopt.methods.registry import composition
from polopt.objectives.preferences import ensemble_reward


@part
class Mean:
    """The mean."""

    def __call__(self, rewards):
        return ensemble_reward(rewards, "mean")


@part
class Worst:
    """The smallest."""

    def __call__(self, rewards):
        return ensemble_reward(rewards, "worst")


@part
class Uncertainty:
    """The mean less coefficient times the variance of the members."""

    coefficient: float = hyper(0.5, at_least=0)  # lambda: price of disagreement

    def __call__(self, rewards):
        return ensemble_reward(rewards, "uncertainty", coefficient=self.coefficient)


def best_of_n(proxy, gold, n: int) -> np.ndarray:
    """E_n (...,): the expected gold reward of the response with the highest proxy among n, without bias from N of each, (..., N)."""
    proxy, gold = np.asarray(proxy, np.float64), np.asarray(gold, np.float64)
    count = proxy.shape[-1]
    if not 1 <= n <= count:
        raise ValueError(f"best_of_n got n = {n}, but must have 1 to {count}, the responses that were scored.")
    ranked = np.take_along_axis(gold, np.argsort(proxy, axis=-1, kind="stable"), axis=-1)
    return ranked @ rank_weights(count, n)


def rank_weights(count: int, n: int) -> np.ndarray:
    """(N,): C(i-1, n-1) / C(N, n) for i = 1 ... N, each from the next above by (i - n) / (i - 1), so that nothing overflows."""
    i = np.arange(count, 1, -1)
    falling = np.cumprod(np.concatenate([[n / count], np.maximum(i - n, 0) / (i - 1)]))
    return falling[::-1]


def best_of_n_kl(n) -> np.ndarray:
    """log n - (n - 1) / n: how far best-of-n is from the policy it draws from, at most."""
    return np.log(n) - (n - 1) / n


@composition
def rm_ensemble(task: PreferenceTask | None = None) -> RewardModelling:
    """Five reward models, the lowest of whose rewards counts."""
    return sized(task, RewardModelling(Logged(groups=32, pairs=AllPairs()), members=5, aggregate=Worst()))


@composition
def uncertainty(task: PreferenceTask | None = None) -> RewardModelling:
    """Five reward models whose disagreement costs."""
    return sized(task, RewardModelling(Logged(groups=32, pairs=AllPairs()), members=5, aggregate=Uncertainty()))
