"""DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models.

Zhihong Shao, Peiyi Wang, Qihao Zhu, Runxin Xu, Junxiao Song, et al. 2024. arXiv:2402.03300

Group relative policy optimisation: the baseline of a completion is the mean reward of the G completions of its own prompt, so that no
critic is needed. PPO's clipped surrogate on tokens, and a penalty on the divergence from the policy that training started from.

    A_i     = (r_i - mean_j r_j) / (std_j r_j + 1e-6)
    r_it    = pi(o_it | q, o_i<t) / pi_old(o_it | q, o_i<t)
    loss    = 1/N sum_i 1/T_i sum_t - min( r_it A_i, clip(r_it, 1 - eps, 1 + eps) A_i ) + beta k3_it
    k3_it   = pi_ref / pi - log(pi_ref / pi) - 1

The penalty is the paper's: its value estimates KL(pi || pi_ref), but its gradient is that of KL(pi_ref || pi) (see arXiv 2505.17508).
"""

from __future__ import annotations

from polopt.data.language import LanguageTask
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Aggregation, KLPenalty, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods._language import adam, few
from polopt.methods.registry import composition


@composition
def grpo(task: LanguageTask | None = None) -> Language:
    """GRPO with the paper's clip of 0.2 and penalty of 0.04."""
    return Language(
        sampler=Grouped(prompts=few(task, 64)),
        advantage=GroupRelative(),
        objective=Clipped(),
        step_rule=adam(task),
        penalty=KLPenalty(0.04),
        aggregation=Aggregation("sequence"),
    )
