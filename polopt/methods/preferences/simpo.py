"""SimPO: Simple Preference Optimization with a Reference-Free Reward.

Yu Meng, Mengzhou Xia, Danqi Chen. 2024. arXiv:2405.14734

The implicit reward is the mean log-probability of a response's tokens, the quantity by which it is decoded; no reference is asked, and length
earns nothing. The preferred response must be better by a margin gamma.

    L = -log sigmoid( beta log pi(y_w | x) / |y_w| - beta log pi(y_l | x) / |y_l| - gamma )

Defaults: beta 2 and gamma / beta .5, in the middle of the paper's ranges, 128 pairs a step, Adam 1e-6.
"""

from __future__ import annotations

from polopt.core.parts import hyper, part
from polopt.data.preferences import PreferenceTask
from polopt.loops.preference import Minibatches, Preference
from polopt.loops.preference_sources import Logged
from polopt.methods._language import sized
from polopt.methods.registry import composition
from polopt.objectives.preferences import logistic
from polopt.optim.adam import Adam


@part
class MarginLogistic:
    """-log sigmoid(beta (log pi(y_w) - log pi(y_l)) - gamma)."""

    beta: float = hyper(2.0, above=0)  # scale of the reward
    gamma_ratio: float = hyper(0.5, at_least=0)  # gamma / beta: by how much the preferred response must be better

    anchors = ()
    responses = 2

    def __call__(self, columns):
        h = columns.order * (columns.log_prob[:, 0] - columns.log_prob[:, 1])
        return logistic(self.beta * (h - self.gamma_ratio)) * (columns.order != 0)


@composition
def simpo(task: PreferenceTask | None = None) -> Preference:
    """SimPO on logged pairs."""
    step = Adam(learning_rate=1e-6, max_grad_norm=1.0, epsilon=1e-8)
    return sized(task, Preference(Logged(groups=128), MarginLogistic(), Minibatches(step), length_normalised=True))
