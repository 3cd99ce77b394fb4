"""Proximal Policy Optimization Algorithms.

John Schulman, Filip Wolski, Prafulla Dhariwal, Alec Radford, Oleg Klimov. 2017. arXiv:1707.06347

A pessimistic, clipped importance-weighted surrogate makes several epochs of minibatch steps on one batch of on-policy data
safe; a second form adapts the weight of a KL penalty instead.

With r = pi(a|s) / pi_old(a|s) and advantages A from generalised advantage estimation:

    L_clip  = -E[ min(r A, clip(r, 1 - eps, 1 + eps) A) ]
    L_kl    = -E[ r A - beta KL(pi_old(.|s) || pi(.|s)) ],    beta halves when the mean KL d < d_targ / 1.5
                                                              and doubles when d > 1.5 d_targ
    L       = L_clip + c_v L_V - c_e H,                       L_V = 0.5 E[ (V(s) - R)^2 ],  R = A + V_old(s)

The advantages are standardised in each minibatch. Defaults: with continuous actions those of the paper's MuJoCo study (its
2048 steps are collected by 8 environments) with running normalisation of observations and rewards; with images those of its
Atari study; else 8 environments of 128 steps, 4 epochs of 4 minibatches, and rewards normalised, because a value loss of
large returns would otherwise take the whole of the clipped gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.descent import Descent
from polopt.loops.on_policy import OnPolicy
from polopt.loops.surrogates import stateless
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.registry import composition
from polopt.objectives import surrogates
from polopt.optim.adam import Adam


@stateless
class Clip:
    """The clipped surrogate."""

    clip: float = hyper(0.2, above=0)  # eps: the ratio earns nothing beyond 1 +- clip

    def loss(self, state, update):
        loss = surrogates.clipped(update.log_prob, update.old_log_prob, update.advantage, self.clip)
        ratio = jnp.exp(update.log_prob - update.old_log_prob)
        return loss, {"clip_fraction": jnp.mean((jnp.abs(ratio - 1) > self.clip).astype(jnp.float32))}


def adapted_penalty(beta, kl, target):
    """beta / 2 when kl < target / 1.5, 2 beta when kl > 1.5 target, else beta."""
    return jnp.where(kl < target / 1.5, beta / 2, jnp.where(kl > 1.5 * target, beta * 2, beta))


@part
class KLPenalty:
    """The importance-weighted surrogate with an adaptive penalty on KL(pi_old || pi)."""

    kl_target: float = hyper(0.01, above=0)  # d_targ: the mean KL that an iteration should reach
    initial_penalty: float = hyper(1.0, above=0)  # beta before the first iteration

    def init(self):
        return jnp.asarray(self.initial_penalty, jnp.float32)

    def loss(self, state, update):
        kl = jax.vmap(lambda old, new: old.kl(new))(update.old_distribution, update.distribution)
        surrogate = surrogates.importance_weighted(update.log_prob, update.old_log_prob, update.advantage)
        return surrogate + state * kl, {"kl_penalty": state}

    def adapt(self, state, kl, progress):
        return adapted_penalty(state, kl, self.kl_target)


@composition
def ppo(task: ControlTask | None = None) -> OnPolicy:
    """PPO with the clipped surrogate."""
    return _compose(Clip(), task)


@composition
def kl_penalty(task: ControlTask | None = None) -> OnPolicy:
    """PPO with the adaptive KL penalty."""
    return _compose(KLPenalty(), task)


def _compose(surrogate, task: ControlTask | None) -> OnPolicy:
    if task is not None and isinstance(task.env.action_space, spaces.Box):
        improver = Descent(Adam(learning_rate=3e-4), epochs=10, minibatches=32)
        return OnPolicy(surrogate, GAE(), improver, num_steps=256, normalise_observations=True, normalise_rewards=True)
    if task is not None and spaces.images(task.env.observation_space):
        surrogate = Clip(0.1) if isinstance(surrogate, Clip) else surrogate
        improver = Descent(Adam(learning_rate=2.5e-4), epochs=3, value_coefficient=1.0)
        return OnPolicy(surrogate, GAE(), improver, entropy_coefficient=0.01, normalise_rewards=True)
    return OnPolicy(surrogate, GAE(), Descent(Adam(learning_rate=2.5e-4)), entropy_coefficient=0.01, normalise_rewards=True)
