"""Momentum that stays a good estimate of the gradient while the parameters move.

With eta_t in (0, 1], g_t a gradient sampled at theta_t, and eta_0 = 1, so that d_0 = g_0:

    d_t = (1 - eta_t) (d_{t-1} + v_t) + eta_t g_t

d_{t-1} speaks of theta_{t-1}. What the gradient has changed since then is made good in one of three ways; without any of them (v = 0, g_t
at theta_t) this is plain momentum, which lags behind.

    recursive_momentum    v_t = g_t(theta_t) - w g_t(theta_{t-1}), on the same sample, w what makes it one of theta_{t-1}    (arXiv:1905.10018)
    hessian_aided         v_t = H (theta_t - theta_{t-1}), H sampled between the two                                         (arXiv:2103.03265)
    implicit_transport    v_t = 0, but g_t is sampled at `lookahead`, theta_t + (1 - eta_t) / eta_t (theta_t - theta_{t-1})  (arXiv:1906.03532)

Each is exact on a quadratic without noise: d_t is the gradient at theta_t. They are linear in the gradient and leave its sign alone:
given the gradient of what shall rise, `optax.apply_updates` climbs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class MomentumState(NamedTuple):
    """count: updates made; direction: d; previous: the parameters of the last update."""

    count: jax.Array
    direction: Any
    previous: Any


def _init(params) -> MomentumState:
    return MomentumState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), params)


def _weight(weight: Callable, count):
    return jnp.where(count == 0, 1.0, weight(count))


def displacement(state: MomentumState, params):
    """theta_t - theta_{t-1}; zero before the first update."""
    return jax.tree.map(jnp.subtract, params, state.previous)


def recursive_momentum(weight: Callable) -> optax.GradientTransformationExtraArgs:
    """Momentum with a given change of the gradient, `update(..., change=v)`; plain momentum without one. weight: eta of the count of updates."""

    def update(gradient, state, params, *, change=None, **unused):
        eta = _weight(weight, state.count)
        change = jax.tree.map(jnp.zeros_like, gradient) if change is None else change
        direction = jax.tree.map(lambda d, g, v: (1 - eta) * (d + v) + eta * g, state.direction, gradient, change)
        return direction, MomentumState(state.count + 1, direction, params)

    return optax.GradientTransformationExtraArgs(_init, update)


def hessian_aided(weight: Callable) -> optax.GradientTransformationExtraArgs:
    """Momentum corrected by a Hessian-vector product, `update(..., hvp=function of a displacement)`. weight: eta of the count of updates."""
    momentum = recursive_momentum(weight)

    def update(gradient, state, params, *, hvp, **unused):
        return momentum.update(gradient, state, params, change=hvp(displacement(state, params)))

    return optax.GradientTransformationExtraArgs(_init, update)


def between(state: MomentumState, params, fraction):
    """The point `fraction` of the way from theta_{t-1} to theta_t: at a uniform fraction H (theta_t - theta_{t-1}) is right on average."""
    return jax.tree.map(lambda old, moved: old + fraction * moved, state.previous, displacement(state, params))


def implicit_transport(weight: Callable) -> optax.GradientTransformationExtraArgs:
    """Momentum of gradients taken at `lookahead(weight, state, params)`. weight: eta of the count of updates."""
    return recursive_momentum(weight)


def lookahead(weight: Callable, state: MomentumState, params):
    """theta_t + (1 - eta_t) / eta_t (theta_t - theta_{t-1}), where the next gradient is to be taken."""
    eta = _weight(weight, state.count)
    return jax.tree.map(lambda now, moved: now + (1 - eta) / eta * moved, params, displacement(state, params))


# -- schedules and lengths -------------------------------------------------------------------------------------------------


def falling(scale, delay, power) -> Callable:
    """count -> scale / (count + delay)^power."""
    return lambda count: scale / (count + delay) ** power


def to_length(length: Callable) -> optax.GradientTransformation:
    """Updates brought to the Euclidean length `length(count)` over all parameters; an update of zeros stays one."""

    def update(updates, count, params=None):
        norm = optax.tree.norm(updates)
        scale = jnp.where(norm > 0, length(count) / jnp.where(norm > 0, norm, 1.0), 0.0)
        return optax.tree.scale(scale, updates), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
