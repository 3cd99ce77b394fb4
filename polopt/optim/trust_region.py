"""Steps inside a trust region: a natural direction by conjugate gradients, scaled to a budget, and a backtracking line search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def dot(x, y) -> jax.Array:
    """The inner product of two trees of arrays."""
    return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def hessian_product(function: Callable, at) -> Callable:
    """v -> H v, with H the Hessian of the scalar `function` at `at`: the derivative of its gradient along v."""
    gradient = jax.grad(function)
    return lambda v: jax.jvp(gradient, (at,), (v,))[1]


def gauss_newton_product(outputs: Callable, at, weight) -> Callable:
    """v -> weight J^T J v, with J the Jacobian of `outputs` (n,) at `at`."""
    _, forward = jax.linearize(outputs, at)
    backward = jax.linear_transpose(forward, at)
    return lambda v: jax.tree.map(lambda x: weight * x, backward(forward(v))[0])


def conjugate_gradients(product: Callable, b, iterations: int):
    """x ~= A^-1 b for trees x and b, `product` being v -> A v of a positive A: at most so many steps from 0, fewer once nothing is left.

    jax.scipy's cg is not taken: under vmap it gives infinite numbers for some products that hold a derivative (JAX 0.10.2).
    """
    enough = 1e-20 * dot(b, b)

    def going(state):
        k, _, _, _, left = state
        return (k < iterations) & (left > enough)

    def step(state):
        k, x, residual, p, left = state
        towards = product(p)
        size = left / dot(p, towards)
        x = jax.tree.map(lambda a, d: a + size * d, x, p)
        residual = jax.tree.map(lambda a, d: a - size * d, residual, towards)
        after = dot(residual, residual)
        p = jax.tree.map(lambda a, d: a + after / left * d, residual, p)
        return k + 1, x, residual, p, after

    return jax.lax.while_loop(going, step, (0, jax.tree.map(jnp.zeros_like, b), b, b, dot(b, b)))[1]


def natural_direction(product: Callable, gradient, iterations: int, damping) -> tuple[Any, jax.Array]:
    """x ~= (F + damping I)^-1 gradient from at most `iterations` of conjugate gradients, and x^T (F + damping I) x."""

    def damped(v):
        return jax.tree.map(lambda f, x: f + damping * x, product(v), v)

    x = conjugate_gradients(damped, gradient, iterations)
    return x, dot(x, damped(x))


class Search(NamedTuple):
    """params: the accepted ones, or the old; accepted: whether any was; fraction: of the full step that was taken, or 0."""

    params: Any
    accepted: jax.Array
    fraction: jax.Array


def backtrack(params, step, acceptable: Callable, tries: int, shrink) -> Search:
    """The first of params + shrink^j step, j = 0 ... tries-1, that is acceptable."""

    def moved(fraction):
        return jax.tree.map(lambda p, s: p + fraction * s, params, step)

    def going(search):
        return ~search[1] & (search[0] < tries)

    def attempt(search):
        j, _, fraction = search
        good = acceptable(moved(fraction))
        return j + 1, good, jnp.where(good, fraction, fraction * shrink)

    _, accepted, fraction = jax.lax.while_loop(going, attempt, (0, jnp.array(False), jnp.float32(1.0)))
    fraction = jnp.where(accepted, fraction, 0.0)
    return Search(jax.tree.map(lambda new, old: jnp.where(accepted, new, old), moved(fraction), params), accepted, fraction)
