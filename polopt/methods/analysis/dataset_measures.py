"""A Dataset Perspective on Offline Reinforcement Learning.

Kajetan Schweighofer, Andreas Radler, Marius-Constantin Dinu, Markus Hofmarcher, Vihang Patil, Angela Bitto-Nemling, et al. 2022. arXiv:2111.04714

Two numbers of a dataset foretell which offline method will work on it: how much of the state-action space it covers, and how good its
trajectories are. Cloning follows the quality, unconstrained Q-learning the coverage, constrained methods want enough of either.

With u(D) the number of different (s, a) of a dataset and g(D) the mean return of its episodes:

    SACo(D) = u(D) / u(D_ref),    D_ref: the replay of an online learner with as many transitions;   log variant: log u(D) / log u(D_ref)
    TQ(D)   = (g(D) - g(D_min)) / (g(D_expert) - g(D_min)),    D_min: of a random policy, D_expert: of the best one known

Continuous coordinates are cut into 100 bins between the smallest and the largest value of the reference; the largest falls into the last
bin. Pairs are counted exactly, or above a million by HyperLogLog (Flajolet et al., 2007), whose error is about 1.04 / sqrt(registers).
SACo may exceed 1, and TQ may be negative or exceed 1. In an environment with much chance, different pairs measure the chance.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from polopt.data.dataset import DataError, Dataset

BINS = 100
EXACT = 1_000_000  # pairs up to which they are counted one by one
REGISTERS = 2**14


class Grid(NamedTuple):
    """Where each coordinate is cut: between `low` and `high` (size,) into equal bins, nothing where they are equal."""

    low: np.ndarray
    high: np.ndarray


def coordinates(dataset: Dataset) -> np.ndarray:
    """(n, size): every number of observation and action; whole numbers as they are, those of boxes to be cut."""
    parts = [_numbers(dataset.observation), _numbers(dataset.action)]
    return np.concatenate(parts, axis=1)


def _numbers(tree) -> np.ndarray:
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(len(x), -1).astype(np.float64) for x in leaves], axis=1)


def grid(reference: Dataset) -> Grid:
    """The bins' bounds, from the reference data."""
    values = coordinates(reference)
    return Grid(values.min(axis=0), values.max(axis=0))


def digitised(dataset: Dataset, bounds: Grid, bins: int = BINS) -> np.ndarray:
    """(n, size) the bin of each number: 0 ... bins - 1 within the bounds, further out beyond them; whole numbers keep theirs."""
    values = coordinates(dataset)
    width = np.where(bounds.high > bounds.low, bounds.high - bounds.low, 1.0)
    cut = np.floor((values - bounds.low) / width * bins)
    cut = np.where(values == bounds.high, bins - 1, cut)
    return np.where(_whole(dataset), values, cut).astype(np.int64)


def _whole(dataset: Dataset) -> np.ndarray:
    """(size,): which numbers are whole by their space."""
    arrays = [np.asarray(x) for x in jax.tree.leaves((dataset.observation, dataset.action))]
    return np.concatenate([np.full(x.reshape(len(x), -1).shape[1], x.dtype.kind in "biu") for x in arrays])


def unique_pairs(rows: np.ndarray) -> float:
    """u: how many different rows (n, size) there are, exactly or by HyperLogLog."""
    if len(rows) <= EXACT:
        return float(len(np.unique(rows, axis=0)))
    return hyperloglog(hashed(rows))


def hashed(rows: np.ndarray) -> np.ndarray:
    """(n,) a 64-bit number for each row, equal for equal rows."""
    total = np.full(len(rows), 0x9E3779B97F4A7C15, np.uint64)
    with np.errstate(over="ignore"):
        for column in rows.astype(np.int64).view(np.uint64).reshape(rows.shape).T:
            total = _mixed(total ^ (column + np.uint64(0x9E3779B97F4A7C15)))
    return total


def _mixed(x: np.ndarray) -> np.ndarray:
    """Sebastiano Vigna's SplitMix64 finaliser: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hyperloglog(hashes: np.ndarray, registers: int = REGISTERS) -> float:
    """About how many of the 64-bit hashes differ: from the longest run of leading zeros seen in each register."""
    bits = registers.bit_length() - 1
    register = (hashes >> np.uint64(64 - bits)).astype(np.int64)
    rest = (hashes << np.uint64(bits)) >> np.uint64(11)  # 53 bits, which a float holds exactly
    _, exponent = np.frexp(rest.astype(np.float64))
    rank = np.where(rest == 0, 54, 54 - exponent)
    longest = np.zeros(registers, np.int64)
    np.maximum.at(longest, register, rank)
    estimate = 0.7213 / (1 + 1.079 / registers) * registers**2 / np.sum(2.0**-longest)
    empty = np.count_nonzero(longest == 0)
    return float(registers * np.log(registers / empty)) if estimate <= 2.5 * registers and empty else float(estimate)


def coverage(unique: float, reference: float, logarithmic: bool = False) -> float:
    """SACo from the numbers of different pairs."""
    return float(np.log(unique) / np.log(reference)) if logarithmic else unique / reference


def quality(mean_return: float, lowest: float, expert: float) -> float:
    """TQ from mean returns; nan where expert and random policy earn the same."""
    return (mean_return - lowest) / (expert - lowest) if expert != lowest else float("nan")


class Measures(NamedTuple):
    """What is measured of a dataset; a number is None where nothing tells it."""

    unique: float  # u(D)
    coverage: float | None  # SACo(D)
    log_coverage: float | None
    quality: float | None  # TQ(D)
    mean_return: float


def measures(dataset: Dataset, reference: Dataset | None = None) -> Measures:
    """Both measures. Without a reference of as many transitions there is no coverage, without reference returns no quality."""
    if reference is not None and len(reference) != len(dataset):
        raise DataError(
            f"{dataset.name} has {len(dataset):,} transitions, but the reference {reference.name} has {len(reference):,}; coverage compares equal "
            "numbers. Collect a reference of that size."
        )
    bounds = grid(dataset if reference is None else reference)
    unique = unique_pairs(digitised(dataset, bounds))
    base = None if reference is None else unique_pairs(digitised(reference, bounds))
    mean = float(np.mean(dataset.episodes().returns))
    tq = None if dataset.reference is None else quality(mean, *dataset.reference)
    covered = (None, None) if base is None else (coverage(unique, base), coverage(unique, base, logarithmic=True))
    return Measures(unique, *covered, tq, mean)

