"""RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment.

Hanze Dong, Wei Xiong, Deepanshu Goyal, Yihan Zhang, Winnie Chow, et al. 2023. arXiv:2304.06767

Best-of-N made into training: of the N completions of a prompt the best one is kept, and the policy imitates it. What is imitated is the
best-of-N policy of the one that wrote, so every round climbs by one such step.

    pi_N(y | q) = F(y)^N - F(y-)^N           F: how likely pi writes something no better than y, F(y-): something worse
    KL(pi_N || pi) <= log N - (N - 1) / N
    loss        = - mean over the kept completions of sum_t log pi(o_t | q, o_<t)

Of equally good completions the first is kept, and of a prompt whose completions are all equally good, too: the paper filters by rank alone.
`keep` is how many of each prompt are imitated. Rounds of one update are our default; the paper fits each round's set for some epochs.
"""

from __future__ import annotations

import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import forgetful
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import LogLikelihood
from polopt.methods._language import adam, few
from polopt.methods.registry import composition


def best_of_n_probs(probs, rewards, n: int):
    """pi_N (K,) over K answers with probabilities and rewards (K,); equally good answers share in proportion to their probabilities."""
    xp = array_namespace(probs, rewards)
    same = xp.astype(rewards[:, None] == rewards[None, :], probs.dtype)
    worse = xp.astype(rewards[:, None] > rewards[None, :], probs.dtype)
    level, below = same @ probs, worse @ probs
    return ((below + level) ** n - below**n) * probs / xp.where(level > 0, level, xp.ones_like(level))


def largest_kl(n: int):
    """log N - (N - 1) / N: no best-of-N policy is further from the policy that it draws from."""
    return jnp.log(n) - (n - 1) / n


def rank_in_group(rewards, group_ids, valid):
    """(N,) how many of the same group are better, or as good and earlier; those that are not valid come last."""
    xp = array_namespace(rewards)
    score = xp.where(valid, rewards, xp.full_like(rewards, -xp.inf))
    place = xp.arange(rewards.shape[0])
    ahead = (score[None, :] > score[:, None]) | ((score[None, :] == score[:, None]) & (place[None, :] < place[:, None]))
    return xp.sum(xp.astype(ahead & (group_ids[None, :] == group_ids[:, None]), xp.int32), axis=1)


@forgetful
class Best:
    """1 for the best completions of each prompt, 0 for the others."""

    fewest = 2

    keep: int = hyper(1, at_least=1)  # how many of each prompt

    def advantage(self, batch, judged):
        return (rank_in_group(batch.reward, batch.group, batch.valid) < self.keep).astype(batch.reward.dtype)


@part
class Kept:
    """The completions with a positive advantage."""

    reads = False

    def __call__(self, judged, entropy, progress):
        return judged.learn & (judged.advantage > 0)


@composition
def best_of_n(task: LanguageTask | None = None) -> Language:
    """RAFT: the best of eight completions of each prompt is imitated."""
    return Language(
        sampler=Grouped(prompts=few(task, 64)),
        advantage=Best(),
        objective=LogLikelihood(),
        step_rule=adam(task, 2e-5),
        selection=Kept(),
        aggregation=Aggregation("constant"),
    )
