"""Losses that fit a value: one loss per element, nothing reduced.

Conventions: `value` is what is learnt and `target` what it should be; stopping the target's gradient is the caller's. The residual is
u = target - value. Shapes broadcast dimension by dimension. With a `mask`, masked elements are read as 0 and lose nothing, NaN included.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from polopt.objectives.backend import Array, check_shapes, zero_masked


def squared(value: Array, target: Array, *, mask: Array | None = None) -> Array:
    """0.5 u^2."""
    return 0.5 * _residual("squared", value, target, mask) ** 2


def clipped_squared(value: Array, old_value: Array, target: Array, clip: float, *, mask: Array | None = None) -> Array:
    """0.5 max( (v - t)^2, (v_old + clip(v - v_old, -c, c) - t)^2 ), the value loss of most PPO codes.

    It is not in PPO's paper (arXiv 1707.06347). It keeps the value within c of the one that made the targets, pessimistically.
    """
    check_shapes("clipped_squared", value=value, old_value=old_value, target=target, mask=mask)
    value, old_value, target = zero_masked(mask, value, old_value, target)
    xp = array_namespace(value, old_value, target)
    near = old_value + xp.clip(value - old_value, -clip, clip)
    return 0.5 * xp.maximum((value - target) ** 2, (near - target) ** 2)


def huber(value: Array, target: Array, delta: float = 1.0, *, mask: Array | None = None) -> Array:
    """0.5 u^2 where |u| <= delta, delta (|u| - 0.5 delta) beyond (Huber, 1964). PyTorch's smooth_l1_loss is this divided by delta."""
    return _huber(_residual("huber", value, target, mask), delta)


def expectile(value: Array, target: Array, tau: float, *, mask: Array | None = None) -> Array:
    """|tau - 1[u < 0]| u^2 (IQL, arXiv 2110.06169): weight tau where the target is above the value.

    tau = 0.5 is `squared`; as tau -> 1 the minimiser tends to the largest target. On targets {0, 1} with P(1) = p it is
    tau p / (tau p + (1 - tau)(1 - p)).
    """
    u = _residual("expectile", value, target, mask)
    return _side(u, tau) * u**2


def quantile(value: Array, target: Array, tau: Array | float, *, mask: Array | None = None) -> Array:
    """|tau - 1[u < 0]| |u|, the pinball loss (Koenker and Bassett, 1978), minimised by the tau-quantile of the targets.

    tau may be an array that broadcasts: for quantiles (..., n) against targets (..., m) give value[..., :, None], target[..., None, :]
    and tau[:, None], and sum over the first and average over the second.
    """
    u = _residual("quantile", value, target, mask)
    return _side(u, tau) * array_namespace(u).abs(u)


def quantile_huber(value: Array, target: Array, tau: Array | float, kappa: float = 1.0, *, mask: Array | None = None) -> Array:
    """|tau - 1[u < 0]| Huber_kappa(u) / kappa (QR-DQN, arXiv 1710.10044; IQN, arXiv 1806.06923). As kappa -> 0 it is `quantile`.

    Broadcasts as `quantile` does.
    """
    u = _residual("quantile_huber", value, target, mask)
    return _side(u, tau) * _huber(u, kappa) / kappa


def gumbel(value: Array, target: Array, beta: float, *, clip: float | None = None, mask: Array | None = None) -> Array:
    """exp(z) - z - 1 with z = u / beta (XQL, arXiv 2301.02328), minimised by v = beta log E exp(target / beta).

    Args:
        beta: temperature; small is close to the maximum of the targets.
        clip: z is cut at this from above (5 to 8 in the paper's code), and cut elements have gradient 0. That code also divides the
            loss by exp(max z) of the batch, which is a step size and left to the caller.
    """
    z = _residual("gumbel", value, target, mask) / beta
    xp = array_namespace(z)
    if clip is not None:
        z = xp.clip(z, max=clip)
    return xp.expm1(z) - z


def _residual(function: str, value: Array, target: Array, mask: Array | None) -> Array:
    check_shapes(function, value=value, target=target, mask=mask)
    value, target = zero_masked(mask, value, target)
    return target - value


def _side(u: Array, tau: Array | float) -> Array:
    """tau where u >= 0, 1 - tau where u < 0."""
    xp = array_namespace(u)
    return xp.abs(tau - xp.astype(u < 0, u.dtype))


def _huber(u: Array, delta: float) -> Array:
    xp = array_namespace(u)
    size = xp.abs(u)
    near = xp.clip(size, max=delta)  # 0.5 near^2 + delta (|u| - near) has the right gradient on both sides and no branch
    return 0.5 * near**2 + delta * (size - near)
