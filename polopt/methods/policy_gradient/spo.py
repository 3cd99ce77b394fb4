"""Simple Policy Optimization.

Zhengpeng Xie, Qiang Zhang, Fan Yang, Marco Hutter, Renjing Xu. 2024. arXiv:2401.16025

A quadratic penalty on the ratio, scaled by |A|, takes the place of PPO's clip: each sample's objective peaks exactly at the
edge of the trust region, and what is outside is pulled back, where the clip is flat and lets go.

With r = pi(a|s) / pi_old(a|s) and advantages A from generalised advantage estimation:

    L     = -E[ r A - |A| (r - 1)^2 / (2 eps) ],    dL/dr = -|A| ( sign(A) - (r - 1) / eps )
    r*    = 1 + sign(A) eps                         each sample's optimum, worth A + |A| eps / 2
    TV(pi_old, pi) = E|r - 1| / 2                   so |r - 1| <= eps bounds the total variation on the data by eps / 2

|A| is that of the standardised advantage, and a constant. All else is PPO, without its clip and without early stopping.
Defaults: with continuous actions those of the paper's MuJoCo study, which clips the value loss too; else those of its Atari
study, with rewards normalised as in `ppo`. The mean |r - 1| that the paper watches is logged as `ratio_deviation`.
"""

from __future__ import annotations

import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.parts import hyper
from polopt.envs.task import ControlTask
from polopt.loops.descent import Descent
from polopt.loops.on_policy import OnPolicy
from polopt.loops.surrogates import stateless
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.registry import composition
from polopt.objectives import surrogates
from polopt.optim.adam import Adam


@stateless
class Quadratic:
    """The surrogate with a quadratic penalty on the ratio."""

    width: float = hyper(0.2, above=0)  # eps: each sample's best ratio is 1 +- width

    def loss(self, state, update):
        loss = surrogates.spo(update.log_prob, update.old_log_prob, update.advantage, self.width)
        deviation = jnp.abs(jnp.expm1(update.log_prob - update.old_log_prob))
        return loss, {"outside_fraction": jnp.mean((deviation > self.width).astype(jnp.float32))}


@composition
def spo(task: ControlTask | None = None) -> OnPolicy:
    """SPO: PPO with the quadratic surrogate."""
    if task is not None and isinstance(task.env.action_space, spaces.Box):
        improver = Descent(Adam(learning_rate=3e-4), epochs=10)
        return OnPolicy(Quadratic(), GAE(), improver, num_steps=256, value_clip=0.2, normalise_observations=True, normalise_rewards=True)
    return OnPolicy(Quadratic(), GAE(), Descent(Adam(learning_rate=2.5e-4)), entropy_coefficient=0.01, normalise_rewards=True)
