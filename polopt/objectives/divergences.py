"""How far two policies are apart: sampled estimators with their biases stated, exact forms, f-divergences.

Conventions: log-probabilities of samples are (batch, time), of whole distributions (..., actions) and normalised; -inf marks an
impossible action. KL(p || q) = sum p log(p / q). KL(pi || ref) is called reverse and KL(ref || pi) forward, as the field does when pi is
what is trained. Samples that are masked are read as 0 and give 0, NaN included. Nothing is reduced over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from array_api_compat import array_namespace

from polopt.objectives.backend import Array, check_shapes, safe_sqrt, softplus, stop_gradient, zero_masked

# -- estimators from samples -------------------------------------------------------------------------------------------


def k1(log_prob: Array, ref_log_prob: Array, *, mask: Array | None = None) -> Array:
    """log pi - log ref at samples of pi: unbiased for KL(pi || ref), noisy, of either sign. A value, never a loss."""
    return _gap("k1", log_prob, ref_log_prob, mask)


def k2(log_prob: Array, ref_log_prob: Array, *, mask: Array | None = None) -> Array:
    """0.5 (log pi - log ref)^2 at samples of pi: biased for KL(pi || ref), with its exact gradient."""
    return 0.5 * _gap("k2", log_prob, ref_log_prob, mask) ** 2


def k3(log_prob: Array, ref_log_prob: Array, *, cap: float | None = None, mask: Array | None = None) -> Array:
    """ref/pi - 1 - log(ref/pi) at samples of pi: unbiased for KL(pi || ref), never negative, with the gradient of KL(ref || pi).

    cap: what is larger is cut to this and has no gradient. None does not; verl has 10.
    """
    u = _gap("k3", log_prob, ref_log_prob, mask)
    xp = array_namespace(u)
    if cap is None:
        return xp.expm1(-u) + u
    # Where |u| > cap + 1 the estimate is above the cap in any case; exp(-u) could be infinite there, and its gradient NaN.
    u = xp.clip(u, -(cap + 1), cap + 1)
    return xp.clip(xp.expm1(-u) + u, max=cap)


def _gap(function: str, log_prob: Array, ref_log_prob: Array, mask: Array | None) -> Array:
    check_shapes(function, log_prob=log_prob, ref_log_prob=ref_log_prob, mask=mask)
    log_prob, ref_log_prob = zero_masked(mask, log_prob, ref_log_prob)
    return log_prob - ref_log_prob


class Estimator(NamedTuple):
    """What an estimator of a divergence is, and what it gives in expectation over samples of the policy that drew them."""

    formula: str
    """Per sample, with u = log pi - log ref, w = pi / old and v = ref / old; old = pi if the samples are on-policy."""
    as_value: str
    as_gradient: str
    target: str
    """The divergence that value and gradient are judged against."""


ESTIMATORS = {
    "k1": Estimator("u", "unbiased on-policy", "exactly 0 on-policy, whatever the policies: it regularises nothing", "KL(pi || ref)"),
    "k2": Estimator("u^2 / 2", "biased", "exact on-policy", "KL(pi || ref)"),
    "k3": Estimator("exp(-u) - 1 + u", "unbiased on-policy", "biased: on-policy it is the gradient of KL(ref || pi)", "KL(pi || ref)"),
    "reverse": Estimator("w u", "unbiased", "exact", "KL(pi || ref)"),
    "unnormalised_reverse": Estimator("w u - w + v", "unbiased", "exact", "KL(pi || ref), and for unnormalised ones sum pi u - pi + ref"),
    "forward": Estimator("-v u", "unbiased", "exact", "KL(ref || pi)"),
    "unnormalised_forward": Estimator("-v u + w - v", "unbiased", "exact", "KL(ref || pi), and for unnormalised ones sum -ref u + pi - ref"),
}
"""The estimators that `kl_loss` knows, and the biases of each (checked by enumeration in the tests).

`unnormalised_reverse` is w times k3. On-policy, k3 alone is a forward KL's gradient under a reverse KL's value (arXiv 2505.17508).
"""


def kl_loss(
    log_prob: Array,
    ref_log_prob: Array,
    *,
    old_log_prob: Array | None = None,
    estimator: str = "unnormalised_reverse",
    mask: Array | None = None,
) -> Array:
    """A divergence of pi from ref as a loss, from samples of `old_log_prob`: one loss per element, times beta by the caller.

    The default has value and gradient right: w (log pi - log ref) - w + v with w = pi / old and v = ref / old, which is the ratio times
    k3. `ESTIMATORS` says what each choice gets wrong. Per-token exactness is for the divergence at the sampled prefixes; how a
    token moves the divergence at later ones is the policy gradient of a KL in the reward.

    Args:
        log_prob: of the policy being trained; carries the gradient.
        ref_log_prob: of the anchor; a constant.
        old_log_prob: of the policy that drew the samples; a constant. None: the samples are the present policy's.
        estimator: a key of `ESTIMATORS`. 'k1' is refused. 'k3' is GRPO's penalty (arXiv 2402.03300), 'k2' REINFORCE++-baseline's.
        mask: where it is 0, inputs are read as 0 and the loss is 0.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"kl_loss got estimator={estimator!r}, but knows {', '.join(map(repr, ESTIMATORS))}: choose one of them.")
    if estimator == "k1":
        raise ValueError(
            f"kl_loss got estimator='k1', whose expected gradient is {ESTIMATORS['k1'].as_gradient}:"
            " take 'unnormalised_reverse', or put k1 in the reward."
        )
    check_shapes("kl_loss", log_prob=log_prob, ref_log_prob=ref_log_prob, old_log_prob=old_log_prob, mask=mask)
    log_prob, ref_log_prob = zero_masked(mask, log_prob, stop_gradient(ref_log_prob))
    if estimator == "k2":
        return k2(log_prob, ref_log_prob)
    if estimator == "k3":
        return k3(log_prob, ref_log_prob)
    xp = array_namespace(log_prob, ref_log_prob)
    old = stop_gradient(log_prob) if old_log_prob is None else zero_masked(mask, stop_gradient(old_log_prob))[0]
    u, w, v = log_prob - ref_log_prob, xp.exp(log_prob - old), xp.exp(ref_log_prob - old)
    normalised = w * u if estimator.endswith("reverse") else -v * u
    if not estimator.startswith("unnormalised"):
        return normalised
    return normalised - w + v if estimator.endswith("reverse") else normalised + w - v


# -- exact forms -------------------------------------------------------------------------------------------------------


def categorical_kl(log_p: Array, log_q: Array, *, axis: int = -1) -> Array:
    """KL(p || q) = sum_a p_a (log p_a - log q_a) over `axis`, from normalised log-probabilities.

    Actions with p = 0 contribute 0, also where q = 0 too (masked actions); q = 0 < p gives infinity.
    """
    check_shapes("categorical_kl", log_p=log_p, log_q=log_q)
    xp = array_namespace(log_p, log_q)
    possible = log_p > -xp.inf
    log_p, log_q = (xp.where(possible, x, xp.zeros_like(x)) for x in (log_p, log_q))
    return xp.sum(xp.where(possible, xp.exp(log_p) * (log_p - log_q), xp.zeros_like(log_p)), axis=axis)


def unnormalised_kl(log_p: Array, log_q: Array, *, axis: int = -1) -> Array:
    """sum_a p_a log(p_a / q_a) - p_a + q_a over `axis`: KL for measures of any mass, and KL(p || q) if both masses are 1."""
    xp = array_namespace(log_p, log_q)
    return categorical_kl(log_p, log_q, axis=axis) + xp.sum(xp.exp(log_q) - xp.exp(log_p), axis=axis)


def gaussian_kl(mean_p: Array, log_std_p: Array, mean_q: Array, log_std_q: Array, *, axis: int = -1) -> Array:
    """KL(p || q) of diagonal Gaussians, summed over `axis`.

    sum_d log(s_q / s_p) + ( s_p^2 + (m_p - m_q)^2 ) / (2 s_q^2) - 1/2
    """
    check_shapes("gaussian_kl", mean_p=mean_p, log_std_p=log_std_p, mean_q=mean_q, log_std_q=log_std_q)
    xp = array_namespace(mean_p, log_std_p, mean_q, log_std_q)
    gap = log_std_p - log_std_q
    # 0.5 expm1(2 gap) - gap keeps its digits where the two are close.
    return xp.sum(0.5 * xp.expm1(2 * gap) - gap + 0.5 * ((mean_p - mean_q) * xp.exp(-log_std_q)) ** 2, axis=axis)


def gaussian_wasserstein(mean_p: Array, log_std_p: Array, mean_q: Array, log_std_q: Array, *, axis: int = -1) -> Array:
    """The 2-Wasserstein distance of diagonal Gaussians over `axis`: sqrt( |m_p - m_q|^2 + |s_p - s_q|^2 ). Equal ones have the gradient 0."""
    check_shapes("gaussian_wasserstein", mean_p=mean_p, log_std_p=log_std_p, mean_q=mean_q, log_std_q=log_std_q)
    xp = array_namespace(mean_p, log_std_p, mean_q, log_std_q)
    return safe_sqrt(xp.sum((mean_p - mean_q) ** 2 + (xp.exp(log_std_p) - xp.exp(log_std_q)) ** 2, axis=axis))


# -- f-divergences -----------------------------------------------------------------------------------------------------


class FDivergence(NamedTuple):
    """D_f(pi || p) = E_p[ f(pi / p) ] with f convex and f(1) = 0, by its three functions.

    generator and derivative take x = log t with t = pi / p, because that is what policies give; conjugate takes a number.
    grad D_f = E_pi[ f'(pi / p) grad log pi ] (arXiv 2302.08215).
    """

    meaning: str
    generator: Callable[[Array], Array]
    """f(exp(x))."""
    derivative: Callable[[Array], Array]
    """f'(exp(x))."""
    conjugate: Callable[[Array], Array]
    """f*(y) = sup over t >= 0 of t y - f(t). What the dual methods call one-sided (arXiv 2302.08560); infinite where the supremum is."""


def _below(y: Array, bound: float, value: Callable[[Array], Array]) -> Array:
    """value(y) where y < bound, infinity elsewhere."""
    xp = array_namespace(y)
    inside = y < bound
    return xp.where(inside, value(xp.where(inside, y, xp.zeros_like(y) + (bound - 1))), xp.inf + xp.zeros_like(y))


def _exp(x: Array) -> Array:
    return array_namespace(x).exp(x)


def _expm1(x: Array) -> Array:
    return array_namespace(x).expm1(x)


_LOG2 = 0.6931471805599453

F_DIVERGENCES = {
    "reverse_kl": FDivergence(
        "KL(pi || p): f(t) = t log t, f* = exp(y - 1)",
        lambda x: _exp(x) * x,
        lambda x: x + 1,
        lambda y: _exp(y - 1),
    ),
    "forward_kl": FDivergence(
        "KL(p || pi): f(t) = -log t, f* = -1 - log(-y) for y < 0",
        lambda x: -x,
        lambda x: -_exp(-x),
        lambda y: _below(y, 0.0, lambda y: -1 - array_namespace(y).log(-y)),
    ),
    "js": FDivergence(
        "KL(pi || m) + KL(p || m) with m = (pi + p) / 2, twice the Jensen-Shannon divergence:"
        " f(t) = t log(2t / (1 + t)) + log(2 / (1 + t)), f* = -log(2 - exp(y)) for y < log 2",
        lambda x: _exp(x) * (_LOG2 - softplus(-x)) + _LOG2 - softplus(x),
        lambda x: _LOG2 - softplus(-x),
        lambda y: _below(y, _LOG2, lambda y: -array_namespace(y).log1p(-_expm1(y))),
    ),
    "chi2": FDivergence(
        "Pearson's chi2(pi || p): f(t) = (t - 1)^2, f* = y + y^2 / 4 for y >= -2, -1 below",
        lambda x: _expm1(x) ** 2,
        lambda x: 2 * _expm1(x),
        lambda y: 0.25 * array_namespace(y).clip(y + 2, min=0) ** 2 - 1,
    ),
    "neyman_chi2": FDivergence(
        "chi2(p || pi): f(t) = (t - 1)^2 / t, f* = 2 - 2 sqrt(1 - y) for y <= 1",
        lambda x: _expm1(x) * -_expm1(-x),
        lambda x: -_expm1(-2 * x),
        lambda y: array_namespace(y).where(y <= 1, 2 - 2 * safe_sqrt(1 - y), array_namespace(y).inf + 0 * y),
    ),
    "tv": FDivergence(
        "total variation: f(t) = |t - 1| / 2, f* = max(y, -1/2) for y <= 1/2",
        lambda x: array_namespace(x).abs(_expm1(x)) / 2,
        lambda x: array_namespace(x).sign(x) / 2,
        lambda y: array_namespace(y).where(y <= 0.5, array_namespace(y).clip(y, min=-0.5), array_namespace(y).inf + 0 * y),
    ),
}
"""The f-divergences by name; `alpha_divergence` makes more."""


def alpha_divergence(alpha: float) -> FDivergence:
    """f(t) = (t^alpha - alpha t - 1 + alpha) / (alpha (alpha - 1)), Cichocki and Amari (2010); alpha is neither 0 nor 1.

    alpha -> 1 is KL(pi || p), alpha -> 0 is KL(p || pi), 2 is half of chi2, 1/2 four times the squared Hellinger distance.
    """
    if alpha in (0, 1):
        raise ValueError(f"alpha_divergence got alpha={alpha}, where it is a limit: take F_DIVERGENCES['reverse_kl'] for 1, ['forward_kl'] for 0.")
    power = alpha - 1

    def conjugate(y):
        def value(y):
            base = array_namespace(y).clip(1 + power * y, min=0)
            return (base ** (alpha / power) - 1) / alpha

        return value(y) if alpha > 1 else _below(y, -1 / power, value)

    return FDivergence(
        f"alpha-divergence with alpha = {alpha}",
        lambda x: (_expm1(alpha * x) - alpha * _expm1(x)) / (alpha * power),
        lambda x: _expm1(power * x) / power,
        conjugate,
    )


def f_divergence(log_p: Array, log_q: Array, divergence: FDivergence, *, axis: int = -1) -> Array:
    """D_f(p || q) = sum_a q_a f(p_a / q_a) over `axis`, from normalised log-probabilities that are finite."""
    check_shapes("f_divergence", log_p=log_p, log_q=log_q)
    xp = array_namespace(log_p, log_q)
    return xp.sum(xp.exp(log_q) * divergence.generator(log_p - log_q), axis=axis)
