"""Line charts: the numbers of a learning curve, and inline SVG that follows the page's colours and needs no library."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from html import escape

import numpy as np

from polopt.run.records import Record
from polopt.run.statistics import Estimate, estimate, interquartile_mean

# A run is told by its dashes and its marker; colour only helps. Light-page colours; the report's CSS has the dark ones.
COLOURS = ("#0067a8", "#c44e00", "#00795a", "#9c4a86", "#7a5c00", "#555c66")
DASHES = ((), (7, 3), (2, 2.5), (9, 3, 2, 3), (13, 4), (4, 2, 1, 2, 1, 2))
MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross")

BINS = 200
BAND_RESAMPLES = 1_000


@dataclass(frozen=True)
class Point:
    """An evaluation: its step, the interquartile mean over seeds with its interval, and which policy was tried."""

    step: int
    score: Estimate
    policy: str


@dataclass(frozen=True)
class Series:
    """One run's line: `middle` (time,) with a band `low` to `high` (time,), every seed in `singles` (time, seeds)."""

    style: int  # which colour, dashes and marker
    steps: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    singles: np.ndarray
    points: tuple[Point, ...] = ()


def over_seeds(scores) -> Estimate | None:
    """The interquartile mean of the finite scores with its 95 % interval; None when there is none."""
    finite = np.asarray(scores)[np.isfinite(scores)]
    return estimate(finite) if finite.size else None


def binned(steps: np.ndarray, values: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring rows so that at most `bins` remain: steps (time,), values (time, seeds); nan is left out."""
    if len(steps) <= bins:
        return steps.astype(np.float64), values
    starts = np.linspace(0, len(steps), bins, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(steps)))
    finite = np.isfinite(values)
    sums = np.add.reduceat(np.where(finite, values, 0.0), starts, axis=0)
    known = np.add.reduceat(finite.astype(int), starts, axis=0)
    means = np.where(known > 0, sums / np.maximum(known, 1), np.nan)
    return np.add.reduceat(steps.astype(np.float64), starts) / counts, means


def return_series(record: Record, style: int) -> Series:
    """The learning curve: the interquartile mean of the return over seeds with its 95 % bootstrap band, and the evaluations."""
    steps, singles = binned(*_returns(record))
    rows = []
    for row in singles:
        finite = row[np.isfinite(row)]
        rows.append(estimate(finite, resamples=BAND_RESAMPLES) if finite.size else Estimate(np.nan, np.nan, np.nan))
    middle, low, high = np.array(rows, np.float64).reshape(-1, 3).T
    latest = {(e.step, e.policy): e for e in sorted(record.evaluations, key=lambda e: e.final)}
    scored = [(e, over_seeds(e.scores)) for e in latest.values()]
    points = tuple(Point(e.step, score, e.policy) for e, score in scored if score is not None)
    return Series(style, steps, middle, low, high, singles, points)


def _returns(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Steps and returns (time, seeds): those of training, or where nobody acted in training those of the evaluations."""
    if "return" in record.metrics or not record.config.get("data"):
        return record.steps, record.metrics.get("return", np.zeros((len(record.steps), 0)))
    made = [e for e in record.evaluations if e.policy == "last" and not e.final]
    return np.array([e.step for e in made], np.int64), np.array([e.scores for e in made], np.float64).reshape(len(made), len(record.seeds))


def metric_series(record: Record, name: str, style: int) -> Series | None:
    """A diagnostic: the interquartile mean over seeds, the band from the lowest to the highest seed. None where it has no number."""
    if name not in record.metrics or not np.isfinite(record.metrics[name]).any():
        return None
    steps, singles = binned(record.steps, record.metrics[name], BINS // 2)
    rows = []
    for row in singles:
        finite = row[np.isfinite(row)]
        rows.append((interquartile_mean(finite), finite.min(), finite.max()) if finite.size else (np.nan,) * 3)
    middle, low, high = np.array(rows).T
    return Series(style, steps, middle, low, high, np.zeros((len(steps), 0)))


def compact(value: float) -> str:
    """A short number for an axis: 250k, 1.5M, 0.02, 3e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def ticks(low: float, high: float, least: int) -> list[float]:
    """Round numbers (multiples of 1, 2 or 5 times a power of ten) between low and high: the fewest that are at least `least`."""
    power = 10.0 ** math.ceil(math.log10(high - low))
    while True:
        for step in (power, power / 2, power / 5):
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first + 1 >= least:
                return [round(k * step, 12) for k in range(first, last + 1)]
        power /= 10


def limits(series: list[Series]) -> tuple[float, float, bool]:
    """The lowest and highest value to show, and whether a rare spike was cut off because it would flatten the rest."""
    parts = [a.ravel() for s in series for a in (s.middle, s.low, s.high, s.singles)]
    parts += [np.array([p.score.value, p.score.low, p.score.high]) for s in series for p in s.points]
    values = np.concatenate([p[np.isfinite(p)] for p in parts]) if parts else np.zeros(0)
    if not values.size:
        return 0.0, 1.0, False
    low, high = values.min(), values.max()
    inner_low, inner_high = np.quantile(values, (0.01, 0.99))
    reach = 3 * (inner_high - inner_low)
    cut = reach > 0 and bool(high > inner_high + reach or low < inner_low - reach)
    if cut:
        low, high = max(low, inner_low - reach / 10), min(high, inner_high + reach / 10)
    margin = 0.04 * (high - low) or max(abs(high) * 0.1, 1e-6)
    return float(low - margin), float(high + margin), cut


def line_chart(series: list[Series], width: int, height: int, label: str, x_title: str = "") -> str:
    """An SVG picture of the series, `width` x `height` in its own units; `label` says in words what it shows."""
    low, high, _ = limits(series)
    y_ticks = ticks(low, high, 3 if height < 250 else 4)
    left = 12 + 7 * max(len(compact(t)) for t in y_ticks)
    right, top, bottom = width - 20, 8, height - (38 if x_title else 22)
    end = max([s.steps.max() for s in series if s.steps.size] + [p.step for s in series for p in s.points] + [1])

    def at(x, y):
        return left + (right - left) * np.asarray(x) / end, bottom - (bottom - top) * (np.asarray(y) - low) / (high - low)

    clip = f"clip-{zlib.crc32(f'{label}{width}'.encode()):x}"
    parts = [f'<clipPath id="{clip}"><rect x="{left}" y="{top - 3}" width="{right - left + 16}" height="{bottom - top + 6}"/></clipPath>']
    for tick in y_ticks:
        _, y = at(0, tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/><text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{compact(tick)}</text>')
    for tick in ticks(0, end, 3 if width < 500 else 5):
        x, _ = at(tick, low)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/><text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{compact(tick)}</text>')
    parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    if x_title:
        parts.append(f'<text x="{(left + right) / 2:.0f}" y="{height - 4}" text-anchor="middle">{escape(x_title)}</text>')

    parts.append(f'<g clip-path="url(#{clip})">')
    for s in series:
        parts.append(f'<path class="band r{s.style % 6}" d="{_band(*at(s.steps, s.low), at(s.steps, s.high)[1])}"/>')
    for s in series:
        for single in s.singles.T:
            parts.append(f'<path class="single r{s.style % 6}" d="{_path(*at(s.steps, single))}"/>')
    for s in series:
        parts.append(f'<path class="line r{s.style % 6}"{_dashes(s.style)} d="{_path(*at(s.steps, s.middle))}"/>')
    for k, s in enumerate(series):
        for point in s.points:
            x, y = at(point.step, point.score.value)
            x += beside(k, len(series)) * width
            if np.isfinite(point.score.low):
                _, (bottom_end, top_end) = at(0, point.score[1:])
                parts.append(f'<path class="whisker r{s.style % 6}" d="M{x:.1f} {bottom_end:.1f}V{top_end:.1f}"/>')
            parts.append(marker(s.style, float(x), float(y), hollow=point.policy == "best"))
    parts.append("</g>")
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def marker(style: int, x: float, y: float, hollow: bool = False, size: float = 4.0) -> str:
    """The sign of a run's evaluations as an SVG shape around (x, y)."""
    r = size + 1.5 if hollow else size
    shape = {
        "circle": f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        "triangle": f"M{x:.1f} {y - 1.2 * r:.1f}l{1.2 * r:.1f} {2 * r}h{-2.4 * r:.1f}z",
        "diamond": f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {-1.3 * r:.1f}z",
        "down": f"M{x:.1f} {y + 1.2 * r:.1f}l{1.2 * r:.1f} {-2 * r}h{-2.4 * r:.1f}z",
        "cross": f"M{x - r:.1f} {y:.1f}h{2 * r}M{x:.1f} {y - r:.1f}v{2 * r}",
    }[MARKERS[style % 6]]
    return f'<path class="{"hollow" if hollow else "mark"} r{style % 6}" d="{shape}"/>'


def beside(k: int, count: int) -> float:
    """How far to move the marks of the k-th of several runs sideways, as a part of the width, so that all are seen."""
    return 0.006 * (k - (count - 1) / 2)


def line_sample(style: int) -> str:
    """A short piece of a run's line with its marker, for a legend."""
    line = f'<path class="line r{style % 6}"{_dashes(style)} d="M1 8H47"/>'
    return f'<svg class="sample" viewBox="0 0 48 16" aria-hidden="true">{line}{marker(style, 24, 8)}</svg>'


def interval_bar(value: Estimate, low: float, high: float, middle: float, label: str) -> str:
    """A number and its interval drawn on the axis from low to high, with a mark where nothing differs."""

    def x(v):
        return 6 + 108 * (min(max(v, low), high) - low) / (high - low)

    parts = [f'<path class="axis" d="M6 12H114M{x(middle):.1f} 3V21"/>']
    if np.isfinite(value.low):
        parts.append(f'<path class="bar" d="M{x(value.low):.1f} 12H{x(value.high):.1f}"/>')
    parts.append(f'<circle class="dot" cx="{x(value.value):.1f}" cy="12" r="4"/>')
    return f'<svg class="interval" viewBox="0 0 120 24" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _dashes(style: int) -> str:
    """The dash pattern as an attribute; from the seventh run on, colours come again with other dashes."""
    pattern = DASHES[(style + style // 6) % 6]
    return f' stroke-dasharray="{" ".join(map(str, pattern))}"' if pattern else ""


def _pieces(good: np.ndarray) -> list[np.ndarray]:
    """The indices of each unbroken stretch of true values."""
    indices = np.flatnonzero(good)
    return [p for p in np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1) if p.size]


def _points(x, y) -> str:
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y))


def _path(x, y) -> str:
    """A line through the finite points, broken where there is none; a lone point becomes a dot by the round line end."""
    return "".join(f"M{_points(x[p], y[p])}{'h0' if p.size == 1 else ''}" for p in _pieces(np.isfinite(y)))


def _band(x, low, high) -> str:
    pieces = _pieces(np.isfinite(low) & np.isfinite(high))
    return "".join(f"M{_points(x[p], low[p])}L{_points(x[p][::-1], high[p][::-1])}z" for p in pieces)
