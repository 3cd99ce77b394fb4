"""On-Policy RL with Optimal Reward Baseline.

Yaru Hao, Li Dong, Xun Wu, Shaohan Huang, Zewen Chi, Furu Wei. 2025. arXiv:2505.23585

The baseline that minimises the variance of the policy gradient, instead of the mean. With g_i the gradient of the completion's log-probability it is
E[|g|^2 r] / E[|g|^2]; |g_i|^2 grows with the length, since the tokens' gradients are nearly orthogonal. Every update is exactly on-policy.

    b    = sum_j T_j r_j / sum_j T_j                over the G completions of the prompt
    A_i  = r_i - b
    loss = 1/N sum_i sum_t - A_i log pi(o_it | q, o_i<t)

Token sums, not means: sum_i T_i A_i = 0. There is no penalty, no clip and no division by a deviation.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from polopt.data.language import LanguageTask
from polopt.loops.credit import LengthWeighted
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import LogLikelihood
from polopt.methods._language import adam, few
from polopt.methods.registry import composition


def optimal_baseline(rewards, squared_norms):
    """E[|g|^2 r] / E[|g|^2] from samples (n,): the constant that makes the trace of the covariance of (r - b) g smallest."""
    xp = array_namespace(rewards, squared_norms)
    return xp.sum(squared_norms * rewards) / xp.sum(squared_norms)


@composition
def opo(task: LanguageTask | None = None) -> Language:
    """OPO with sixteen completions of each prompt."""
    return Language(
        sampler=Grouped(prompts=few(task, 64), completions=16),
        advantage=LengthWeighted(),
        objective=LogLikelihood(),
        step_rule=adam(task),
        aggregation=Aggregation("constant", scale=1.0),
    )
