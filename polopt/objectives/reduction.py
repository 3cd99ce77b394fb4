"""From losses of tokens to one number, in a way that does not change when a batch is split; and standardisation over a batch.

Conventions: `loss` is (batch, time) and `mask` is bool or float of the same shape, 1 where the model acted. A masked loss never
matters, NaN included. Divisors belong to the whole optimiser batch: the caller passes its `count`, and then the results of the
micro-batches add up to the whole batch's, whatever the split.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from polopt.objectives.backend import Array, as_weights, check_choice, check_shapes, safe_divide, safe_sqrt, zero_masked
from polopt.objectives.layout import sequence_sum


def reduce(
    loss: Array,
    mask: Array | None,
    mode: str,
    count: Array | float | None = None,
    scale: Array | float | None = None,
    *,
    segment_ids: Array | None = None,
) -> Array:
    """One number from the losses l_it of tokens, with T_i = sum_t m_it the length of sequence i.

        token      sum_it m_it l_it / count                  count: tokens of the whole batch        DAPO, arXiv 2503.14476
        sequence   sum_i [ sum_t m_it l_it / T_i ] / count   count: sequences of the whole batch     GRPO, arXiv 2402.03300
        constant   sum_it m_it l_it / (scale count)          count: sequences of the whole batch     Dr. GRPO, arXiv 2503.20783

    Args:
        loss: (batch, time), or any shape with time last; (batch, 1) is read as a loss that all tokens of a sequence bear.
        mask: (batch, time); None counts every element.
        mode: 'token', 'sequence' or 'constant'.
        count: the divisor of the whole optimiser batch. None takes it from this call's mask, where a sequence counts when it has a
            token; that is right only while the batch is not split.
        scale: for 'constant' alone, and required there: the length every sequence is divided by. Dr. GRPO's is the maximum completion
            length; some libraries take the padded width of the current batch, which changes with the split. 1 gives the mean over
            sequences of token sums (REINFORCE, RLOO).
        segment_ids: of loss's shape, for packed or concatenated sequences.

    Libraries differ in `token`: count=loss.size divides by all positions, padding included; mask=None with count=sum(mask) is one
    that forgets the mask above the line (2.667 instead of 1 on a loss of ones).
    """
    check_choice("reduce", "mode", mode, ("token", "sequence", "constant"))
    check_shapes("reduce", loss=loss, mask=mask, segment_ids=segment_ids)
    if (scale is not None) != (mode == "constant"):
        raise ValueError(
            f"reduce got mode={mode!r} with scale={scale!r}, but 'constant' needs a scale and the other modes have none:"
            " pass the maximum length as scale with 'constant', and no scale otherwise."
        )
    xp = array_namespace(loss)
    (loss,) = zero_masked(mask, loss)
    weight = as_weights(mask, loss)
    # The share of a token in what is counted: 1 where tokens count, and summing to 1 over a sequence where sequences do.
    share = weight if mode == "token" else safe_divide(weight, sequence_sum(weight, segment_ids))
    total = xp.sum(loss * (weight if mode == "constant" else share))
    total = total if scale is None else total / scale
    return safe_divide(total, xp.sum(share)) if count is None else total / count


def standardise(x: Array, mask: Array | None = None, *, ddof: int = 0, epsilon: float = 1e-8, epsilon_in: str = "deviation") -> Array:
    """(x - mean) / (std + epsilon) over all elements where the mask is 1; 0 elsewhere, and 0 everywhere if x is constant.

    Over the advantages of a minibatch it is what every PPO code does; over all tokens of the batch it is REINFORCE++'s global
    normalisation (arXiv 2501.03262), of token advantages (batch, time), or of completions' advantages (batch, 1) with the tokens' mask.

    Args:
        x: any shape.
        mask: of x's shape, or of one that x broadcasts to; None counts every element.
        ddof: std = sqrt( sum (x - mean)^2 / (n - ddof) ). Codes in PyTorch have 1 by torch.std's default, in JAX and NumPy 0.
        epsilon: added to the standard deviation.
        epsilon_in: 'deviation', or 'variance' to add it to the variance under the root, as verl does.
    """
    check_choice("standardise", "epsilon_in", epsilon_in, ("deviation", "variance"))
    check_shapes("standardise", x=x, mask=mask)
    xp = array_namespace(x)
    (x,) = zero_masked(mask, x)
    weight = as_weights(mask, x)
    n = xp.sum(weight)
    mean = safe_divide(xp.sum(x * weight), n)
    mean = mean + safe_divide(xp.sum((x - mean) * weight), n)  # takes away rounding, which 1/epsilon would blow up on a constant x
    centred = (x - mean) * weight
    variance = safe_divide(xp.sum(centred**2), n - ddof)
    return safe_divide(centred, safe_sqrt(variance) + epsilon if epsilon_in == "deviation" else safe_sqrt(variance + epsilon))
