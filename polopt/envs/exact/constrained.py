"""The best policy under limits on costs, by the linear program over occupancies.

    max_d sum d r   such that   sum d c_i <= limit_i,   sum_a d(s, a) = mu(s) + gamma sum_s',a' P(s|s', a') d(s', a'),   d >= 0

The policy is d / sum_a d, and the multipliers of the cost rows are the optimal dual variables. It runs on NumPy and SciPy, not under `jit`.
Source: Altman, Constrained Markov Decision Processes (1999).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax import Array

from polopt.envs.exact import tabular
from polopt.envs.exact.tabular import TabularMDP


class ConstrainedOptimum(NamedTuple):
    """policy (S, A), value J, costs (costs,), multipliers (costs,) >= 0: the rise of J for a unit more of each limit; occupancy (S, A).

    Value, costs and occupancy are in the unit of the limits.
    """

    policy: np.ndarray
    value: float
    costs: np.ndarray
    multipliers: np.ndarray
    occupancy: np.ndarray


def optimal(mdp: TabularMDP, limits: Array, *, normalised: bool) -> ConstrainedOptimum:
    """The constrained optimum.

    limits:      (costs,) upper limits on the expected discounted sums of `mdp.cost`.
    normalised:  the limits, and what is returned, are averages: sums times 1 - gamma. Else plain discounted sums.
    """
    from scipy.optimize import linprog

    tabular.check(mdp)
    tabular._scalar("constrained.optimal", mdp)
    if mdp.cost is None or np.shape(limits) != (mdp.cost.shape[-1],):
        costs = "no costs" if mdp.cost is None else f"{mdp.cost.shape[-1]} costs"
        raise ValueError(f"The limits have the shape {np.shape(limits)}, but the process bears {costs}; give one limit for each cost.")
    S, A, gamma = mdp.states, mdp.actions, float(mdp.discount)
    scale = 1 - gamma if normalised else 1.0
    live = np.ones(S) if mdp.terminal is None else 1.0 - np.asarray(mdp.terminal)
    P = np.asarray(mdp.transition, np.float64) * live[:, None, None] * live
    reward = np.asarray(mdp.reward, np.float64) * live[:, None]
    cost = np.asarray(mdp.cost, np.float64) * live[:, None, None]
    start = np.asarray(mdp.start, np.float64) * live

    leaves = np.repeat(np.eye(S), A, axis=1)
    enters = P.reshape(S * A, S).T
    limits = np.asarray(limits, np.float64) / scale
    solved = linprog(-reward.ravel(), A_ub=cost.reshape(S * A, -1).T, b_ub=limits, A_eq=leaves - gamma * enters, b_eq=start, bounds=(0, None))
    if solved.status == 2:
        raise ValueError(f"No policy keeps the limits {limits * scale}; raise them.")
    if solved.x is None:
        raise ValueError(f"The linear program of the constrained optimum was not solved: {solved.message}")
    d = np.maximum(solved.x, 0).reshape(S, A)
    visited = d.sum(1, keepdims=True)
    policy = np.where(visited > 1e-12, d / np.maximum(visited, 1e-300), 1 / A)
    # what the policy itself gives, exactly
    state = np.linalg.solve((np.eye(S) - gamma * np.einsum("sap,sa->sp", P, policy)).T, start)
    d = state[:, None] * policy * scale
    return ConstrainedOptimum(policy, float((d * reward).sum()), np.einsum("sa,sac->c", d, cost), -solved.ineqlin.marginals, d)
