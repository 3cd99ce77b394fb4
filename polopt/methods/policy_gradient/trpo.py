"""Trust Region Policy Optimization.

John Schulman, Sergey Levine, Philipp Moritz, Michael Jordan, Pieter Abbeel. 2015. arXiv:1502.05477

Maximise the importance-sampled surrogate inside a small ball of average KL around the current policy: a natural-gradient
direction, scaled to the KL budget, then a backtracking line search.

With r = pi(a|s) / pi_o(a|s), A the standardised advantage, g the gradient of L and F the Hessian of D at the old policy:

    L(theta) = E[ r A ]   subject to   D(theta) = E_s[ KL(pi_o(.|s) || pi(.|s)) ] <= delta
    x    ~= (F + damping I)^-1 g             at most N_cg conjugate-gradient iterations on Fisher-vector products
    s     = sqrt(2 delta / (x^T F x)) x
    theta = theta_o + c^j s                  the first j with D <= delta and L above its old value; none keeps theta_o

This is the paper's single-path scheme; its vine scheme needs a simulator that can be set to a visited state, and is not
offered. The value function is fitted by regression after the policy has moved.
"""

from __future__ import annotations

from polopt.core import spaces
from polopt.envs.task import ControlTask
from polopt.loops.on_policy import OnPolicy
from polopt.loops.surrogates import ImportanceWeighted
from polopt.loops.trust_region import Regression, TrustRegion
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.registry import composition
from polopt.optim.adam import Adam


@composition
def trpo(task: ControlTask | None = None) -> OnPolicy:
    """TRPO on batches of 2048 steps."""
    continuous = task is not None and isinstance(task.env.action_space, spaces.Box)
    return OnPolicy(
        ImportanceWeighted(),
        GAE(),
        TrustRegion(Regression(Adam(learning_rate=3e-4, anneal=False))),
        num_steps=256,
        standardise="batch",
        normalise_observations=continuous,
        normalise_rewards=True,
    )
