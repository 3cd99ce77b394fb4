"""Asynchronous Methods for Deep Reinforcement Learning.

Volodymyr Mnih, Adria Puigdomenech Badia, Mehdi Mirza, Alex Graves, et al. 2016. arXiv:1602.01783

Advantage actor-critic, the baseline: short rollouts, an n-step advantage, one step on the whole batch. The environments act
in step with each other, where the paper's act asynchronously, and Adam takes the place of the shared RMSProp.

    A_t = sum_{k<n} gamma^k r_{t+k} + gamma^n V(s_{t+n}) - V(s_t)
    L   = -E[ log pi(a|s) A ] + c_v 0.5 E[ (V(s) - (A + V_old(s)))^2 ] - c_e H
"""

from __future__ import annotations

from polopt.envs.task import ControlTask
from polopt.loops.descent import Descent
from polopt.loops.on_policy import OnPolicy
from polopt.loops.surrogates import LogLikelihood
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.registry import composition
from polopt.optim.adam import Adam


@composition
def a2c(task: ControlTask | None = None) -> OnPolicy:
    """Synchronous advantage actor-critic with n-step advantages (lambda = 1 over 16 steps)."""
    return OnPolicy(
        LogLikelihood(),
        GAE(lam=1.0),
        Descent(Adam(learning_rate=7e-4), epochs=1, minibatches=1),
        num_envs=16,
        num_steps=16,
        entropy_coefficient=0.01,
        standardise="none",
    )
