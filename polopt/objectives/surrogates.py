"""Surrogates: what is minimised so that a sampled policy improves. One loss per element, nothing reduced.

Conventions: log-probabilities and advantages are (batch, time), or of any one rank; an advantage per sequence is (batch, 1). `log_prob`
is the policy being trained, `old_log_prob` the one that the samples came from, and the ratio is r = exp(log_prob - old_log_prob).
Advantages are higher-is-better. They and the old policy are constants: no gradient flows through them. With a `mask`, masked inputs are
read as 0 and lose nothing, NaN included. The functions of the trajectory need the mask (None: every token counts) and take `segment_ids`
for packed or concatenated sequences.

At r = 1 every surrogate here has the gradient of `policy_gradient`, element by element (GSPO's sequence form: sequence by sequence).
"""

from __future__ import annotations

from collections.abc import Callable

from array_api_compat import array_namespace

from polopt.objectives.backend import Array, as_weights, check_choice, check_shapes, safe_divide, stop_gradient, zero_masked
from polopt.objectives.layout import sequence_sum


def policy_gradient(log_prob: Array, advantage: Array, *, mask: Array | None = None) -> Array:
    """-A log pi: REINFORCE (Williams, 1992), A2C (arXiv 1602.01783). With A = 1 it is supervised fine-tuning."""
    check_shapes("policy_gradient", log_prob=log_prob, advantage=advantage, mask=mask)
    log_prob, advantage = zero_masked(mask, log_prob, advantage)
    return -stop_gradient(advantage) * log_prob


def importance_weighted(log_prob: Array, old_log_prob: Array, advantage: Array, *, mask: Array | None = None) -> Array:
    """-r A (TRPO, arXiv 1502.05477)."""
    log_ratio, advantage = _log_ratio("importance_weighted", log_prob, old_log_prob, advantage, mask)
    return -array_namespace(log_ratio).exp(log_ratio) * advantage


def clipped(
    log_prob: Array,
    old_log_prob: Array,
    advantage: Array,
    low: float,
    high: float | None = None,
    dual: float | None = None,
    *,
    log_ratio_limit: float | None = None,
    mask: Array | None = None,
) -> Array:
    """-min( r A, clip(r, 1 - low, 1 + high) A ), PPO's pessimistic surrogate (arXiv 1707.06347).

    Args:
        low, high: widths of the clip on either side of 1. high=None takes low (PPO); high > low is DAPO's clip-higher (arXiv 2503.14476).
        dual: c > 1 bounds the loss by -c A where A < 0 (dual clip, arXiv 1912.09729). Off unless given; one library has c = 3 on.
        log_ratio_limit: log r is cut at +- this, beyond which r has no gradient. None does not; verl has 20.
    """
    log_ratio, advantage = _log_ratio("clipped", log_prob, old_log_prob, advantage, mask)
    log_ratio = _limited(log_ratio, log_ratio_limit)
    return _clipped(log_ratio, advantage, low, high, dual)


def gspo(
    log_prob: Array,
    old_log_prob: Array,
    advantage: Array,
    low: float,
    high: float | None = None,
    *,
    mask: Array | None = None,
    segment_ids: Array | None = None,
) -> Array:
    """The clipped surrogate on the length-normalised ratio of the sequence (GSPO, arXiv 2507.18071).

        s_i = exp( sum_t m_it (log_prob - old_log_prob)_it / T_i ),    loss_it = -min( s_i A_i, clip(s_i, 1 - low, 1 + high) A_i )

    Every token of a sequence bears the loss of its sequence, so `reduce` in mode 'sequence' gives the paper's mean over sequences, and
    the other modes are weighted by length. The paper's widths are small: low = 3e-4, high = 4e-4. Advantages are constant over a sequence:
    (batch, 1), or of full shape. `gspo_token` is the form with a ratio of its own for each token's gradient.
    """
    log_ratio, advantage = _log_ratio("gspo", log_prob, old_log_prob, advantage, mask, segment_ids)
    mean = _sequence_mean(log_ratio, mask, segment_ids)
    return _clipped(array_namespace(mean).broadcast_to(mean, log_ratio.shape), advantage, low, high, None)


def gspo_token(
    log_prob: Array,
    old_log_prob: Array,
    advantage: Array,
    low: float,
    high: float | None = None,
    *,
    mask: Array | None = None,
    segment_ids: Array | None = None,
) -> Array:
    """GSPO's token form (arXiv 2507.18071): s_it = sg(s_i) pi_it / sg(pi_it), which has the sequence's value and the token's gradient.

    Under mode 'sequence' it has `gspo`'s value and gradient when advantages are constant over a sequence, and it also takes
    advantages that differ from token to token.
    """
    log_ratio, advantage = _log_ratio("gspo_token", log_prob, old_log_prob, advantage, mask, segment_ids)
    mean = stop_gradient(_sequence_mean(log_ratio, mask, segment_ids)) + (log_ratio - stop_gradient(log_ratio))
    return _clipped(mean, advantage, low, high, None)


def cispo(
    log_prob: Array,
    old_log_prob: Array,
    advantage: Array,
    *,
    high: float | None = None,
    cap: float | None = None,
    low: float | None = None,
    log_ratio_limit: float | None = None,
    mask: Array | None = None,
) -> Array:
    """-sg(clip(r, 1 - low, bound)) A log pi (CISPO, arXiv 2506.13585): the weight is clipped, the gradient of no token is.

    Args:
        high: the bound is 1 + high, as in the paper.
        cap: the bound is cap itself, as in the libraries that clamp the ratio by an absolute number. Exactly one of the two is given.
        low: the lower bound is 1 - low; None is no lower bound, as the paper runs it.
        log_ratio_limit: log r is cut at +- this before it is clipped. None does not; verl has 20.
    """
    if (high is None) == (cap is None):
        raise ValueError(
            f"cispo got high={high!r} and cap={cap!r}, but needs exactly one of them: high=0.28 bounds the ratio by 1.28, cap=1.28 does the same."
        )
    log_ratio, advantage = _log_ratio("cispo", log_prob, old_log_prob, advantage, mask)
    (log_prob,) = zero_masked(mask, log_prob)
    xp = array_namespace(log_ratio)
    log_ratio = _limited(log_ratio, log_ratio_limit)
    weight = xp.clip(xp.exp(log_ratio), min=None if low is None else 1 - low, max=cap if high is None else 1 + high)
    return -stop_gradient(weight) * advantage * log_prob


def topr(
    log_prob: Array,
    old_log_prob: Array,
    advantage: Array,
    *,
    cap: float = 1.0,
    ratio: str = "trajectory",
    mask: Array | None = None,
    segment_ids: Array | None = None,
) -> Array:
    """-sg(w) A log pi with w = 1 where A >= 0 and w = min(r, cap) where A < 0 (TOPR, arXiv 2503.14286).

    What is rewarded is imitated without an importance weight; what is punished is punished only as far as the policy still does it.

    Args:
        cap: upper bound of the weight of negatives; 1 in the paper's canonical form.
        ratio: 'trajectory' takes r over the whole sequence, exp(sum_t m_it (log_prob - old_log_prob)_it), as in the paper; 'token' takes
            each token's own, as one library does under the paper's name.
    """
    check_choice("topr", "ratio", ratio, ("trajectory", "token"))
    log_ratio, advantage = _log_ratio("topr", log_prob, old_log_prob, advantage, mask, segment_ids)
    (log_prob,) = zero_masked(mask, log_prob)
    xp = array_namespace(log_ratio)
    if ratio == "trajectory":
        log_ratio = sequence_sum(log_ratio, segment_ids)
    weight = xp.clip(xp.exp(log_ratio), max=cap)
    weight = xp.where(advantage < 0, weight, xp.ones_like(weight))
    return -stop_gradient(weight) * advantage * log_prob


def drifted(
    log_prob: Array,
    old_log_prob: Array,
    advantage: Array,
    drift: Callable[[Array, Array], Array],
    *,
    mask: Array | None = None,
) -> Array:
    """-( r A - f(log r, A) ), the surrogate of mirror learning (arXiv 2201.02373) with the drift f of the caller's choice.

    A drift is never negative, and it and its gradient are 0 at r = 1; then each step improves the policy. `clip_drift` gives PPO,
    `quadratic_drift` SPO, `kl_drift` MDPO.

    Args:
        drift: f(log_ratio, advantage) -> array of the same shape.
    """
    log_ratio, advantage = _log_ratio("drifted", log_prob, old_log_prob, advantage, mask)
    (loss,) = zero_masked(mask, drift(log_ratio, advantage) - array_namespace(log_ratio).exp(log_ratio) * advantage)
    return loss


def clip_drift(low: float, high: float | None = None) -> Callable[[Array, Array], Array]:
    """max(0, (r - clip(r, 1 - low, 1 + high)) A): with it `drifted` is `clipped` (arXiv 2210.05639)."""

    def drift(log_ratio, advantage):
        xp = array_namespace(log_ratio)
        ratio = xp.exp(log_ratio)
        return xp.clip((ratio - xp.clip(ratio, 1 - low, 1 + (low if high is None else high))) * advantage, min=0)

    return drift


def quadratic_drift(width: float) -> Callable[[Array, Array], Array]:
    """|A| (r - 1)^2 / (2 eps): the best ratio is 1 + sign(A) eps, and what is beyond is pulled back (SPO, arXiv 2401.16025)."""

    def drift(log_ratio, advantage):
        xp = array_namespace(log_ratio)
        return xp.abs(advantage) * xp.expm1(log_ratio) ** 2 / (2 * width)

    return drift


def kl_drift(step_size: Array | float) -> Callable[[Array, Array], Array]:
    """(r log r - r + 1) / t at a sample of the old policy: unbiased for KL(pi || pi_old) / t (MDPO, arXiv 2005.09814).

    The term 1 - r has mean 0 and makes the gradient 0 at r = 1 for each sample. `mdpo` also takes the exact divergence.
    """

    def drift(log_ratio, advantage):
        xp = array_namespace(log_ratio)
        ratio = xp.exp(log_ratio)
        return (ratio * log_ratio - xp.expm1(log_ratio)) / step_size

    return drift


def spo(log_prob: Array, old_log_prob: Array, advantage: Array, width: float, *, mask: Array | None = None) -> Array:
    """-( r A - |A| (r - 1)^2 / (2 eps) ), the quadratic surrogate of SPO (arXiv 2401.16025) with eps = width."""
    return drifted(log_prob, old_log_prob, advantage, quadratic_drift(width), mask=mask)


def mdpo(
    log_prob: Array,
    old_log_prob: Array,
    advantage: Array,
    step_size: Array | float,
    *,
    kl: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """-( r A - KL(pi || pi_old) / t ), the on-policy mirror-descent surrogate of MDPO (arXiv 2005.09814) with t = step_size.

    Args:
        step_size: t > 0. Several gradient steps are needed: at r = 1 the divergence has no gradient and one step is plain policy gradient.
        kl: the exact KL(pi || pi_old) at each element's state, NEW first, with gradient. None estimates it by `kl_drift`.
    """
    if kl is None:
        return drifted(log_prob, old_log_prob, advantage, kl_drift(step_size), mask=mask)
    check_shapes("mdpo", log_prob=log_prob, kl=kl)
    (kl,) = zero_masked(mask, kl)
    return importance_weighted(log_prob, old_log_prob, advantage, mask=mask) + kl / step_size


def _log_ratio(
    function: str, log_prob: Array, old_log_prob: Array, advantage: Array, mask: Array | None, segment_ids: Array | None = None
) -> tuple[Array, Array]:
    """log r and the advantage as constants where they are, checked and with 0 where masked."""
    check_shapes(function, log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage, mask=mask, segment_ids=segment_ids)
    log_prob, old_log_prob, advantage = zero_masked(mask, log_prob, old_log_prob, advantage)
    return log_prob - stop_gradient(old_log_prob), stop_gradient(advantage)


def _limited(log_ratio: Array, limit: float | None) -> Array:
    return log_ratio if limit is None else array_namespace(log_ratio).clip(log_ratio, -limit, limit)


def _sequence_mean(x: Array, mask: Array | None, segment_ids: Array | None) -> Array:
    """Mean of x, which is 0 where masked, over the tokens of each sequence."""
    return safe_divide(sequence_sum(x, segment_ids), sequence_sum(as_weights(mask, x), segment_ids))


def _clipped(log_ratio: Array, advantage: Array, low: float, high: float | None, dual: float | None) -> Array:
    xp = array_namespace(log_ratio)
    if isinstance(dual, (int, float)) and dual <= 1:
        raise ValueError(f"the dual clip got {dual}, but it bounds a ratio above 1: try 3, or None for no bound.")
    ratio = xp.exp(log_ratio)
    near = xp.clip(ratio, 1 - low, 1 + (low if high is None else high))
    loss = xp.maximum(-ratio * advantage, -near * advantage)
    return loss if dual is None else xp.where(advantage < 0, xp.minimum(loss, -dual * advantage), loss)
