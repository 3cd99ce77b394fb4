"""REBEL: Reinforcement Learning via Regressing Relative Rewards.

Zhaolin Gao, Jonathan D. Chang, Wenhao Zhan, Owen Oertell, Gokul Swamy, Kiante Brantley, Thorsten Joachims, et al. 2024. arXiv:2404.16767

An iteration of policy optimisation is a regression: of the difference of two rewards on the difference of two log-ratios. With y, y' ~ pi_t,

    pi_{t+1} = argmin_pi  E( (1 / eta) [ log pi(y | x) / pi_t(y | x) - log pi(y' | x) / pi_t(y' | x) ] - [ r(x, y) - r(x, y') ] )^2

Solved exactly it is mirror descent, pi_{t+1} = pi_t exp(eta r) / Z, and one Gauss-Newton step of it is the natural policy gradient. No value
network, no clipping, no baseline. The rewards may lose `kl_coefficient` log pi_t / pi_ref, taken when the responses are drawn.

Released code multiplies the rewards by eta instead of dividing the log-ratios: the same minimiser, but step sizes do not carry over.

Defaults: the paper's for summaries: eta 1, KL coefficient .05, 512 prompts, 4 epochs over them, temperature .7, Adam 3e-6 with linear decay.
`rebel:exact` solves each regression by least squares.
"""

from __future__ import annotations

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.preference import PREVIOUS, AllPairs, LeastSquares, Minibatches, Preference
from polopt.loops.preference_sources import Online
from polopt.methods._language import sized
from polopt.methods.preferences.dpo import first_over_second
from polopt.methods.registry import composition
from polopt.optim.adam import Adam
from polopt.policies.language.sampling import Sampling


@part
class RelativeReward:
    """(h / eta - (r - r'))^2 with the policy that drew the responses as anchor."""

    eta: float = hyper(1.0, above=0)  # step size of the mirror descent: log-odds a unit of reward

    anchors = (PREVIOUS,)
    responses = 2

    def weights(self):
        return {PREVIOUS: 1.0}

    def residual(self, columns):
        """What is squared, (B,)."""
        return first_over_second(columns, PREVIOUS) / self.eta - (columns.score[:, 0] - columns.score[:, 1])

    def __call__(self, columns):
        return self.residual(columns) ** 2


@composition
def rebel(task: LanguageTask | None = None) -> Preference:
    """REBEL with two responses to a prompt."""
    source = Online(prompts_drawn=512, pairs=AllPairs(), kl_coefficient=0.05, sampling=Sampling(temperature=0.7))
    step = Adam(learning_rate=3e-6, max_grad_norm=1.0, epsilon=1e-8)
    return sized(task, Preference(source, RelativeReward(), Minibatches(step, epochs=4, minibatches=4)))


@composition
def exact(task: LanguageTask | None = None) -> Preference:
    """REBEL whose regressions are solved: for tables, log-linear policies and other small ones."""
    return sized(task, Preference(Online(prompts_drawn=64, pairs=AllPairs()), RelativeReward(), LeastSquares(ridge=1e-2)))
