"""The Best of N Worlds: Aligning Reinforcement Learning with Best-of-N Sampling via max@k Optimisation.

Farid Bagirov, Mikhail Arkhipov, Ksenia Sycheva, Evgeniy Glukhov, Egor Bogomolov. 2025. arXiv:2510.23393

What is optimised is the expected best reward of k completions, estimated without bias from the n >= k of a group; it becomes a transformation of
rewards, after which any policy gradient does. With r_1 <= ... <= r_n, C(a, b) the subsets, and sums over i without 1/n:

    J_k       = E max(r_1, ..., r_k)                  estimated by sum_j C(j-1, k-1) r_j / C(n, k)
    grad J_k  = E sum_i t_i grad log pi(y_i)
    t_i       = [ C(i-1, k-1) r_i + sum_{j>i} C(j-2, k-2) r_j ] / C(n, k)
    A_i       = (t_i - mean t) / (std t + epsilon)    in its group

After updates the samples are not the policy's any more. To first order in d_i = pi(y_i) / pi_old(y_i) - 1, with D_j = sum_{l<j} d_l,

    t_i       = [ ( C(i-1, k-1) (1 + d_i) + C(i-2, k-2) D_i ) r_i
                  + sum_{j>i} ( C(j-2, k-2) (1 + d_i + d_j) + C(j-3, k-3) (D_j - d_i) ) r_j ] / C(n, k)

which the corrected variant works out anew at every update, in place of PPO's ratio. k = 1 is the mean; of rewards 0 and 1 it is pass@k.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import Ones, forgetful
from polopt.loops.language import Aggregation, KLPenalty, Language, Update
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods._language import adam
from polopt.methods.registry import composition
from polopt.objectives import advantages, surrogates
from polopt.objectives.backend import as_weights, group_index, group_sum, reverse_recurrence, stop_gradient


def subsets(rank, size, k: int, fixed: int):
    """C(rank - fixed, k - fixed) / C(size, k): the chance that a set of k of `size` holds `fixed` given ones, the rest being below rank.

    fixed: 1 for the best itself, 2 for it and another, 3 for it and two others.
    """
    xp = array_namespace(rank)
    chance = xp.ones_like(rank)
    for t in range(fixed):
        chance = chance * max(k - t, 0) / xp.clip(size - t, min=1)
    for t in range(fixed, k):
        chance = chance * xp.clip(rank - t, min=0) / xp.clip(size - t, min=1)
    return xp.where(rank >= fixed, chance, xp.zeros_like(chance))


def max_at_k_rewards(rewards, group_ids, k: int, deviation=None, *, mask=None):
    """t_i (batch,) of rewards (batch,) in groups of any size; 0 where masked, and in groups of fewer than k. Equal rewards keep their order.

    deviation: d_i (batch,); None is 0.
    """
    xp = array_namespace(rewards)
    there = as_weights(mask, rewards)
    rewards = xp.where(there > 0, rewards, xp.zeros_like(rewards))
    index = 2 * group_index(group_ids) + xp.astype(there == 0, group_index(group_ids).dtype)  # what is masked is a group of its own
    order = xp.argsort(rewards, stable=True)
    order = xp.take(order, xp.argsort(xp.take(index, order), stable=True))
    back = xp.argsort(order)
    r, g = xp.take(rewards, order), xp.take(index, order)
    same, none = xp.astype(g[1:] == g[:-1], r.dtype), xp.zeros_like(r[:1])

    def above(x):
        """The sum of x over those of the group that rank above."""
        return reverse_recurrence(xp.concat([same, none]), x) - x

    def below(x):
        return xp.flip(reverse_recurrence(xp.flip(xp.concat([none, same])), xp.flip(x))) - x

    ones = xp.ones_like(r)
    rank, size = below(ones) + 1, xp.take(group_sum(xp.ones_like(rewards), group_index(index)), order)
    alone, pair, triple = (subsets(rank, size, k, fixed) for fixed in (1, 2, 3))
    d = xp.zeros_like(r) if deviation is None else xp.take(deviation, order)
    lower = below(d)
    own = (alone * (1 + d) + pair * lower) * r
    others = above(r * (pair * (1 + d) + triple * lower)) + d * above(r * (pair - triple))
    return xp.take(own + others, back) * there


def max_at_k_advantages(rewards, group_ids, k: int, deviation=None, *, scale="group", epsilon=1e-6, mask=None):
    """t_i less its group's mean, over a deviation. Rewards are centred first: that moves t by a constant, and equal rewards give exactly 0."""
    centred = advantages.group_relative(rewards, group_ids, scale="none", mask=mask)
    transformed = max_at_k_rewards(centred, group_ids, k, deviation, mask=mask)
    return advantages.group_relative(transformed, group_ids, scale=scale, epsilon=epsilon, mask=mask)


@forgetful
class MaxAtK:
    """What a completion adds to the best of k."""

    k: int = hyper(4, at_least=1)  # completions of which the best counts; at most those of a group
    scale: str = hyper("group", choices=("group", "batch", "none"))  # whose deviation divides
    epsilon: float = hyper(1e-6, at_least=0)  # added to the deviation

    def advantage(self, batch, judged):
        given = dict(scale=self.scale, epsilon=self.epsilon, mask=batch.valid)
        return max_at_k_advantages(batch.reward, batch.group, self.k, **given)


@part
class CorrectedMaxAtK:
    """-A log pi with the transformed rewards of the present policy, to first order."""

    k: int = hyper(4, at_least=1)  # completions of which the best counts; at most those of a group
    scale: str = hyper("group", choices=("group", "batch", "none"))  # whose deviation divides
    epsilon: float = hyper(1e-6, at_least=0)  # added to the deviation
    clip: float = hyper(0.2, above=0)  # d is cut to +- this

    def loss(self, update: Update, key):
        log_ratio = jnp.sum(jnp.where(update.learn, update.log_prob - update.old_log_prob, 0.0), axis=1)
        deviation = stop_gradient(jnp.clip(jnp.expm1(log_ratio), -self.clip, self.clip))
        given = dict(scale=self.scale, epsilon=self.epsilon, mask=update.learn.any(axis=1))
        advantage = max_at_k_advantages(update.reward, update.group, self.k, deviation, **given)
        return surrogates.policy_gradient(update.log_prob, advantage[:, None]), {"deviation": jnp.max(jnp.abs(deviation))}


@composition
def max_at_k(task: LanguageTask | None = None) -> Language:
    """GRPO on the transformed rewards: the best of 4 of 8 completions, clip .2, penalty .01, three passes."""
    return Language(
        sampler=Grouped(),
        advantage=MaxAtK(),
        objective=Clipped(),
        step_rule=adam(task, 5e-6),
        penalty=KLPenalty(0.01),
        aggregation=Aggregation("sequence"),
        epochs=3,
    )


@composition
def corrected(task: LanguageTask | None = None) -> Language:
    """The same with the transformation corrected at every pass, in place of PPO's ratio, and token sums over the greatest length."""
    length = 256.0 if task is None else float(task.length)
    return replace(max_at_k(task), advantage=Ones(), objective=CorrectedMaxAtK(), aggregation=Aggregation("constant", length))
