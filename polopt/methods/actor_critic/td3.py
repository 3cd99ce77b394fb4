"""Addressing Function Approximation Error in Actor-Critic Methods.

Scott Fujimoto, Herke van Hoof, David Meger. 2018. arXiv:1802.09477

Three changes to DDPG keep its critic from overestimating: the smaller of two critics makes the targets, the target's action is
smoothed by noise, and the actor moves less often than the critics.

    a'  = clip( mu-(s') + clip(n, -c, c) ),   n ~ N(0, sigma^2)         in units of half the box
    y   = r + gamma (1 - term) min_i Q-_i(s', a')
    L_Q = sum_i E[ (Q_i(s, a) - y)^2 ] / 2
    every `delay` updates: the actor climbs Q_1(s, mu(s)), and the targets move

Defaults: those of the authors' code, two layers of 256, Adam 3e-4, minibatches of 256.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import STEP
from polopt.loops.exploration import GaussianNoise
from polopt.loops.off_policy import OffPolicy
from polopt.methods.actor_critic.ddpg import Deterministic
from polopt.methods.registry import composition


@part
class Smoothed:
    """At the slow actor's action with clipped noise."""

    std: float = hyper(0.2, above=0)  # sigma
    clip: float = hyper(0.5, above=0)  # c: no noise is larger

    def __call__(self, action, key):
        noise = jnp.clip(self.std * jax.random.normal(key, action.shape), -self.clip, self.clip)
        return jnp.clip(action + noise, -1, 1)


@composition
def td3(task: ControlTask | None = None) -> OffPolicy:
    """TD3."""
    return OffPolicy(Deterministic(Smoothed(), critic_step=STEP, critics=2, delay=2), GaussianNoise())
