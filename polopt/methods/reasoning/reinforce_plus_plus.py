"""REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization.

Jian Hu, Jason Klein Liu, Haotian Xu, Wei Shen. 2025. arXiv:2501.03262

Advantages are standardised over all tokens of the batch instead of over the few completions of a prompt. The deviation of a large batch hardly
depends on a single completion, so the bias of GRPO's vanishes as the batch grows, and one completion of each prompt is enough.

    a_it = r_i - beta sum_{k >= t} (log pi_old(o_ik) - log pi_ref(o_ik))
    A_it = (a_it - mean a) / (std a + 1e-8)                               over all tokens of the batch
    loss = sum_it - min( r_it A_it, clip(r_it, 1 - eps, 1 + eps) A_it ) / sum_i T_i

`baseline` is the paper's variant for several completions of a prompt: a_i = r_i - mean_j r_j, and a penalty (log pi - log pi_ref)^2 / 2 in the loss.
"""

from __future__ import annotations

from polopt.data.language import LanguageTask
from polopt.loops.credit import Whitened
from polopt.loops.language import Aggregation, KLPenalty, KLReward, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods._language import adam, few
from polopt.methods.registry import composition


@composition
def reinforce_plus_plus(task: LanguageTask | None = None) -> Language:
    """REINFORCE++: one completion of each prompt, the penalty in the reward, token by token; four updates an iteration."""
    return Language(
        sampler=Grouped(prompts=few(task, 64), completions=1),
        advantage=Whitened(),
        objective=Clipped(),
        step_rule=adam(task),
        penalty=KLReward(0.01),
        aggregation=Aggregation("token"),
        minibatches=4,
    )


@composition
def baseline(task: LanguageTask | None = None) -> Language:
    """REINFORCE++-baseline: the mean of the group is taken first, and the penalty is in the loss."""
    return Language(
        sampler=Grouped(prompts=few(task, 64)),
        advantage=Whitened(centre=True),
        objective=Clipped(),
        step_rule=adam(task),
        penalty=KLPenalty(0.01, "k2"),
        aggregation=Aggregation("token"),
        minibatches=4,
    )
