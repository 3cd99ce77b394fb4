"""V-MPO's surrogate: a weighted likelihood whose temperature and constraint multipliers are learnt beside the policy.

Song et al., V-MPO: on-policy maximum a posteriori policy optimization for discrete and continuous control (2019), arXiv:1909.12238.
With psi the softmax over the samples of a minibatch that are kept, those with A >= median(A), and sg a constant:

    psi = softmax(A / sg(eta))
    L   = - sum psi log pi + eta eps_eta + eta log mean_kept exp(A / eta) + sum_c mean[ alpha_c (eps_c - sg KL_c) + sg(alpha_c) KL_c ]

eta and the alphas move along the gradient of the same loss and are kept above 1e-8. A Gaussian has two constraints, KL(old || new) of a move of
the mean under the old deviation and of the deviation about the old mean; any other policy has one, on the whole KL(old || new).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.objectives import risk, surrogates
from polopt.objectives.backend import stop_gradient


def upper_half(advantage):
    """1 where A (n,) is at least its median, else 0."""
    xp = array_namespace(advantage)
    n, ordered = advantage.shape[0], xp.sort(advantage)
    return xp.astype(advantage >= (ordered[(n - 1) // 2] + ordered[n // 2]) / 2, advantage.dtype)


def softmax_weights(advantage, temperature, kept):
    """psi (n,): proportional to exp(A / eta) over what is kept, 0 elsewhere. A constant."""
    xp = array_namespace(advantage)
    likely = kept * xp.exp(stop_gradient((advantage - xp.max(advantage)) / temperature))
    return likely / xp.sum(likely)


def temperature_loss(advantage, temperature, kept, limit):
    """eta eps + eta log mean_kept exp(A / eta): least where KL(psi || uniform) is the limit eps."""
    return temperature * limit + risk.entropic(advantage, 1 / temperature, weights=kept)


def lagrangian(multiplier, kl, limit):
    """alpha (eps - sg KL) + sg(alpha) KL: one gradient lowers the divergence and raises the multiplier of a limit that is passed."""
    return multiplier * (limit - stop_gradient(kl)) + stop_gradient(multiplier) * kl


def decoupled(old, new) -> dict:
    """KL(old || new) by what moved: a Gaussian's mean under the old deviation and its deviation about the old mean, else all as the mean."""
    if not hasattr(old, "log_std"):
        return {"mean": old.kl(new)}
    return {"mean": old.kl(dataclasses.replace(old, mean=new.mean)), "deviation": old.kl(dataclasses.replace(old, log_std=new.log_std))}


@part
class VMPO:
    """The weighted likelihood of the better half, with a learnt temperature and learnt multipliers."""

    temperature_limit: float = hyper(0.01, above=0)  # eps_eta: KL of the weights from uniform ones
    mean_limit: float = hyper(0.01, above=0)  # eps_mu: KL by the mean, or of a policy that is no Gaussian
    deviation_limit: float = hyper(5e-5, above=0)  # eps_sigma: KL by the deviation
    initial_temperature: float = hyper(1.0, above=0)  # eta before the first step
    initial_multiplier: float = hyper(1.0, above=0)  # alpha before the first step
    only_upper_half: bool = True  # learn from the samples whose advantage is at least the median

    def init(self):
        return ()

    def adapt(self, state, kl, progress):
        return state

    def multipliers(self):
        first = {"temperature": self.initial_temperature, "mean": self.initial_multiplier, "deviation": self.initial_multiplier}
        return {name: jnp.asarray(value, jnp.float32) for name, value in first.items()}

    def project(self, multipliers):
        return jax.tree.map(lambda x: jnp.maximum(x, 1e-8), multipliers)

    def loss(self, state, update):
        advantage, learnt = update.advantage, update.multipliers
        kept = upper_half(advantage) if self.only_upper_half else jnp.ones_like(advantage)
        weights = softmax_weights(advantage, learnt["temperature"], kept)
        kls = jax.vmap(decoupled)(update.old_distribution, update.distribution)
        limits = {"mean": self.mean_limit, "deviation": self.deviation_limit}
        constraints = sum(lagrangian(learnt[name], kl, limits[name]) for name, kl in kls.items())
        loss = surrogates.policy_gradient(update.log_prob, weights * weights.shape[0]) + constraints
        loss = loss + temperature_loss(advantage, learnt["temperature"], kept, self.temperature_limit)
        metrics = {f"kl/{name}": jnp.mean(kl) for name, kl in kls.items()} | {f"multiplier/{name}": learnt[name] for name in kls}
        return loss, {**metrics, "temperature": learnt["temperature"]}
