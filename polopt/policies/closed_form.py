"""A policy that no actor is trained for: the best action of critics that are taken for linear, near the means of a Gaussian or a mixture.

The closed forms and their bounds are those of CFPI (arXiv:2211.15956); `polopt/methods/offline/cfpi.py` has them as equations.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.actions import from_unit
from polopt.core.parts import hyper, part
from polopt.objectives.backend import safe_sqrt
from polopt.policies.deployed import Deployed


def best_step(mean, variance, gradient, budget):
    """The action a of the largest a' g within (a - mean)' S^-1 (a - mean) <= budget; mean, variance and gradient (..., d), budget (...)."""
    xp = array_namespace(mean, variance, gradient)
    length = safe_sqrt(xp.sum(gradient * variance * gradient, axis=-1, keepdims=True))
    return mean + safe_sqrt(budget)[..., None] * variance * gradient / (length + 1e-7)


def component_budgets(log_weight, variance, delta):
    """kappa_k^2 (K,), negative where a component's mean itself is too unlikely; log_weight (K,), variance (K, d)."""
    xp = array_namespace(log_weight, variance)
    peak = log_weight - 0.5 * xp.sum(xp.log(2 * math.pi * variance), axis=-1)
    return 2 * (delta + peak - xp.max(peak))


def jensen_gaussian(log_weight, mean, variance, delta):
    """(mean (d,), variance (d,), kappa^2 ()) of the ellipsoid where the mean of the components' log densities is large enough."""
    xp = array_namespace(log_weight, mean, variance)
    precision = xp.exp(log_weight)[:, None] / variance
    joint = 1 / xp.sum(precision, axis=0)
    centre = joint * xp.sum(precision * mean, axis=0)
    # the equation's two sums in one: they are large and nearly equal where the deviations are small
    return centre, joint, 2 * delta - xp.sum(precision * (mean - centre[None]) ** 2)


def lower_bound(values, pessimism):
    """mean - p std of the critics' values (members,)."""
    degrees = max(values.shape[0] - 1, 1)
    return jnp.mean(values) - pessimism * safe_sqrt(jnp.sum((values - jnp.mean(values)) ** 2) / degrees)


class Improvement(Protocol):
    """The best action (d,), in [-1, 1], near what an actor has `found`; `value(action)` gives the critics' values (members,)."""

    def __call__(self, found, value) -> jax.Array: ...


@part
class FromGaussian:
    """The closed-form step from a Gaussian."""

    delta: float = hyper(0.5, at_least=0)  # log of how much less likely than the most likely action an action may be
    pessimism: float = hyper(1.0, at_least=0)  # p: deviations of the critics below their mean, over one critic less than there are

    def __call__(self, found, value):
        mean, variance = found.mean.ravel(), jnp.exp(2 * found.log_std).ravel()
        gradient = jax.grad(lambda action: lower_bound(value(action), self.pessimism))(mean)
        return jnp.clip(best_step(mean, variance, gradient, jnp.asarray(2 * self.delta)), -1, 1)


@part
class FromMixture:
    """The best of the closed-form steps from a mixture of Gaussians."""

    delta: float = hyper(0.5, at_least=0)  # log of how much less likely than the most likely action an action may be
    pessimism: float = hyper(1.0, at_least=0)  # p: deviations of the critics below their mean, over one critic less than there are
    least: float = hyper(0.05, at_least=0, at_most=1)  # weight of a component below which it is no candidate
    bounds: str = hyper("both", choices=("both", "max", "mean"))  # whose candidates are compared
    unlikely: str = hyper("drop", choices=("drop", "keep"))  # a component whose mean is too unlikely: no candidate, or its mean as it is

    def __call__(self, found, value):
        log_weight, count = jax.nn.log_softmax(found.logits), found.logits.shape[0]
        mean, variance = found.experts.mean.reshape(count, -1), jnp.exp(2 * found.experts.log_std).reshape(count, -1)

        def lower(action):
            return lower_bound(value(action), self.pessimism)

        likely = log_weight >= jnp.minimum(jnp.log(self.least), jnp.max(log_weight))
        budget = component_budgets(jnp.where(likely, log_weight, -jnp.inf), variance, self.delta)
        steps = best_step(mean, variance, jax.vmap(jax.grad(lower))(mean), jnp.maximum(budget, 0))
        centre, joint, room = jensen_gaussian(log_weight, mean, variance, self.delta)
        middle = best_step(centre, joint, jax.grad(lower)(centre), jnp.maximum(room, 0))

        fit = likely & (budget >= 0) if self.unlikely == "drop" else likely
        if self.bounds == "mean":  # the components' candidates only where there is no other
            fit = fit & (room < 0)
        fit = jnp.append(fit, (room >= 0) & (self.bounds != "max"))
        candidates = jnp.clip(jnp.concatenate([steps, middle[None]]), -1, 1)
        return candidates[jnp.argmax(jnp.where(fit, jax.vmap(lower)(candidates), -jnp.inf))]


def improved(improvement: Improvement, actor, critic, vector, pictures):
    """The improved unit action in one state, for an actor of the kind that the improvement starts from and an ensemble of critics."""
    shape = actor.action_space.shape
    return improvement(actor(vector, pictures), lambda action: critic(vector, pictures, action.reshape(shape))).reshape(shape)


class ImprovedPolicy(Deployed):
    """What is deployed: the improved action in each state, with or without a key."""

    critic: Any
    improvement: Improvement

    def act(self, carry, observation, key=None):
        return carry, from_unit(self.action_space, improved(self.improvement, self.actor, self.critic, *self.normaliser(observation)))
