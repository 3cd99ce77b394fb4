"""Direct Preference Optimization: Your Language Model is Secretly a Reward Model.

Rafael Rafailov, Archit Sharma, Eric Mitchell, Stefano Ermon, Christopher D. Manning, Chelsea Finn. 2023. arXiv:2305.18290

The policy that is best for a reward r less beta KL(pi || pi_ref) is pi_ref exp(r / beta) / Z, so a policy is a reward model: its implicit reward
is beta log(pi / pi_ref), and the Bradley-Terry likelihood of comparisons can be maximised in the policy itself.

    h = log pi(y_w | x) / pi_ref(y_w | x) - log pi(y_l | x) / pi_ref(y_l | x)
    L = -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)

with y_w preferred to y_l, and eps the share of labels that are taken to be wrong. Two responses that are equally good count as half of each.

`dpo:online` draws the pairs from the current policy and labels them by the task's verifier (Guo et al., arXiv:2402.04792).

Defaults: the paper's beta .1, 64 pairs a step and no label smoothing; the step size, which was 1e-6 there, 5e-7 as libraries have it.
"""

from __future__ import annotations

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.data.preferences import PreferenceTask
from polopt.loops.preference import START, Columns, Minibatches, Preference
from polopt.loops.preference_sources import Comparisons, Logged, Online
from polopt.methods._language import sized
from polopt.methods.registry import composition
from polopt.objectives.preferences import logistic, margin


def first_over_second(columns: Columns, name: str = START):
    """h of pairs with one anchor, (B,)."""
    log_prob, anchor = columns.log_prob, columns.anchor[name]
    return margin(log_prob[:, 0], log_prob[:, 1], [(1.0, anchor[:, 0], anchor[:, 1])])


@part
class Logistic:
    """-log sigmoid(beta h)."""

    beta: float = hyper(0.1, above=0)  # strength of the KL penalty that the policy is the optimum of
    label_smoothing: float = hyper(0.0, at_least=0, below=0.5)  # eps: the share of labels taken to be wrong

    anchors = (START,)
    responses = 2

    def __call__(self, columns):
        label = 0.5 + columns.order * (0.5 - self.label_smoothing)
        return logistic(self.beta * first_over_second(columns), label)


@composition
def dpo(task: PreferenceTask | None = None) -> Preference:
    """DPO on logged pairs."""
    return sized(task, Preference(Logged(groups=64), Logistic()))


@composition
def online(task: LanguageTask | None = None) -> Preference:
    """DPO on pairs of the current policy, labelled by the task's verifier."""
    return sized(task, Preference(Online(annotator=Comparisons()), Logistic(), Minibatches()))
