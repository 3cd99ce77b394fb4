"""Contrastive Policy Gradient: Aligning LLMs on Sequence-Level Scores in a Supervised-Friendly Fashion.

Yannis Flet-Berliac, Nathan Grinsztajn, Florian Strub, Bill Wu, Eugene Choi, Chris Cremer, Arash Ahmadian, et al. 2024. arXiv:2406.19185

The best policy for E[R] - beta KL(pi || pi_ref) makes the regularised reward the same for every response, so its differences are to vanish:

    R_b(y) = R(x, y) - beta log( pi(y | x) / pi_ref(y | x) )          L = E( R_b(y) - R_b(y') )^2 / 2

for responses from any distributions that reach them all: no importance weights. The gradient is a policy gradient in which each response's
baseline is the other's regularised reward; drawn from the policy itself it is RLOO with two samples, and with R(y_w) - R(y_l) = 1/2 the loss is
IPO's. For K responses L is the mean over their pairs, the unbiased variance of R_b.

Defaults: beta .1 and DPO's batch and step size; the paper sweeps beta. `copg:online` draws the responses from the current policy.
"""

from __future__ import annotations

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.data.preferences import PreferenceTask
from polopt.loops.preference import START, AsDrawn, Preference
from polopt.loops.preference_sources import Logged, Online
from polopt.methods._language import sized
from polopt.methods.registry import composition
from polopt.objectives.preferences import mean_pair_difference


@part
class Contrastive:
    """Half the squared difference of regularised rewards, averaged over the pairs of a group."""

    beta: float = hyper(0.1, above=0)  # strength of the KL penalty

    anchors = (START,)
    responses = None

    def __call__(self, columns):
        return mean_pair_difference(columns.score - self.beta * columns.ratio())


@composition
def copg(task: PreferenceTask | None = None) -> Preference:
    """CoPG on logged responses with rewards."""
    return sized(task, Preference(Logged(groups=64, pairs=AsDrawn()), Contrastive()))


@composition
def online(task: LanguageTask | None = None) -> Preference:
    """CoPG on responses of the current policy."""
    return sized(task, Preference(Online(), Contrastive()))
