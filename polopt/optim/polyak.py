"""The Polyak step size: the gap to the best value, divided by the squared norm of the gradient.

    eta_t = (J* - J(theta_t)) / ||g_t||^2      theta_{t+1} = theta_t + eta_t g_t

It needs no tuning, and multiplying J by a constant changes no step. (Polyak, Introduction to Optimization, 1987.) `optax.scale_by_polyak` has a
fixed best value and absolute limits; here the best value may move, and what limits the step is relative, so that scale stays free.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class PolyakState(NamedTuple):
    """first: the first step size above 0, or 0 before it."""

    first: jax.Array


def scale_by_polyak(cap, longest=None) -> optax.GradientTransformationExtraArgs:
    """Gradients of what shall rise times the Polyak step size, by `update(..., value=J, target=J*)`; no step where J is not below its target.

    cap:      the step size is at most this times the first one, so that it stays finite where the gradient vanishes.
    longest:  the step itself has at most this Euclidean length; None for any. It does not depend on the scale of J either.
    """

    def update(gradient, state, params=None, *, value, target, **unused):
        squared = optax.tree.norm(gradient, squared=True)
        gap = jnp.maximum(target - value, 0.0)
        eta = jnp.where(squared > 0, gap / jnp.where(squared > 0, squared, 1.0), 0.0)
        eta = jnp.where(state.first > 0, jnp.minimum(eta, cap * state.first), eta)
        first = jnp.where(state.first > 0, state.first, eta)
        if longest is not None:
            eta = jnp.where(squared > 0, jnp.minimum(eta, longest / jnp.sqrt(jnp.where(squared > 0, squared, 1.0))), 0.0)
        return optax.tree.scale(eta, gradient), PolyakState(first)

    return optax.GradientTransformationExtraArgs(lambda params: PolyakState(jnp.zeros(())), update)


def twin_target(best, values, factor):
    """What two runs aim at where J* is unknown: above the best value b seen by either, by `factor` times the gap to the worse of the two.

        T = b + factor max(b - min(J_1, J_2), |b| / 1000)

    It multiplies with J as J* does. best: (); values: (2,), the values of both; at least |b| / 1000 keeps two equal runs going.
    """
    return best + factor * jnp.maximum(best - jnp.min(values), 1e-3 * jnp.abs(best))
