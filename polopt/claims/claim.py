"""What a claim is, and how numbers become a verdict.

A check compares a measure of two sides on the same seeds, as a difference or a ratio, or holds one side against a number. It holds when
the whole 95 % bootstrap interval of the effect over seeds lies on the right side of the threshold, fails when the whole interval lies on
the wrong side, and is inconclusive otherwise. A claim's verdict is the worst of its checks'. The number of seeds is a part of the claim, and
they are always 0, 1, ...: nobody can look at a result and then take a few seeds more.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polopt.methods.registry import Entry
from polopt.run.statistics import Estimate, estimate, interquartile_mean, paired_effect

HOLDS, FAILS, INCONCLUSIVE = "holds", "fails", "inconclusive"
WORST_FIRST = (FAILS, INCONCLUSIVE, HOLDS)
FEWEST_SEEDS = 5  # an interval from fewer covers too seldom to be stored; see polopt.run.statistics
LONGEST = 180  # seconds, beyond which a claim is slow

STATISTICS = {"interquartile mean": interquartile_mean, "mean": np.mean}


@dataclass(frozen=True)
class Side:
    """What one side of a claim is, and what was measured of it."""

    configuration: dict[str, Any]  # hyperparameters by name
    numbers: dict[str, Any]  # (seeds,) by measure
    curves: dict[str, tuple] = field(default_factory=dict)  # by name: x (time,), y (seeds, time) with nan where unknown, and what x is


@dataclass(frozen=True)
class Check:
    """A measure of `side`, minus that of `over` (or divided by it), lies above or below a number."""

    measure: str
    side: str
    over: str | None = None
    ratio: bool = False
    above: float | None = None
    below: float | None = None
    statistic: str = "interquartile mean"  # over seeds; of a ratio that of the logarithms

    def __post_init__(self):
        if (self.above is None) == (self.below is None):
            raise ValueError(f"The check {self.name!r} has above={self.above} and below={self.below}; give exactly one of them.")
        if self.ratio and self.over is None:
            raise ValueError(f"The check {self.name!r} is a ratio over nothing; say over which side.")
        if self.statistic not in STATISTICS:
            raise ValueError(f"The check {self.name!r} has the statistic {self.statistic!r}; known are {', '.join(STATISTICS)}.")

    @property
    def name(self) -> str:
        compared = self.side if self.over is None else f"{self.side} {'/' if self.ratio else '-'} {self.over}"
        return f"{self.measure}: {compared}"

    @property
    def threshold(self) -> float:
        return self.below if self.above is None else self.above

    @property
    def expectation(self) -> str:
        return f"{'below' if self.above is None else 'above'} {self.threshold:g}"

    @property
    def neutral(self) -> float | None:
        """The effect where the two sides are equal; None where there is one side only."""
        return None if self.over is None else 1.0 if self.ratio else 0.0

    def effect(self, numbers: dict[str, dict[str, Any]], **options) -> Estimate:
        """The effect with its interval from the numbers of each side by measure; options as in `bootstrap_interval`."""
        statistic = STATISTICS[self.statistic]
        x = self._numbers(numbers, self.side)
        if self.over is None:
            return estimate(x, statistic, **options)
        y = self._numbers(numbers, self.over)
        if not self.ratio:
            return paired_effect(x, y, statistic, **options)
        if (x <= 0).any() or (y <= 0).any():
            raise ValueError(f"The check {self.name!r} is a ratio, but some of its numbers are not above 0; compare them by a difference.")
        return Estimate(*np.exp(paired_effect(np.log(x), np.log(y), statistic, **options)))

    def _numbers(self, numbers, side: str) -> np.ndarray:
        if side not in numbers or self.measure not in numbers[side]:
            known = ", ".join(f"{measure} of {name}" for name, measures in numbers.items() for measure in measures)
            raise ValueError(f"The check {self.name!r} needs {self.measure} of {side}, but the claim's run gives {known}.")
        return np.asarray(numbers[side][self.measure], np.float64)

    def verdict(self, effect: Estimate) -> str:
        """By which side of the threshold the interval lies on; the threshold itself is on the wrong one."""
        if not (np.isfinite(effect.low) and np.isfinite(effect.high)):
            raise ValueError(f"The check {self.name!r} has no interval: one seed says nothing of the spread. Take at least two, better ten.")
        towards, away = (effect.low, effect.high) if self.below is None else (-effect.high, -effect.low)
        threshold = self.threshold if self.below is None else -self.threshold
        return HOLDS if towards > threshold else FAILS if away <= threshold else INCONCLUSIVE


def worst(verdicts: Sequence[str]) -> str:
    return min(verdicts, key=WORST_FIRST.index)


@dataclass(frozen=True)
class Claim:
    """What a paper claims of its method, and how it is tested.

    run: `run(seeds)` with the seeds' numbers gives every side by name; each of its numbers has an entry a seed, in that order.
    """

    method: str
    statement: str  # one sentence: what the paper claims
    baseline: str  # against what, named
    task: str
    run: Callable[[list[int]], dict[str, Side]]
    checks: tuple[Check, ...]
    seeds: int = 10
    seconds: float = 20.0  # about what it takes on two idle cores
    slow: bool = False  # left out of `polopt verify --all`
    analysis: str = ""  # of a claim that does not hold: what was tried, where it breaks, what the paper had that is missing here

    def __post_init__(self):
        if self.seeds < FEWEST_SEEDS:
            raise ValueError(f"The claim of {self.method} has {self.seeds} seeds, but a verdict needs at least {FEWEST_SEEDS}, better ten.")
        if not self.checks:
            raise ValueError(f"The claim of {self.method} has no check; say what must hold.")
        if self.seconds > LONGEST and not self.slow:
            raise ValueError(f"The claim of {self.method} takes {self.seconds:g} s; mark it slow, or make it cheaper than {LONGEST} s.")


def module_name(entry: Entry) -> str:
    return f"polopt.claims.{entry.family}.{entry.key}"


def exists(entry: Entry) -> bool:
    """Whether a method has a claim."""
    try:
        return importlib.util.find_spec(module_name(entry)) is not None
    except ModuleNotFoundError:  # the family has no claim at all
        return False


def load(entry: Entry) -> Claim:
    """The claim of a method. ValueError when it has none, or when its file states another method's."""
    if not exists(entry):
        raise ValueError(f"{entry.key} has no claim yet. Write polopt/claims/{entry.family}/{entry.key}.py; polopt/claims/__init__.py says how.")
    claim = importlib.import_module(module_name(entry)).CLAIM
    if claim.method != entry.key:
        raise ValueError(f"The claim in polopt/claims/{entry.family}/{entry.key}.py is of {claim.method!r}; it must be of {entry.key!r}.")
    return claim
