"""Randomized Ensembled Double Q-Learning: Learning Fast Without a Model.

Xinyue Chen, Che Wang, Zijian Zhou, Keith Ross. 2021. arXiv:2101.05982

SAC with many updates for each step: an ensemble of critics, of which a few are drawn for each target, keeps the bias of the many
updates small and its spread over states narrow.

    y    = r + gamma (1 - term) ( min_{i in M} Q-_i(s', a~') - alpha log pi(a~'|s') ),    M drawn anew for each update
    L_pi = E[ alpha log pi(a~|s) - (1/N) sum_i Q_i(s, a~) ]

All N critics regress to the same y. Defaults: N = 10, |M| = 2, 20 updates of the critics and one of the actor for each step.
"""

from __future__ import annotations

from polopt.envs.task import ControlTask
from polopt.loops.exploration import Drawn
from polopt.loops.off_policy import OffPolicy
from polopt.methods.actor_critic.sac import SoftActorCritic
from polopt.methods.registry import composition


@composition
def redq(task: ControlTask | None = None) -> OffPolicy:
    """REDQ."""
    return OffPolicy(SoftActorCritic(critics=10, subset=2, actor_value="mean", delay=20), Drawn(), updates=20, warmup=5_000)
