"""Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer.

Zhihan Liu, Miao Lu, Shenao Zhang, Boyi Liu, Hongyi Guo, Yingxiang Yang, Jose Blanchet, Zhaoran Wang. 2024. arXiv:2405.16436

Choose the policy that is best against an adversarial reward, one that fits the preferences but is as low as it can be on the policy beside a
baseline policy. With the optimal policy of a reward put in, the maximin is a single minimisation: DPO, and the likelihood of the baseline's
responses. The chosen responses of the data serve as the baseline's:

    L = -log sigmoid(beta h) - eta beta log pi(y_w | x)

so that probability is not moved to responses that the data does not cover. With `average`, the second term is
-eta log pi(y_w | x) / |y_w|, the mean over tokens without the beta, which the authors prefer for reasoning.

Defaults: the paper's beta .01 and eta .005, 64 pairs a step and Adam 5e-7; with `average` (`rpo:average`) beta .5 and eta .2.
"""

from __future__ import annotations

from polopt.core.parts import hyper, part
from polopt.data.preferences import PreferenceTask
from polopt.loops.preference import START, Preference
from polopt.loops.preference_sources import Logged
from polopt.methods._language import sized
from polopt.methods.preferences.dpo import Logistic
from polopt.methods.registry import composition
from polopt.objectives.backend import safe_divide


@part
class LogisticAndLikelihood:
    """DPO's loss less the log-likelihood of the preferred response, times eta beta or, as a mean over tokens, eta."""

    preference: Logistic = Logistic(beta=0.01)
    eta: float = hyper(0.005, at_least=0)  # weight of the likelihood; 0 is DPO
    average: bool = False  # the likelihood is a mean over tokens, without the factor beta

    anchors = (START,)
    responses = 2

    def __call__(self, columns):
        chosen = columns.log_prob[:, 0]
        if self.average:
            likelihood = self.eta * safe_divide(chosen, columns.length[:, 0].astype(chosen.dtype))
        else:
            likelihood = self.eta * self.preference.beta * chosen
        return self.preference(columns) - likelihood


@composition
def rpo(task: PreferenceTask | None = None) -> Preference:
    """RPO on logged pairs, with the likelihood summed over tokens."""
    return sized(task, Preference(Logged(groups=64), LogisticAndLikelihood()))


@composition
def average(task: PreferenceTask | None = None) -> Preference:
    """RPO with the mean over tokens."""
    return sized(task, Preference(Logged(groups=128), LogisticAndLikelihood(Logistic(beta=0.5), eta=0.2, average=True)))
