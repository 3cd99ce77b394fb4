"""Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs.

Arash Ahmadian, Chris Cremer, Matthias Gallé, Marzieh Fadaee, Julia Kreutzer, Olivier Pietquin, Ahmet Üstün, Sara Hooker. 2024. arXiv:2402.14740

REINFORCE, where a completion's baseline is the mean reward of the others of its prompt. They were drawn without it, so the gradient is unbiased,
direction and length, for groups of any size from two. A completion is one action: log-probabilities are summed over its tokens.

    R_i  = r_i - beta (log pi(o_i | q) - log pi_ref(o_i | q))
    A_i  = R_i - 1/(G-1) sum_{j != i} R_j = G / (G-1) (R_i - mean_j R_j)
    loss = 1/N sum_i - A_i log pi(o_i | q)
"""

from __future__ import annotations

from polopt.data.language import LanguageTask
from polopt.loops.credit import LeaveOneOut
from polopt.loops.language import Aggregation, KLReward, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import LogLikelihood
from polopt.methods._language import adam, few
from polopt.methods.registry import composition


@composition
def rloo(task: LanguageTask | None = None) -> Language:
    """RLOO with four completions of each prompt and a penalty of 0.03 in the reward."""
    return Language(
        sampler=Grouped(prompts=few(task, 16), completions=4),
        advantage=LeaveOneOut(),
        objective=LogLikelihood(),
        step_rule=adam(task),
        penalty=KLReward(0.03),
        aggregation=Aggregation("constant", scale=1.0),
    )
