"""The oracles of coverage and quality: counts in hand, digitising, and the error of HyperLogLog."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from polopt.core import spaces
from polopt.data.dataset import DataError, Dataset, concatenated
from polopt.methods.analysis import dataset_measures as m
from polopt.run.collect import _counts, _shares


def pairs(states, actions, rewards=None, reference=None) -> Dataset:
    """One episode of whole-number states and actions."""
    n = len(states)
    column = lambda x: np.asarray(x, np.int32)  # noqa: E731
    reward = np.zeros(n, np.float32) if rewards is None else np.asarray(rewards, np.float32)
    ends = np.zeros(n, bool), np.arange(n) == n - 1
    return Dataset(column(states), column(actions), reward, column(states), *ends, spaces.Discrete(10), spaces.Discrete(3), "d", reference)


def boxes(values) -> Dataset:
    values = np.asarray(values, np.float32)[:, None]
    n = len(values)
    ends = np.zeros(n, bool), np.arange(n) == n - 1
    box = spaces.Box(-100.0, 100.0, (1,))
    return Dataset(values, np.zeros((n, 1), np.float32), np.zeros(n, np.float32), values, *ends, box, box)


def test_pairs_are_counted_once():
    """{(0,a), (0,a), (0,b), (1,a)}: u = 3; with u_ref = 4, SACo = .75."""
    data, reference = pairs([0, 0, 0, 1], [0, 0, 1, 0]), pairs([0, 1, 2, 3], [0, 0, 0, 0])
    found = m.measures(data, reference)
    assert found.unique == 3 and found.coverage == 0.75
    assert m.measures(reference, reference).coverage == 1 and m.measures(reference, reference).log_coverage == 1


def test_quality():
    """g = 2, 5, 12 for the random policy, the data and the expert: TQ = .3; 0 and 1 at the ends, and it may leave them."""
    assert m.quality(5, 2, 12) == pytest.approx(0.3)
    assert m.quality(2, 2, 12) == 0 and m.quality(12, 2, 12) == 1 and m.quality(0, 2, 12) < 0 and m.quality(20, 2, 12) > 1
    assert np.isnan(m.quality(2, 2, 2))
    assert m.measures(pairs([0, 1], [0, 0], rewards=[2, 3], reference=(2.0, 12.0))).quality == pytest.approx(0.3)
    assert m.measures(pairs([0, 1], [0, 0])).quality is None


def test_a_dataset_twice_has_the_same_measures():
    data, reference = pairs([0, 0, 1, 2], [0, 1, 0, 0], rewards=[1, 0, 0, 2], reference=(0.0, 6.0)), pairs([0, 1, 2, 3, 4, 5, 6, 7], [0] * 8)
    twice = dataclasses.replace(concatenated([data, data], "d"), reference=data.reference)
    one, two = m.measures(data), m.measures(twice)
    assert (one.unique, one.quality) == (two.unique, two.quality)
    assert m.measures(twice, reference).coverage == 4 / 8


def test_the_logarithmic_variant():
    assert m.coverage(100, 10_000) == 0.01 and m.coverage(100, 10_000, logarithmic=True) == pytest.approx(0.5)


def test_the_largest_value_falls_into_the_last_bin():
    bounds = m.grid(boxes([0.0, 10.0]))
    found = m.digitised(boxes([0.0, 0.05, 0.15, 9.99, 10.0]), bounds)[:, 0]
    assert list(found) == [0, 0, 1, 99, 99]


def test_bins_are_those_of_the_reference():
    """What lies beyond the reference's range falls into bins of its own, and coverage may exceed 1."""
    found = m.digitised(boxes([-0.05, 12.0]), m.grid(boxes([0.0, 10.0])))[:, 0]
    assert list(found) == [-1, 120]
    assert m.measures(boxes([0.0, 3.0, 6.0, 9.0]), boxes([0.0, 0.0, 10.0, 10.0])).coverage == 2


def test_coverage_compares_equal_numbers_of_transitions():
    with pytest.raises(DataError, match="has 2 transitions, but the reference d has 3; coverage compares equal numbers"):
        m.measures(pairs([0, 1], [0, 0]), pairs([0, 1, 2], [0, 0, 0]))


@pytest.mark.parametrize("n", [1, 1000, 50_000, 400_000])
def test_hyperloglog_is_right_to_about_a_percent(n):
    """2^14 registers: a relative error of 1.04 / 128 = .0081; three of them are allowed. Repetitions change nothing."""
    rows = np.stack([np.arange(n), np.arange(n) % 7], axis=1)
    hashes = m.hashed(rows)
    assert abs(m.hyperloglog(hashes) / n - 1) < 3 * 0.0081 + (0.01 if n == 1 else 0)
    assert m.hyperloglog(np.concatenate([hashes, hashes[: n // 2]])) == m.hyperloglog(hashes)


def test_equal_rows_have_equal_hashes_and_others_do_not():
    rows = np.array([[1, 2], [2, 1], [1, 2], [-1, 2]])
    found = m.hashed(rows)
    assert found[0] == found[2] and len(set(found.tolist())) == 3


def test_a_mix_counts_transitions_not_episodes():
    """20 % expert transitions, whatever the lengths of the episodes."""
    assert _counts(_shares("random:0.8,expert:0.2", "random"), 1000) == {"random": 800, "expert": 200}
