"""Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning.

Yuheng Zhang, Dian Yu, Baolin Peng, Linfeng Song, Ye Tian, Mingyue Huo, Nan Jiang, Haitao Mi, Dong Yu. 2024. arXiv:2407.00617

Online mirror descent in self-play on the game P(pi > pi') - tau KL(pi || pi_ref) + tau KL(pi' || pi_ref):

    pi_{t+1}(y) ~ pi_t(y)^(1 - tau / eta) pi_ref(y)^(tau / eta) exp( P(y > pi_t) / eta ),          0 < tau < eta

It is the only minimiser of a squared loss that asks for labels of pairs y, y' ~ pi_t alone, never for a win rate:

    h = log pi(y_w) / pi(y_l) - (tau / eta) log pi_ref(y_w) / pi_ref(y_l) - (1 - tau / eta) log pi_t(y_w) / pi_t(y_l)
    L = ( h - 1 / (2 eta) )^2

Two responses that are judged equal have the target 0. The average of the iterates comes near to the regularised Nash policy; the last one may
cycle where eta is small. Best against worst of several (`source.pairs`) is used in practice, but the equivalence needs plain pairs.

Defaults: the paper's eta .0075 and tau = eta / 3, one epoch of an iteration's pairs, Adam 5e-7. `inpo:exact` solves each regression.
"""

from __future__ import annotations

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.preference import PREVIOUS, START, LeastSquares, Minibatches, Preference
from polopt.loops.preference_sources import Comparisons, Online
from polopt.methods._language import sized
from polopt.methods.registry import composition
from polopt.objectives.preferences import margin


@part
class TwoAnchors:
    """(h - 1 / (2 eta))^2 with the first and the previous policy as anchors."""

    eta: float = hyper(7.5e-3, above=0)  # inverse step size of the mirror descent
    tau_ratio: float = hyper(1 / 3, above=0, at_most=1)  # tau / eta: the share of the first policy; 1 is IPO on the policy's own pairs

    anchors = (START, PREVIOUS)
    responses = 2

    def weights(self):
        """How much each anchor counts."""
        return {START: self.tau_ratio, PREVIOUS: 1 - self.tau_ratio}

    def margin(self, columns):
        """h of the first response over the second, (B,)."""
        anchors = [(c, columns.anchor[name][:, 0], columns.anchor[name][:, 1]) for name, c in self.weights().items()]
        return margin(columns.log_prob[:, 0], columns.log_prob[:, 1], anchors)

    def residual(self, columns):
        """What is squared, (B,). A label that is a probability p has the target (p - 1/2) / eta."""
        return self.margin(columns) - (columns.score[:, 0] - columns.score[:, 1]) / (2 * self.eta)

    def __call__(self, columns):
        return self.residual(columns) ** 2


@composition
def inpo(task: LanguageTask | None = None) -> Preference:
    """INPO on pairs of the current policy, labelled by the task's verifier."""
    return sized(task, Preference(Online(annotator=Comparisons()), TwoAnchors(), Minibatches()))


@composition
def exact(task: LanguageTask | None = None) -> Preference:
    """INPO whose regressions are solved: for tables, log-linear policies and other small ones."""
    return sized(task, Preference(Online(annotator=Comparisons()), TwoAnchors(), LeastSquares()))
