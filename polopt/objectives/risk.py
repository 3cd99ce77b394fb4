"""Risk measures of samples or of finite distributions, reduced along one axis.

Conventions: x is what is measured, `weights` the probabilities of its entries along `axis` (None: equal), which need not sum to 1. An entry
of weight 0 never matters, NaN included. Whether large x is good or bad is said by the argument `tail` or by the sign of beta, never assumed.
A level is the mass of the tail: CVaR at 0.05 is the mean of the worst 5%. Some papers call that level 0.95.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from polopt.objectives.backend import Array, as_weights, check_choice, check_shapes, safe_divide, stop_gradient, zero_masked


def range_value_at_risk(x: Array, low: float, high: float, *, weights: Array | None = None, axis: int = -1) -> Array:
    """(1 / (high - low)) times the integral of the quantile function of x from `low` to `high`, 0 <= low < high <= 1.

    The mean of what lies between two quantiles, with an atom at a quantile counted in part. RVaR_{0:1} is the mean. Its gradient is
    that of the weighted mean, with the weights as constants.
    """
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and not 0 <= low < high <= 1:
        raise ValueError(f"the levels are {low} and {high}, but must satisfy 0 <= low < high <= 1: give the tail's mass as a fraction.")
    check_shapes("range_value_at_risk", x=x, weights=weights)
    xp = array_namespace(x)
    (x,) = zero_masked(weights, x)
    x, p = xp.moveaxis(x, axis, -1), xp.moveaxis(as_weights(weights, x), axis, -1)
    p = safe_divide(p, xp.sum(p, axis=-1, keepdims=True))
    order = xp.argsort(stop_gradient(x), axis=-1)
    x, p = xp.take_along_axis(x, order, axis=-1), xp.take_along_axis(p, order, axis=-1)
    above = xp.cumulative_sum(p, axis=-1)
    overlap = xp.clip(xp.clip(above, max=high) - xp.clip(above - p, min=low), min=0)
    return xp.sum(x * stop_gradient(overlap), axis=-1) / (high - low)


def cvar(x: Array, level: float, *, tail: str, weights: Array | None = None, axis: int = -1) -> Array:
    """Mean of the `level` largest (tail='upper', x a cost) or smallest (tail='lower', x a return) mass of x.

    Conditional value at risk (Rockafellar and Uryasev, 2000). level = 1 is the mean. Over returns with a policy gradient it is that of
    arXiv 1404.3862; over token log-ratios with `weights` = pi_ref that of Ra-DPO (arXiv 2505.20359).
    """
    check_choice("cvar", "tail", tail, ("upper", "lower"))
    low, high = (0.0, level) if tail == "lower" else (1.0 - level, 1.0)
    return range_value_at_risk(x, low, high, weights=weights, axis=axis)


def cvar_bound(x: Array, threshold: Array, level: float, *, tail: str) -> Array:
    """eta + max(0, x - eta) / level for costs (tail='upper'), eta - max(0, eta - x) / level for returns; per element, eta = threshold.

    Its mean, minimised over eta for costs and maximised for returns, is CVaR, and the best eta is the quantile (Rockafellar and Uryasev).
    """
    check_choice("cvar_bound", "tail", tail, ("upper", "lower"))
    xp = array_namespace(x, threshold)
    if tail == "upper":
        return threshold + xp.clip(x - threshold, min=0) / level
    return threshold - xp.clip(threshold - x, min=0) / level


def mixed_quantile(x: Array, low: float, high: float, emphasis: float, *, weights: Array | None = None, axis: int = -1) -> Array:
    """( RVaR_{low:high} + w RVaR_{0:low} ) / (1 + w), the mixed value at risk of RiskPO (arXiv 2510.00911), for returns.

    The middle of the distribution and, with w = emphasis, its lower tail; what is above `high` does not count.
    """
    middle = range_value_at_risk(x, low, high, weights=weights, axis=axis)
    return (middle + emphasis * range_value_at_risk(x, 0.0, low, weights=weights, axis=axis)) / (1 + emphasis)


def entropic(x: Array, beta: Array | float, *, weights: Array | None = None, axis: int = -1) -> Array:
    """(1 / beta) log E exp(beta x): above the mean for beta > 0, below it for beta < 0, the mean for beta = 0 (Howard and Matheson, 1972).

    For costs beta > 0 is averse to risk, for returns beta < 0.
    """
    check_shapes("entropic", x=x, weights=weights)
    xp = array_namespace(x)
    (x,) = zero_masked(weights, x)
    p = as_weights(weights, x)
    p = safe_divide(p, xp.sum(p, axis=axis, keepdims=True))
    mean = xp.sum(p * x, axis=axis, keepdims=True)
    beta = beta + xp.zeros_like(mean)
    z = xp.where(p > 0, beta * (x - mean), xp.zeros_like(x))  # the largest is never below 0, so the 0 of what has no weight is not seen
    top = stop_gradient(xp.max(z, axis=axis, keepdims=True))
    # log E exp(z) = top + log1p( E[exp(z - top)] - 1 ): with expm1 and about the mean, a small beta keeps its digits.
    log_mean = top + xp.log1p(xp.sum(p * xp.expm1(z - top), axis=axis, keepdims=True))
    return xp.squeeze(mean + safe_divide(log_mean, beta), axis=axis)
