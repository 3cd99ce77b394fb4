"""RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training.

Tao Ren, Jinyang Jiang, Hui Yang, Wan Tian, Minhao Zou, Guanghao Li, Zishi Zhang, Qinghao Wang, Shentao Qin, et al. 2025. arXiv:2510.00911

What is improved is not the mean of the scores but their lower tail and their middle; the upper tail, which is saturated, is left alone. Scores of
0 and 1 have no quantiles worth the name, so questions come in bundles: paper j is the j-th response to each question of a bundle, with the sum of
their rewards as its score S. With q_u the quantile of level u of all scores,

    J    = [ RVaR_{a:b} + w CVaR_a ] / (1 + w),     RVaR_{a:b} = mean of the quantiles from level a to b,  CVaR_a = RVaR_{0:a}
    g    = [ ((S - q_a)+ - (S - q_b)+ + q_a - q_b) / (b - a)  -  w (q_a - S)+ / a ] / (1 + w)       weight of a paper on grad log pi
    A    = (g - mean g) / std S           over the papers of its bundle
    q_u <- q_u + rate ( u - mean 1[S < q_u] )         over the papers of an iteration; at first, the quantiles of the first

and A goes to the responses as it is (uniform), divided by the deviation of their question's rewards (std), or by their share in the paper's
deviation from the questions' means (share), which is unsafe where those cancel. With a = 0, b = 1, w = 0 it is the mean. The control that seeks risk
has w (S - q_b)+ / (1 - b) in the place of the lower tail.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods._language import adam
from polopt.methods.registry import composition
from polopt.objectives.backend import group_index, group_sum, safe_divide, safe_sqrt

NEAR_ZERO = 1e-6  # deviations below this divide nothing


def paper_weight(score, q_a, q_b, a, b, w, tail: str = "lower"):
    """g of papers with these scores."""
    xp = array_namespace(score)

    def beyond(x):
        return xp.clip(x, min=0)

    middle = (beyond(score - q_a) - beyond(score - q_b) + q_a - q_b) / (b - a)
    extreme = -beyond(q_a - score) / a if tail == "lower" else beyond(score - q_b) / (1 - b)
    return (middle + w * extreme) / (1 + w)


def place_in_group(group_ids):
    """For each completion, how many of its group stand before it."""
    xp = array_namespace(group_ids)
    rank = xp.argsort(xp.argsort(group_ids, stable=True))
    return rank - group_index(group_ids)


def deviation(x, index, weight):
    """(x - mean, std) over groups numbered by index; 0 where the weight is."""
    count = group_sum(weight, index)
    centred = (x - safe_divide(group_sum(weight * x, index), count)) * weight
    return centred, safe_sqrt(safe_divide(group_sum(centred**2, index), count))


class Papers(NamedTuple):
    """Of each response (N,): its paper and its bundle, numbered in any way, the paper's score, and one over the paper's responses."""

    paper: Any
    bundle: Any
    score: Any
    share: Any


def papers_of(batch, size: int) -> Papers:
    """The papers of a batch whose questions are bundled by `size`, those beside each other."""
    bundle = batch.group // size
    paper = group_index(bundle * batch.group.shape[0] + place_in_group(batch.group))
    ones = jnp.ones_like(batch.reward)
    return Papers(paper, group_index(bundle), group_sum(jnp.where(batch.valid, batch.reward, 0.0), paper), 1 / group_sum(ones, paper))


@part
class MixedValueAtRisk:
    """What a paper of a bundle of questions is worth to the lower tail and the middle of the scores."""

    bundle: int = hyper(5, at_least=1)  # questions in a bundle, those beside each other
    a: float = hyper(0.2, above=0, below=1)  # below this level is the lower tail
    b: float = hyper(0.8, above=0, below=1)  # above this one nothing is earned
    w: float = hyper(1.5, at_least=0)  # weight of the tail
    rate: float = hyper(0.1, above=0)  # of the tracked quantiles
    tail: str = hyper("lower", choices=("lower", "upper"))  # upper: the control that seeks risk
    centre: bool = True  # take the mean of a bundle's papers
    scale: bool = True  # divide by the deviation of a bundle's scores
    credit: str = hyper("std", choices=("uniform", "std", "share"))  # how a paper's worth goes to its responses

    def init(self, task: LanguageTask, key):
        """(q_a, q_b), and whether there were scores yet."""
        return jnp.zeros((2,)), jnp.zeros((), bool)

    def __call__(self, state, task, batch, judged):
        tracked, warm = state
        papers = papers_of(batch, self.bundle)
        levels = jnp.stack([jnp.asarray(self.a), jnp.asarray(self.b)])
        tracked = jnp.where(warm, tracked, jnp.quantile(papers.score, levels))
        worth = paper_weight(papers.score, tracked[0], tracked[1], self.a, self.b, self.w, self.tail)
        ones = jnp.ones_like(worth)
        if self.centre:
            worth = deviation(worth, papers.bundle, ones)[0]
        if self.scale:
            worth = _divided(worth, deviation(papers.score, papers.bundle, ones)[1])
        # a paper counts once, whatever its responses
        below = jnp.sum(papers.share[None] * (papers.score[None] < tracked[:, None]), axis=1) / jnp.sum(papers.share)
        return self.credited(worth, batch, papers), (tracked + self.rate * (levels - below), jnp.ones((), bool))

    def credited(self, worth, batch, papers):
        """What of a paper's worth each of its responses gets."""
        if self.credit == "uniform":
            return worth
        centred, std = deviation(batch.reward, group_index(batch.group), batch.valid.astype(batch.reward.dtype))
        return _divided(worth, std) if self.credit == "std" else _divided(worth * centred, group_sum(centred, papers.paper))


def _divided(x, by):
    """x / by, and 0 where there is next to nothing to divide by."""
    enough = jnp.abs(by) > NEAR_ZERO
    return jnp.where(enough, x / jnp.where(enough, by, 1.0), 0.0)


@composition
def riskpo(task: LanguageTask | None = None) -> Language:
    """RiskPO with two bundles of five questions, ten responses to each."""
    prompts = 10 if task is None else min(10, len(task.prompts))
    return Language(
        sampler=Grouped(prompts, 10),
        advantage=MixedValueAtRisk(),
        objective=Clipped(),
        step_rule=adam(task),
        aggregation=Aggregation("sequence"),
    )
