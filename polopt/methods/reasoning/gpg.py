"""GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning.

Xiangxiang Chu, Hailang Huang, Xiao Zhang, Fei Wei, Yong Wang. 2025. arXiv:2504.02546

Plain on-policy policy gradient with the group's mean as the baseline: no critic, no anchor, no ratio, no clip. Groups that are all right or all
wrong give no gradient but count in the mean over the batch, and so shrink the step; alpha takes that back.

    M     = groups whose rewards are all equal, of B
    alpha = B / (B - M), and 0 where M = B
    A_i   = alpha (r_i - mean_j r_j)
    loss  = sum_it - A_i log pi(o_it | q, o_i<t) / sum_i T_i

Under Adam a constant factor cancels, and alpha matters only as it changes between iterations. `threshold` draws prompts until a share beta_th of the
batch's groups is informative and learns from those alone, for which alpha is 1: what counts as B are the groups that are there.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from polopt.core.parts import part
from polopt.data.language import LanguageTask
from polopt.loops.credit import Centred
from polopt.loops.language import Advantage, Aggregation, Language
from polopt.loops.prompting import Grouped, Informative
from polopt.loops.wording import LogLikelihood
from polopt.methods._language import adam, few
from polopt.methods.registry import composition
from polopt.objectives.advantages import group_relative
from polopt.objectives.backend import as_weights, group_index, group_sum, safe_divide


def batch_correction(rewards, group_ids, mask=None):
    """alpha, a number, from rewards and group ids (N,); completions with mask 0 are not there, and a group without any is not either."""
    xp = array_namespace(rewards, group_ids)
    index, weight = group_index(group_ids), as_weights(mask, rewards)
    deviation = group_sum(xp.abs(group_relative(rewards, group_ids, scale="none", mask=mask)), index)
    of_a_group = safe_divide(weight, group_sum(weight, index))  # sums to 1 over a group
    return safe_divide(xp.sum(of_a_group), xp.sum(of_a_group * xp.astype(deviation > 0, rewards.dtype)))


@part
class Corrected:
    """Another advantage, times alpha of the whole batch."""

    of: Advantage = Centred()

    fewest = 2

    def init(self, task: LanguageTask, key):
        return self.of.init(task, key)

    def __call__(self, state, task, batch, judged):
        advantage, state = self.of(state, task, batch, judged)
        return batch_correction(batch.reward, batch.group, batch.valid) * advantage, state


def _composed(task: LanguageTask | None, sampler) -> Language:
    return Language(
        sampler=sampler,
        advantage=Corrected(),
        objective=LogLikelihood(),
        step_rule=adam(task),
        aggregation=Aggregation("token"),
    )


@composition
def gpg(task: LanguageTask | None = None) -> Language:
    """GPG: every group is kept, and alpha corrects for those that say nothing."""
    return _composed(task, Grouped(prompts=few(task, 64)))


@composition
def threshold(task: LanguageTask | None = None) -> Language:
    """GPG that draws prompts until six in ten groups of the batch are informative."""
    return _composed(task, Informative(enough=0.6))
