"""The layouts that token data comes in, and sums over the sequences of each.

padded         (batch, time), one sequence a row, a mask for what is not there; no segment ids.
packed         (batch, time), several sequences one behind the other in a row, told apart by segment ids.
concatenated   (tokens,), all sequences one behind the other, told apart by segment ids.

Time is the last axis. Segment ids are integers, constant over a sequence and different from those of its neighbours; padding may have
any id of its own, since the mask is 0 there. Functions with a `segment_ids` argument give the same numbers in all three layouts.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from polopt.objectives.backend import Array, group_sum


def ids_from_lengths(lengths: Array, size: int) -> Array:
    """Segment ids (size,) of sequences of the given lengths (n,) one behind the other: 0 for the first, n behind the last."""
    xp = array_namespace(lengths)
    ends = xp.cumulative_sum(lengths)
    return xp.searchsorted(ends, xp.arange(size, dtype=ends.dtype), side="right")


def segment_ends(segment_ids: Array) -> Array:
    """True at the last position of every segment along the last axis."""
    xp = array_namespace(segment_ids)
    last = xp.ones_like(segment_ids[..., :1], dtype=xp.bool)
    return xp.concat([segment_ids[..., 1:] != segment_ids[..., :-1], last], axis=-1)


def last_positions(x: Array, segment_ids: Array | None) -> Array:
    """True where a sequence's positions end: the last column, or the last position of each segment. Of x's shape."""
    xp = array_namespace(x)
    if segment_ids is not None:
        return segment_ends(segment_ids)
    last = xp.arange(x.shape[-1]) == x.shape[-1] - 1
    return xp.broadcast_to(xp.reshape(last, (1,) * (x.ndim - 1) + (-1,)), x.shape)


def sequence_sum(x: Array, segment_ids: Array | None = None) -> Array:
    """At every position the sum of x over its sequence; with padded rows (batch, 1), with segment ids of x's shape."""
    xp = array_namespace(x)
    if segment_ids is None:
        return xp.sum(x, axis=-1, keepdims=True)
    starts = xp.concat([xp.ones_like(segment_ids[..., :1], dtype=xp.bool), segment_ids[..., 1:] != segment_ids[..., :-1]], axis=-1)
    # Numbering the segments of all rows through, in reading order, needs no sorting.
    index = xp.cumulative_sum(xp.astype(xp.reshape(starts, (-1,)), segment_ids.dtype)) - 1
    return xp.reshape(group_sum(xp.reshape(x, (-1,)), index), x.shape)
