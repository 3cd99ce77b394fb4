"""It Takes Two: Your GRPO Is Secretly DPO.

Yihong Wu, Liheng Ma, Lei Ding, Muzhi Li, Xinyu Wang, Kejia Chen, et al. 2025. arXiv:2510.00977

With rewards of 0 or 1, GRPO raises right completions and lowers wrong ones of the same prompt, as DPO does with online pairs; the size of the group
only sets how well that contrast is estimated. Two completions are enough.

    grad J_GRPO(q)   = sqrt(p (1 - p)) ( E[grad log pi(o) | right] - E[grad log pi(o) | wrong] ),    G -> infinity
    grad J_2GRPO(q)  =      p (1 - p)  ( the same )  =  grad E[r]

Two equal rewards give A = (0, 0), two others A = (1, -1) with the deviation of the population: for 0 or 1 that is RLOO with G = 2, which is
unbiased. Any difference of real-valued rewards, however small, becomes +-1 too. At GRPO's step size the method moves at most half as fast a prompt.
"""

from __future__ import annotations

from polopt.data.language import LanguageTask
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods._language import adam, few
from polopt.methods.registry import composition


@composition
def two_grpo(task: LanguageTask | None = None) -> Language:
    """GRPO on pairs, without a penalty: 32 prompts, two completions of each, four updates an iteration."""
    return Language(
        sampler=Grouped(prompts=few(task, 32), completions=2),
        advantage=GroupRelative(),
        objective=Clipped(),
        step_rule=adam(task),
        aggregation=Aggregation("sequence"),
        minibatches=4,
    )
