"""Reduction: what the modes are, and that splitting a batch changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.objectives.reduction import reduce, standardise

properties = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.mark.parametrize("mode", ["token", "sequence", "constant"])
@properties
@given(st.integers(0, 10**6), st.integers(1, 6), st.lists(st.integers(0, 6), max_size=3))
def test_any_split_gives_the_same_total(mode, seed, rows, cuts):
    """CONFORMANCE: token-mean and Dr. GRPO change with the split in several trainers; here the global count is the caller's."""
    rng = np.random.default_rng(seed)
    loss, mask = rng.normal(size=(rows, 5)), rng.random((rows, 5)) < 0.6
    if not mask.any():
        return
    count = mask.sum() if mode == "token" else mask.any(axis=1).sum()
    scale = 5.0 if mode == "constant" else None
    whole = reduce(loss, mask, mode, scale=scale)
    assert reduce(loss, mask, mode, count=float(count), scale=scale) == pytest.approx(whole, abs=1e-14)
    parts = [part for part in np.split(np.arange(rows), sorted(min(c, rows) for c in cuts)) if len(part)]
    assert sum(reduce(loss[part], mask[part], mode, count=float(count), scale=scale) for part in parts) == pytest.approx(whole, abs=1e-14)


def test_two_sequences():
    """Catalogue, tricks_or_traps, oracle 4: lengths 1 and 3, losses 4 and 0."""
    loss = np.array([[4.0, 9.0, 9.0], [0.0, 0.0, 0.0]])
    mask = np.array([[1, 0, 0], [1, 1, 1]])
    assert reduce(loss, mask, "token") == pytest.approx(1)
    assert reduce(loss, mask, "sequence") == pytest.approx(2)
    assert reduce(loss, mask, "constant", scale=4.0) == pytest.approx(0.5)
    assert reduce(loss, mask, "constant", scale=1.0) == pytest.approx(2)
    assert reduce(loss[:, :1], mask, "sequence") == pytest.approx(2)  # a loss per sequence is one that all its tokens bear


def test_token_mean_of_ones():
    """CONFORMANCE: 1.0, where a library gives 2.667: eight positions summed, three tokens counted."""
    ones, mask = np.ones((2, 4)), np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    assert reduce(ones, mask, "token") == 1.0
    assert reduce(ones, None, "token", count=3) == pytest.approx(2.667, abs=4e-4)
    assert reduce(ones, mask, "token", count=ones.size) == 0.375


def test_the_constant_is_the_callers():
    """CONFORMANCE: Dr. GRPO divides by the maximum length; the padded width of the batch at hand changes with the split."""
    loss, lengths = np.ones((2, 4)), np.array([1, 4])
    mask = np.arange(4) < lengths[:, None]
    parts = [(loss[:1, :1], mask[:1, :1]), (loss[1:], mask[1:])]  # each micro-batch is as wide as it needs
    assert sum(reduce(x, m, "constant", count=2, scale=8) for x, m in parts) == reduce(loss, mask, "constant", scale=8) == 5 / 16
    assert sum(reduce(x, m, "constant", count=2, scale=x.shape[1]) for x, m in parts) == 1.0
    assert reduce(loss, mask, "constant", scale=loss.shape[1]) == 5 / 8


def test_empty_sequences_count_for_nothing():
    loss, mask = np.ones((3, 4)), np.zeros((3, 4))
    for mode, scale in (("token", None), ("sequence", None), ("constant", 4.0)):
        assert reduce(loss, mask, mode, scale=scale) == 0
    mask[0, :2] = 1
    assert reduce(loss, mask, "sequence") == 1
    assert reduce(loss, mask, "sequence", count=3) == pytest.approx(1 / 3)


@pytest.mark.parametrize("ddof", [0, 1])
def test_standardise(ddof):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(3, 4)), rng.random((3, 4)) < 0.7
    given = standardise(np.where(mask, x, np.nan), mask, ddof=ddof, epsilon=1e-3)
    np.testing.assert_allclose(given[mask], (x[mask] - x[mask].mean()) / (x[mask].std(ddof=ddof) + 1e-3), atol=1e-13)
    assert not np.any(given[~mask])
    # over tokens of what is given per completion, as REINFORCE++-baseline does: long completions weigh more
    per_token = standardise(x[:, :1], mask, ddof=ddof)
    repeated = np.repeat(x[:, 0], mask.sum(axis=1))
    np.testing.assert_allclose(per_token[mask], (repeated - repeated.mean()) / repeated.std(ddof=ddof), atol=1e-7)


def test_refusals():
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match="mode='mean'.*'token', 'sequence', 'constant'"):
        reduce(x, None, "mean")
    with pytest.raises(ValueError, match="mode='token' with scale=3"):
        reduce(x, None, "token", scale=3)
    with pytest.raises(ValueError, match="mode='constant' with scale=None"):
        reduce(x, None, "constant")
    with pytest.raises(ValueError, match=r"loss \(2, 3\), mask \(2, 4\)"):
        reduce(x, np.ones((2, 4)), "token")
    with pytest.raises(ValueError, match=r"mask \(3,\)"):
        standardise(x, np.ones(3))


def test_epsilon_in_the_variance():
    """verl's whitening: / sqrt(var + eps). Numbers of the size of sqrt(eps) show where it is added."""
    x = np.array([1e-4, -1e-4])
    np.testing.assert_allclose(standardise(x, epsilon=1e-8, epsilon_in="variance"), [0.5**0.5, -(0.5**0.5)])
    np.testing.assert_allclose(standardise(x, epsilon=1e-8), [1, -1], rtol=2e-4)
    with pytest.raises(ValueError, match="epsilon_in='std'"):
        standardise(x, epsilon_in="std")
