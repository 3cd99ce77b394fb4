"""Towards Efficient and Exact Optimization of Language Model Alignment.

Haozhe Ji, Cheng Lu, Yilin Niu, Pei Ke, Hongning Wang, Jun Zhu, Jie Tang, Minlie Huang. 2024. arXiv:2402.00856

K responses y_i ~ pi_ref have a distribution implied by the policy and one implied by the reward,

    f_i = log pi(y_i | x) - log pi_ref(y_i | x)          p_f = softmax(beta_pi f)          p_r = softmax(r / beta_r)

DPO minimises KL(p_r || p_f), which spreads over the modes that a policy cannot all have. EXO minimises the reverse,

    L = KL(p_f || p_r) = sum_i p_f(i) [ log p_f(i) - log p_r(i) ]

whose gradient becomes, as K grows, that of E[r] - beta_r beta_pi KL(pi || pi_ref), with no response drawn during training. From bare preferences
(scores 1 and 0) K is 2 and p_r = (1 - eps, eps).

Responses must come from the reference, for the K to stand for it.

Defaults: the paper's for summaries, beta_pi = beta_r = .5, eps 1e-3, 64 groups a step, Adam 1e-6 without decay.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.preferences import PreferenceTask
from polopt.loops.preference import START, AsDrawn, Minibatches, Preference
from polopt.loops.preference_sources import Logged
from polopt.methods._language import sized
from polopt.methods.registry import composition
from polopt.objectives.preferences import reverse_kl
from polopt.optim.adam import Adam


def smoothed_labels(order, epsilon):
    """log p_r (B, 2) of pairs: 1 - eps on the better response and eps on the other, or half each where they are equal."""
    better = 0.5 + order * (0.5 - epsilon)
    return jnp.log(jnp.stack([better, 1 - better], 1))


@part
class ReverseKL:
    """KL(p_f || p_r) over K responses with scores."""

    beta_pi: float = hyper(0.5, above=0)  # multiplies the log-ratios
    beta_r: float = hyper(0.5, above=0)  # divides the rewards: small is sharp

    anchors = (START,)
    responses = None

    def __call__(self, columns):
        return reverse_kl(self.beta_pi * columns.ratio(), jax.nn.log_softmax(columns.score / self.beta_r))


@part
class ReverseKLOfPairs:
    """KL(p_f || (1 - eps, eps)) of labelled pairs."""

    beta_pi: float = hyper(0.5, above=0)  # multiplies the log-ratios
    epsilon: float = hyper(1e-3, above=0, below=0.5)  # eps: the share of the label that the other response has

    anchors = (START,)
    responses = 2

    def __call__(self, columns):
        return reverse_kl(self.beta_pi * columns.ratio(), smoothed_labels(columns.order, self.epsilon))


STEP = Adam(learning_rate=1e-6, anneal=False, max_grad_norm=1.0, epsilon=1e-8)


@composition
def exo(task: PreferenceTask | None = None) -> Preference:
    """EXO on logged pairs, of which only the order counts."""
    return sized(task, Preference(Logged(groups=64), ReverseKLOfPairs(), Minibatches(STEP)))


@composition
def scored(task: PreferenceTask | None = None) -> Preference:
    """EXO on logged groups of K responses with rewards."""
    return sized(task, Preference(Logged(groups=64, pairs=AsDrawn()), ReverseKL(), Minibatches(STEP)))
