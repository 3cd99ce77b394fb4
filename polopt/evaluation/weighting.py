"""Importance sampling and doubly robust estimates of a policy's value, with intervals from episodes drawn anew.

With w_t the product of the ratios pi / b up to step t, w_{-1} = 1, and means over the n logged episodes:

    IS     mean( w_T sum_t gamma^t r_t )                            unbiased; its variance grows exponentially with the length
    PDIS   mean( sum_t gamma^t w_t r_t )                            unbiased; a reward is weighed by what led to it only
    DR     mean( sum_t gamma^t ( w_{t-1} V(s_t) + w_t (r_t - Q(s_t, a_t)) ) + gamma^T w_T V(s_T) )

    WIS, WPDIS, WDR    the same with every weight divided by the mean of its step's weights: biased, consistent, and far less spread

IS, WIS, PDIS and WPDIS end with the log: they estimate the value of as many steps as the longest episode has. DR goes on behind the end of an
episode that was cut with V(s_T), and needs Q from other episodes than it is applied to, or it is biased.

Sources: Precup, Sutton and Singh, Eligibility traces for off-policy policy evaluation (2000); Jiang and Li, Doubly robust off-policy value evaluation
(arXiv:1511.03722); Thomas and Brunskill, Data-efficient off-policy policy evaluation (arXiv:1604.00923).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polopt.objectives import importance

RESAMPLES = 2000
LEVELS = (0.025, 0.975)
AT_ONCE = 20_000_000  # numbers in a block of resamples


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Trajectories(NamedTuple):
    """Logged episodes as rows (episodes, time), float64, 0 behind their ends.

    log_ratio:  log pi(a|s) - log b(a|s).
    mask:       1 where a step was made.
    """

    log_ratio: np.ndarray
    reward: np.ndarray
    mask: np.ndarray


class Judged(NamedTuple):
    """What a value function says of the steps of `Trajectories`: Q(s_t, a_t), V(s_t), and V of each last state, 0 where it is terminal."""

    action_value: np.ndarray
    value: np.ndarray
    last_value: np.ndarray


Terms = list[tuple[np.ndarray, np.ndarray]]  # (weight, what is paid for it) each (episodes, time) or (episodes, 1)


def terms(log: Trajectories, discount: float, judged: Judged | None = None) -> dict[str, tuple[Terms, bool]]:
    """For each estimator its terms, and whether its weights are divided by their mean. DR and WDR need `judged`."""
    weight = importance.cumulative_ratios(log.log_ratio, mask=log.mask)
    powers = importance.discount_powers(log.reward, discount, mask=log.mask)
    whole = [(weight[:, -1:], (powers * log.reward).sum(1, keepdims=True))]
    each = [(weight, powers * log.reward)]
    found = {"IS": (whole, False), "WIS": (whole, True), "PDIS": (each, False), "WPDIS": (each, True)}
    if judged is None:
        return found
    before = np.concatenate([np.ones_like(weight[:, :1]), weight[:, :-1]], axis=1)
    lengths = log.mask.sum(1, keepdims=True)
    robust = [
        (before, powers * judged.value),
        (weight, powers * (log.reward - judged.action_value)),
        (weight[:, -1:], discount**lengths * judged.last_value[:, None]),
    ]
    return found | {"DR": (robust, False), "WDR": (robust, True)}


def values(parts: Terms, normalised: bool, counts: np.ndarray) -> np.ndarray:
    """The estimate for each row of `counts` (resamples, episodes), how often each episode counts."""
    total = 0.0
    for weight, paid in parts:
        size = counts @ weight if normalised else counts.sum(1, keepdims=True)
        earned = counts @ (weight * paid)
        total = total + np.divide(earned, size, out=np.zeros_like(earned), where=size > 0).sum(1)
    return total


def estimate(parts: Terms, normalised: bool, rng: np.random.Generator, resamples: int = RESAMPLES) -> Estimate:
    """The estimate with the percentile interval over episodes drawn anew with replacement; an interval of nan where there is one episode."""
    n = len(parts[0][0])
    value = float(values(parts, normalised, np.ones((1, n)))[0])
    if n == 1:
        return Estimate(value, np.nan, np.nan)
    width = max(paid.shape[1] for _, paid in parts) + n
    block = max(1, AT_ONCE // width)
    drawn = []
    for start in range(0, resamples, block):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(block, resamples - start)).astype(float)
        drawn.append(values(parts, normalised, counts))
    low, high = np.quantile(np.concatenate(drawn), LEVELS)
    return Estimate(value, float(low), float(high))
