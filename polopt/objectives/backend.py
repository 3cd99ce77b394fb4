"""What the array-API standard lacks and the objectives need: stop-gradient, a scan over time, a sum by group.

Every function of this room takes the arrays of NumPy, JAX (also traced) or PyTorch and gives back the same kind. JAX and PyTorch
are imported only when one of their arrays arrives.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from array_api_compat import array_namespace, is_jax_array, is_torch_array

Array: TypeAlias = Any
"""An array of NumPy, JAX or PyTorch."""


def stop_gradient(x: Array) -> Array:
    """x as a constant: the same value, and no gradient flows through it."""
    if is_jax_array(x):
        import jax

        return jax.lax.stop_gradient(x)
    if is_torch_array(x):
        return x.detach()
    return x


def reverse_recurrence(a: Array, b: Array, *, axis: int = -1) -> Array:
    """x_t = b_t + a_t x_{t+1} along `axis`, with x = 0 behind the last position.

    Discounted sums, GAE, lambda returns and V-trace are this recurrence with different a and b.

    Args:
        a: what of x_{t+1} is kept; of one shape with b.
        b: what is added at t; its dtype is the result's.
        axis: the time axis.
    """
    xp = array_namespace(a, b)
    a, b = xp.moveaxis(a, axis, 0), xp.moveaxis(b, axis, 0)
    if is_jax_array(b):
        import jax

        def step(x, ab):
            x = ab[1] + ab[0] * x
            return x, x

        # Measured on CPU: unrolling makes what is fused with the recurrence slower by more than it saves in turns of the loop.
        xs = jax.lax.scan(step, xp.zeros_like(b[0]), (a, b), reverse=True)[1]
    else:
        x, steps = xp.zeros_like(b[0, ...]), []
        for t in range(b.shape[0] - 1, -1, -1):
            x = b[t, ...] + a[t, ...] * x
            steps.append(x)
        xs = xp.stack(steps[::-1])
    return xp.moveaxis(xs, 0, axis)


def group_index(ids: Array) -> Array:
    """For each entry of ids (n,) an integer below n, equal exactly within a group."""
    xp = array_namespace(ids)
    return xp.searchsorted(xp.sort(ids), ids)


def group_sum(x: Array, index: Array) -> Array:
    """For each entry of x (n,) the sum of x over its group, with groups as `group_index` gives them."""
    if is_jax_array(x):
        import jax

        return jax.numpy.zeros_like(x).at[index].add(x)[index]
    if is_torch_array(x):
        return x.new_zeros(x.shape).index_add(0, index, x)[index]
    import numpy as np

    return np.bincount(index, weights=x, minlength=x.shape[0])[index].astype(x.dtype)


def zero_masked(mask: Array | None, *arrays: Array) -> tuple[Array, ...]:
    """The arrays with 0 where the mask is 0, and as they are without a mask.

    What goes into a formula is cleaned, not what comes out: behind the formula a NaN would still meet the zero of the backward pass,
    and 0 times NaN is NaN.
    """
    if mask is None:
        return arrays
    xp = array_namespace(mask, *arrays)
    keep = xp.astype(mask, xp.bool)
    return tuple(xp.where(keep, x, xp.zeros_like(x)) for x in arrays)


def as_weights(mask: Array | None, x: Array) -> Array:
    """The mask as numbers, of x's dtype and shape; ones if there is none."""
    xp = array_namespace(x)
    return xp.ones_like(x) if mask is None else xp.broadcast_to(xp.astype(mask, x.dtype), x.shape)


def check_shapes(function: str, **arrays: Array | None) -> None:
    """Refuse arrays whose shapes differ in more than dimensions of 1; plain numbers and None pass.

    Ranks must be equal: (batch,) against (batch, time) would broadcast along the wrong dimension whenever batch = time.
    """
    shapes = {name: tuple(x.shape) for name, x in arrays.items() if hasattr(x, "shape") and len(x.shape) > 0}
    first = next(iter(shapes.values()), ())
    for name, shape in shapes.items():
        if len(shape) != len(first) or any(m != n and 1 not in (m, n) for m, n in zip(shape, first)):
            given = ", ".join(f"{n} {s}" for n, s in shapes.items())
            raise ValueError(
                f"{function} got shapes {given}, but {name} must match the others in every dimension, or be 1 there:"
                " give a number per sequence as x[:, None] and a number per step as x[None, :]."
            )


def check_choice(function: str, argument: str, given: Any, choices: tuple[str, ...]) -> None:
    """Refuse a named choice that does not exist."""
    if given not in choices:
        raise ValueError(f"{function} got {argument}={given!r}, but knows {', '.join(map(repr, choices))}: choose one of them.")


def safe_divide(x: Array, y: Array) -> Array:
    """x / y, and 0 with gradient 0 where y is 0."""
    xp = array_namespace(x, y)
    nonzero = y != 0
    return xp.where(nonzero, x / xp.where(nonzero, y, xp.ones_like(y)), xp.zeros_like(x))


def safe_sqrt(x: Array) -> Array:
    """sqrt(x), with gradient 0 instead of infinity at 0."""
    xp = array_namespace(x)
    positive = x > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, x, xp.ones_like(x))), xp.zeros_like(x))


def softplus(x: Array) -> Array:
    """log(1 + exp(x)) without overflow; -softplus(-x) is log sigmoid(x)."""
    xp = array_namespace(x)
    return xp.logaddexp(x, xp.zeros_like(x))


def log_gamma(x: Array) -> Array:
    """log of the Gamma function, for x > 0."""
    if is_jax_array(x):
        import jax

        return jax.scipy.special.gammaln(x)
    if is_torch_array(x):
        return x.lgamma()
    from scipy.special import gammaln

    return gammaln(x)
