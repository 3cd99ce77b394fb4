"""Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning.

Ronald J. Williams. 1992. Machine Learning 8:229-256, doi:10.1007/BF00992696

REINFORCE with a learnt baseline, the plainest policy gradient: whole returns, one step on each batch.

    G_t = sum_{k>=t} gamma^(k-t) r_k
    L   = -E[ log pi(a_t|s_t) (G_t - V(s_t)) ] + c_v 0.5 E[ (V(s_t) - G_t)^2 ]

The outer gamma^t is dropped, as is usual. A return that a time limit or the end of the rollout cuts short goes on with V;
with `critic` off it ends there, and nothing is subtracted.
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
def reinforce(task: ControlTask | None = None) -> OnPolicy:
    """REINFORCE with a value baseline, on returns that run to the end of the episode or of a long rollout."""
    return OnPolicy(
        LogLikelihood(),
        GAE(lam=1.0),
        Descent(Adam(learning_rate=1e-3), epochs=1, minibatches=1),
        num_envs=8,
        num_steps=256,
        standardise="batch",
    )
