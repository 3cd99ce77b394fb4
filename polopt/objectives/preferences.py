"""Preference losses: one scalar a pair, the margin h, drives the family. One loss per pair, nothing reduced.

    h(y, y') = log pi(y) - log pi(y') - sum_a c_a [ log pi_a(y) - log pi_a(y') ],    sum_a c_a = 1

What the papers vary is the anchors pi_a (reference, previous policy, a mixture), the target, and the link:

    DPO     -log sigmoid(beta h)                               logistic(beta * h)
    DNO     the same with soft labels s, anchor pi_t           logistic(eta * h, s)
    IPO     (h - 1 / (2 tau))^2                                squared_link(h, 1 / (2 * tau))
    INPO    the same with anchors ref and pi_t                 squared_link(margin(y, y', [(tau / eta, ref, ref'), (1 - tau / eta, old, old')]), ...)
    REBEL   (h / eta - (r - r'))^2, anchor pi_t                squared_link(h / eta, r - r')
    CoPG    (beta h - (r - r'))^2                              squared_link(beta * h, r - r')

Conventions: y is the preferred response. Log-probabilities are of sequences (batch,), summed over the response's tokens by
`sequence_log_prob`. Those of the anchors are data: columns computed beforehand, constants here.
"""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import array_namespace

from polopt.objectives.backend import Array, as_weights, check_choice, check_shapes, safe_divide, softplus, stop_gradient, zero_masked


def sequence_log_prob(log_prob: Array, mask: Array, *, length_normalised: bool = False) -> Array:
    """sum_t m_t log pi(y_t), (batch,) from padded (batch, time); divided by the length if `length_normalised` (SimPO, arXiv 2405.14734).

    A response of length 0 gets 0 either way.
    """
    check_shapes("sequence_log_prob", log_prob=log_prob, mask=mask)
    xp = array_namespace(log_prob, mask)
    (log_prob,) = zero_masked(mask, log_prob)
    weight = as_weights(mask, log_prob)
    total = xp.sum(log_prob * weight, axis=-1)
    return safe_divide(total, xp.sum(weight, axis=-1)) if length_normalised else total


def margin(log_prob: Array, other_log_prob: Array, anchors: Sequence[tuple[float, Array, Array]] = ()) -> Array:
    """h = log pi(y) - log pi(y') - sum_a c_a [ log pi_a(y) - log pi_a(y') ].

    Args:
        log_prob, other_log_prob: of the preferred and the other response under the policy, of one shape.
        anchors: (c_a, log pi_a(y), log pi_a(y')) of each; the c_a sum to 1, so that a constant added to every log-probability changes
            nothing. Empty for losses without a reference.
    """
    check_shapes("margin", log_prob=log_prob, other_log_prob=other_log_prob)
    coefficients = [c for c, _, _ in anchors]
    if coefficients and all(isinstance(c, (int, float)) for c in coefficients) and abs(sum(coefficients) - 1) > 1e-6:
        raise ValueError(f"margin got anchors with coefficients {coefficients}, which must sum to 1: give the reference what is missing.")
    h = log_prob - other_log_prob
    for coefficient, anchor, other_anchor in anchors:
        check_shapes("margin", log_prob=log_prob, anchor=anchor, other_anchor=other_anchor)
        h = h - coefficient * stop_gradient(anchor - other_anchor)
    return h


def logistic(h: Array, label: Array | float = 1.0) -> Array:
    """-[ s log sigmoid(h) + (1 - s) log sigmoid(-h) ] with s = label, minimised at log-odds h of s.

    s = 1 is a hard label; 1 - eps is label smoothing (cDPO); a win probability is DNO's (arXiv 2404.03715).
    """
    return label * softplus(-h) + (1 - label) * softplus(h)


def squared_link(h: Array, target: Array | float) -> Array:
    """(h - target)^2."""
    return (h - target) ** 2


def hinge(h: Array, width: float = 1.0) -> Array:
    """max(0, width - h): SLiC (arXiv 2305.10425) and, at a verdict token, CompassJudger-2 (arXiv 2507.09104)."""
    return array_namespace(h).clip(width - h, min=0)


def bradley_terry(chosen: Array, rejected: Array, *, offset: Array | float = 0.0, penalty: float = 0.0) -> Array:
    """-log sigmoid(r_w - r_l - offset) + penalty (r_w^2 + r_l^2), the loss of a reward model (Bradley and Terry, 1952).

    Args:
        chosen, rejected: rewards of one shape.
        offset: how much better the chosen one must be, for example from a rating (Llama 2, arXiv 2307.09288).
        penalty: pins the scale of the rewards and the constant that comparisons leave free; 1e-3 is usual.
    """
    check_shapes("bradley_terry", chosen=chosen, rejected=rejected)
    return logistic(chosen - rejected - offset) + penalty * (chosen**2 + rejected**2)


def dpo(chosen: Array, rejected: Array, ref_chosen: Array, ref_rejected: Array, beta: float, *, label_smoothing: float = 0.0) -> Array:
    """-log sigmoid(beta h) with the reference as anchor (DPO, arXiv 2305.18290). Log-probabilities of sequences, (batch,)."""
    return logistic(beta * margin(chosen, rejected, [(1.0, ref_chosen, ref_rejected)]), 1 - label_smoothing)


def ipo(
    chosen: Array,
    rejected: Array,
    ref_chosen: Array,
    ref_rejected: Array,
    tau: float,
    *,
    length_normalised: bool = False,
    lengths: tuple[Array, Array] | None = None,
) -> Array:
    """(h - 1 / (2 tau))^2 with the reference as anchor (IPO, arXiv 2310.12036).

    Args:
        chosen, rejected, ref_chosen, ref_rejected: log-probabilities of sequences, summed over tokens, (batch,).
        tau: strength of the regularisation; libraries call it beta.
        length_normalised: False is the paper's sum. True divides each response's log-ratio by its length, as TRL does on the authors'
            advice; a response of length 0 then counts as log-ratio 0.
        lengths: tokens of the chosen and of the rejected response, (batch,) each; needed for, and only for, `length_normalised`.
    """
    if length_normalised != (lengths is not None):
        raise ValueError(
            f"ipo got length_normalised={length_normalised} {'with' if lengths is not None else 'without'} lengths,"
            " but the two go together: pass lengths=(chosen, rejected) with length_normalised=True, and neither for the paper's sum."
        )
    if lengths is not None:
        check_shapes("ipo", chosen=chosen, length_of_chosen=lengths[0], length_of_rejected=lengths[1])
        xp = array_namespace(chosen)
        chosen, ref_chosen = (safe_divide(x, xp.astype(lengths[0], x.dtype)) for x in (chosen, ref_chosen))
        rejected, ref_rejected = (safe_divide(x, xp.astype(lengths[1], x.dtype)) for x in (rejected, ref_rejected))
    return squared_link(margin(chosen, rejected, [(1.0, ref_chosen, ref_rejected)]), 1 / (2 * tau))


def ensemble_reward(rewards: Array, mode: str, *, coefficient: float | None = None, axis: int = 0) -> Array:
    """One reward from those of an ensemble of models along `axis` (arXiv 2310.02743), on a common scale.

    mode: 'mean'; 'worst', the minimum; 'uncertainty', mean - coefficient * variance (population).
    """
    check_choice("ensemble_reward", "mode", mode, ("mean", "worst", "uncertainty"))
    if (coefficient is not None) != (mode == "uncertainty"):
        raise ValueError(f"ensemble_reward got mode={mode!r} with coefficient={coefficient!r}, but the coefficient belongs to 'uncertainty' alone.")
    xp = array_namespace(rewards)
    if mode == "worst":
        return xp.min(rewards, axis=axis)
    mean = xp.mean(rewards, axis=axis)
    return mean if mode == "mean" else mean - coefficient * xp.var(rewards, axis=axis)


def reverse_kl(scores: Array, target: Array) -> Array:
    """KL(softmax(scores) || p), (batch,), from scores (batch, K) and log p (batch, K) (EXO, arXiv 2402.00856)."""
    check_shapes("reverse_kl", scores=scores, target=target)
    xp = array_namespace(scores)
    shifted = scores - stop_gradient(xp.max(scores, axis=-1, keepdims=True))
    log_p = shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
    return xp.sum(xp.exp(log_p) * (log_p - target), axis=-1)


def mean_pair_difference(x: Array) -> Array:
    """The mean over pairs i < j of (x_i - x_j)^2 / 2 along the last axis: the unbiased variance (CoPG, arXiv 2406.19185)."""
    xp = array_namespace(x)
    if x.shape[-1] < 2:
        raise ValueError(f"mean_pair_difference got {x.shape[-1]} numbers a group, but a pair needs 2: draw more responses to a prompt.")
    deviation = x - xp.mean(x, axis=-1, keepdims=True)
    return xp.sum(deviation**2, axis=-1) / (x.shape[-1] - 1)


def prospect(ratio: Array, label: Array, point: Array | float, beta: float, desirable: float = 1.0, undesirable: float = 1.0) -> Array:
    """lambda_D (1 - sigmoid(beta (r - z))) where the label is 1, lambda_U (1 - sigmoid(beta (z - r))) where it is 0 (KTO, arXiv 2402.01306).

    Args:
        ratio, label: r = log pi / pi_ref of responses, and 1 or 0, (batch,).
        point: z, a constant.
    """
    check_shapes("prospect", ratio=ratio, label=label)
    xp = array_namespace(ratio)
    gain = beta * (ratio - stop_gradient(point)) * (2 * label - 1)
    return (label * desirable + (1 - label) * undesirable) * xp.exp(-softplus(gain))
