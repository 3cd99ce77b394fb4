"""Towards a Unified View of Large Language Model Post-Training.

Xingtai Lv, Yuxin Zuo, Youbang Sun, Hongyi Liu, Yuntian Wei, Zhekai Chen, Lixuan He, Xuekai Zhu, Kaiyan Zhang, et al. 2025. arXiv:2509.04419

Fine-tuning and reinforcement learning are one estimator with four parts: a mask, a denominator, an advantage, and the gradient of the likelihood,

    grad = 1_stable (1 / pi_ref) A grad pi
    method        denominator pi_ref                       A                                      mask
    SFT           pi                                       1                                      none
    REINFORCE     pi                                       signed reward                          none
    PPO           pi_old                                   GAE                                    clip
    GRPO          pi_old                                   z-score in the group                   clip
    CISPO         max(pi_old, pi / (1 + eps))              as GRPO                                none
    GSPO          pi (pi_old(o) / pi(o))^(1/|o|)           as GRPO                                clip of the sequence
    SRFT          1 on demonstrations                      z-score with demonstrations            none
    LUFFY         1 / f'(pi), f'(x) = .1 / (x + .1)^2      as SRFT                                none

Hybrid post-training chooses between the two by question: with the success rate P of its n completions and a gate,

    P > gate      L_q = -1/n sum_i 1/L_max sum_t (r_i - P) rho_it,  rho = pi / sg(pi)      Dr. GRPO, without a clip
    else          L_q = -c 1/|y*| sum_t log pi(y*_t)                                       the demonstration; failures are dropped

and questions are averaged, so that one that fails counts as a single sequence.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import forgetful
from polopt.loops.language import Aggregation, Language, group_means
from polopt.loops.prompting import Accompanied
from polopt.loops.wording import LogLikelihood
from polopt.methods._language import adam
from polopt.methods.registry import composition
from polopt.objectives import advantages
from polopt.objectives.backend import stop_gradient


def unified(log_prob, log_denominator, advantage, stable):
    """The loss of each token whose gradient is -1_stable (1 / pi_ref) A grad pi."""
    xp = array_namespace(log_prob)
    return -stop_gradient(stable * advantage * xp.exp(log_prob - log_denominator)) * log_prob


def clip_mask(log_prob, old_log_prob, advantage, low, high):
    """1_stable of PPO and GRPO: 0 where the ratio has left the clip in the direction of its advantage."""
    xp = array_namespace(log_prob)
    ratio = xp.exp(log_prob - old_log_prob)
    return xp.where(((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low)), 0.0 * ratio, 1.0 + 0.0 * ratio)


@forgetful
class Hybrid:
    """The reward less the mean of the policy's own completions, and a constant for demonstrations."""

    demonstration: float = hyper(1.0, at_least=0)  # c: weight of a question's demonstration
    length: float = hyper(8192.0, above=0)  # L_max: what token sums of the policy's own completions are divided by

    def advantage(self, batch, judged):
        own = batch.valid & ~batch.demonstration
        centred = advantages.group_relative(batch.reward, batch.group, scale="none", mask=own)
        # the aggregation divides by the completion's length
        tokens = jnp.sum(judged.learn, axis=1)
        return jnp.where(batch.demonstration, self.demonstration, centred * tokens / self.length)


@part
class Gate:
    """The policy's own completions of questions that it solves often enough, the demonstration of the others."""

    reads = False

    gate: float = hyper(0.0, at_least=-1, at_most=1)  # success rate above which there is no need of a demonstration; below 0: never one

    def __call__(self, judged, entropy, progress):
        batch = judged.batch
        success = group_means(batch.reward, batch.valid & ~batch.demonstration, batch.group, batch.group.shape[0])
        solved = success > self.gate
        return judged.learn & jnp.where(batch.demonstration, ~solved, solved)[:, None]


@composition
def hpt(task: LanguageTask | None = None) -> Language:
    """HPT as for the paper's base models: a demonstration only where all of 8 completions fail."""
    return Language(
        sampler=Accompanied(),
        advantage=Hybrid(length=8192.0 if task is None else float(task.length)),
        objective=LogLikelihood(),
        step_rule=dataclasses.replace(adam(task, 5e-6), max_grad_norm=80.0),
        selection=Gate(),
        aggregation=Aggregation("group_sequence"),
        minibatches=2,
        entropy_coefficient=0.001,
    )
