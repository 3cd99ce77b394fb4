"""Training language models to follow instructions with human feedback.

Long Ouyang, Jeff Wu, Xu Jiang, Diogo Almeida, Carroll L. Wainwright, et al. 2022. arXiv:2203.02155

Supervised fine-tuning, the first of the paper's three steps: the likelihood of demonstrations is maximised, every token alike.

    loss = - sum_it log pi(y_it | q, y_i<t) / sum_i T_i
"""

from __future__ import annotations

from polopt.data.language import LanguageTask
from polopt.loops.credit import Ones
from polopt.loops.language import Aggregation, Language
from polopt.loops.prompting import Demonstrated
from polopt.loops.wording import LogLikelihood
from polopt.methods._language import adam, few
from polopt.methods.registry import composition


@composition
def sft(task: LanguageTask | None = None) -> Language:
    """Maximum likelihood of the demonstrations, with the paper's step size of 1e-5 and batch of 32."""
    return Language(
        sampler=Demonstrated(prompts=few(task, 32)),
        advantage=Ones(),
        objective=LogLikelihood(),
        step_rule=adam(task, 1e-5),
        aggregation=Aggregation("token"),
    )
