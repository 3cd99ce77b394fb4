"""High-Dimensional Continuous Control Using Generalized Advantage Estimation.

John Schulman, Philipp Moritz, Sergey Levine, Michael Jordan, Pieter Abbeel. 2015. arXiv:1506.02438
"""

from __future__ import annotations

from polopt.core.parts import hyper, part
from polopt.objectives import advantages


@part
class GAE:
    """Exponentially weighted mixture of k-step advantages; the value target is the lambda-return A + V."""

    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    lam: float = hyper(0.95, at_least=0, at_most=1)  # lambda: 0 is one-step, 1 is the whole return

    def __call__(self, rewards, values, next_values, terminated, ended):
        estimate = advantages.generalized_advantage_estimate(rewards, values, next_values, terminated, ended, self.discount, self.lam, axis=0)
        return estimate, estimate + values
