"""Time-Efficient Reinforcement Learning with Stochastic Stateful Policies.

Firas Al-Hafez, Guoping Zhao, Jan Peters, Davide Tateo. 2023. arXiv:2311.04082

The internal state of a policy is drawn at random, as a part of the action, and stored as data. A policy with memory is then an ordinary
policy of a larger process: its gradient needs no backpropagation through time, and all steps are computed at once.

With z the internal state, s the observation (and the previous action), z_0 = 0 at the start of an episode:

    (a_t, z_{t+1}) ~ pi(a, z' | s_t, z_t) = pi(a | s_t, z_t) pi(z' | s_t, z_t)       one network, two heads
    grad J  = E[ sum_t grad log pi(a_t, z_{t+1} | s_t, z_t) A(s_t, z_t, a_t, z_{t+1}) ]       no gradient through z
    r       = exp( log pi(a, z') - log pi_old(a, z') ),    V = V(s, z)                    PPO as it is

The price is variance, which grows with the noise in z. The note z' is Gaussian with a learnt deviation that starts at 0.1, its entropy has a weight
of its own, and z is never normalised. After each pass stored z may move towards fresh draws, z <- (1 - tau) z + tau z_new (`refresh`), where the
stored draws and their old probabilities stay, as in the released code. With `memory.size` 0 it is PPO.

This is PPO-RS. SAC-RS and TD3-RS are not here yet: they need the replay loop.
"""

from __future__ import annotations

import dataclasses

from polopt.core.parts import replace
from polopt.envs.task import ControlTask
from polopt.loops.memory import Notes
from polopt.loops.on_policy import OnPolicy
from polopt.methods.policy_gradient.ppo import ppo
from polopt.methods.registry import composition


@composition
def s2pg(task: ControlTask | None = None) -> OnPolicy:
    """PPO of a policy that remembers by notes to itself, with 10 passes over the data."""
    return dataclasses.replace(replace(ppo(task), {"epochs": 10}), memory=Notes())
