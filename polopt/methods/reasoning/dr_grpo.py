"""Understanding R1-Zero-Like Training: A Critical Perspective.

Zichen Liu, Changyu Chen, Wenjun Li, Penghui Qi, Tianyu Pang, Chao Du, Wee Sun Lee, Min Lin. 2025. arXiv:2503.20783

Dr. GRPO: GRPO without the two divisions that bend its gradient. The deviation of the group favours prompts that are nearly always or nearly
never solved, and the length of a completion favours short right answers and long wrong ones.

    A_i  = r_i - mean_j r_j
    loss = 1/N sum_i 1/L sum_t - min( r_it A_i, clip(r_it, 1 - eps, 1 + eps) A_i ),    L a constant

While the old policy is the current one, the mean gradient is (G - 1) / (G L) times that of E[r]: the mean of the group holds the completion's
own reward, which takes 1/G of its length and nothing of its direction. There is no penalty.
"""

from __future__ import annotations

from polopt.data.language import LanguageTask
from polopt.loops.credit import Centred
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped
from polopt.methods._language import adam, few
from polopt.methods.registry import composition


@composition
def dr_grpo(task: LanguageTask | None = None) -> Language:
    """Dr. GRPO with four updates an iteration; L is the greatest length of a completion, the paper's 3000 without a task."""
    return Language(
        sampler=Grouped(prompts=few(task, 64)),
        advantage=Centred(),
        objective=Clipped(),
        step_rule=adam(task),
        aggregation=Aggregation("constant", scale=3000.0 if task is None else float(task.length)),
        minibatches=4,
    )
