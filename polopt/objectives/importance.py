"""Importance weights of whole trajectories: what one policy's data say of another policy.

Arrays are `(batch, time)`, a trajectory a row, with a mask that is 0 behind its end. Ratios are of the policy that is asked about to the one that
acted: log pi(a_t | s_t) - log b(a_t | s_t).
"""

from __future__ import annotations

from array_api_compat import array_namespace

from polopt.objectives.backend import Array, as_weights, check_shapes, safe_divide, zero_masked


def cumulative_ratios(log_ratio: Array, *, mask: Array | None = None) -> Array:
    """w_t = prod_{k <= t} pi(a_k | s_k) / b(a_k | s_k) (Precup et al., 2000), of the shape of log_ratio. Behind the end the last product stays.

    The last column is the weight of the whole trajectory. A log-ratio of -inf, an action that the policy never takes, makes all that follow 0.
    """
    check_shapes("cumulative_ratios", log_ratio=log_ratio, mask=mask)
    (log_ratio,) = zero_masked(mask, log_ratio)
    xp = array_namespace(log_ratio)
    return xp.exp(xp.cumulative_sum(log_ratio, axis=-1))


def discount_powers(like: Array, discount: float, *, mask: Array | None = None) -> Array:
    """gamma^t at step t of each row, and 0 where masked: of the shape and dtype of `like` (batch, time)."""
    check_shapes("discount_powers", like=like, mask=mask)
    xp = array_namespace(like)
    powers = discount ** xp.astype(xp.arange(like.shape[-1]), like.dtype)
    return as_weights(mask, like) * xp.broadcast_to(powers, like.shape)


def effective_sample_size(weights: Array) -> Array:
    """(sum w)^2 / sum w^2 of weights (n,) (Kong, 1992): n where all are equal, 1 where one has all the weight, 0 where all are 0."""
    xp = array_namespace(weights)
    return safe_divide(xp.sum(weights) ** 2, xp.sum(weights**2))
