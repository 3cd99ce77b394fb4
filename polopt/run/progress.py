"""What a person sees while a run trains: a live view in a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque

# Without a terminal: a line each 5 % of the steps, and one when it has been silent for 10 s; on long runs the silence may
# grow to a twentieth of the time that the run has taken, so that a day's log stays short.
LINE_PART = 0.05
LINE_SECONDS = 10.0
LINE_SHARE = 0.05


class Progress:
    """A context manager that shows how a run goes.

    total_steps: environment steps per seed at which training ends. seeds: how many seeds train together.
    stream: where to write, standard output if not given. Quiet writes nothing at all.
    """

    def __init__(self, total_steps: int, seeds: int, title: str, quiet: bool = False, stream=None):
        self.total, self.seeds, self.title = max(int(total_steps), 1), seeds, title
        self.step, self.returns, self.evaluation = 0, "", ""
        self.phase = "starting"
        self._recent: deque[tuple[int, float]] = deque(maxlen=20)
        stream = sys.stdout if stream is None else stream
        if quiet:
            self._view = _Nothing()
        elif stream.isatty() and os.environ.get("TERM") != "dumb":
            self._view = _Live(self, stream)
        else:
            self._view = _Lines(self, stream)

    def __enter__(self) -> Progress:
        self._view.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._view.stop()

    def compiling(self) -> None:
        """The computation is being compiled; this ends with the next `update`."""
        self.phase = "compiling"
        self._view.compiling()

    def update(self, step: int, seconds: float, returns=()) -> None:
        """Training stands at `step` (per seed) after `seconds` of training; returns: one number per seed, None or nan where unknown."""
        self.phase, self.step = "training", int(step)
        self._recent.append((self.step, float(seconds)))
        known = [float(r) for r in returns if r is not None and math.isfinite(r)]
        if known:
            self.returns = f"return {_spread(sum(known) / len(known), min(known), max(known))}"
        self._view.updated()

    def evaluated(self, step: int, mean: float, low: float = math.nan, high: float = math.nan) -> None:
        """An evaluation of the policy at `step` gave `mean`, with the interval low to high (nan where there is none)."""
        self.evaluation = f"evaluated {_spread(mean, low, high)} at {_count(step)}"
        self._view.evaluated()

    def note(self, text: str) -> None:
        """Show a sentence and let it stand."""
        self._view.note(text)

    @property
    def speed(self) -> float | None:
        """Environment steps a second over all seeds, over the last updates; None before it is known."""
        if not self._recent:
            return None
        first = self._recent[0] if len(self._recent) > 1 else (0, 0.0)
        step, seconds = self._recent[-1]
        return (step - first[0]) * self.seeds / (seconds - first[1]) if seconds > first[1] else None

    @property
    def left(self) -> str:
        """How long training will still take, in words; empty before it is known and at the end."""
        seconds = (self.total - self.step) * self.seeds / self.speed if self.speed else 0
        return f"{_clock(seconds)} left" if seconds >= 0.5 else ""

    @property
    def facts(self) -> list[str]:
        """Speed, return and last evaluation, as far as they are known."""
        speed = f"{_count(self.speed)} steps/s" if self.speed else ""
        return [text for text in (speed, self.returns, self.evaluation) if text]


class _Nothing:
    def start(self):
        pass

    stop = compiling = updated = evaluated = start

    def note(self, text):
        pass


class _Lines:
    """Plain lines, in ASCII, for files and pipes."""

    def __init__(self, progress: Progress, stream):
        self.progress, self.stream = progress, stream
        self.shown, self.said, self.news = None, 0.0, False

    def start(self):
        self.began = self.said = time.monotonic()
        self.write(self.progress.title)

    def stop(self):
        if self.news:
            self.line()

    def compiling(self):
        self.write("compiling")

    def updated(self):
        p, now, self.news = self.progress, time.monotonic(), True
        silence = max(LINE_SECONDS, LINE_SHARE * (now - self.began))
        advanced = self.shown is None or p.step - self.shown >= LINE_PART * p.total
        if advanced or p.step >= p.total or now - self.said >= silence:
            self.line()

    def evaluated(self):
        self.news = True  # the next line carries it

    def note(self, text):
        self.write(text)

    def line(self):
        p = self.progress
        self.shown, self.said, self.news = p.step, time.monotonic(), False
        words = [f"step {_count(p.step)} of {_count(p.total)} ({100 * p.step / p.total:.0f} %)", *p.facts, p.left]
        self.write("  ".join(word for word in words if word))

    def write(self, text):
        print(text, file=self.stream, flush=True)


class _Live:
    """A bar and a line of facts, redrawn in place by rich."""

    def __init__(self, progress: Progress, stream):
        from rich.console import Console
        from rich.live import Live

        self.progress, self.began = progress, time.monotonic()
        self.console = Console(file=stream)
        self.live = Live(console=self.console, get_renderable=self.render, refresh_per_second=5)

    def start(self):
        self.live.start()

    def stop(self):
        self.live.stop()

    def compiling(self):
        self.began = time.monotonic()
        self.live.refresh()

    def updated(self):
        pass  # the next refresh shows it

    evaluated = updated

    def note(self, text):
        self.console.print(text, markup=False, highlight=False)

    def render(self):
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        p = self.progress
        training = p.phase == "training"
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=p.total, completed=min(p.step, p.total), width=min(40, max(10, self.console.width - 50)), pulse=not training)
        words = [f"{_count(p.step)} of {_count(p.total)} steps", f"{100 * p.step / p.total:.0f} %", p.left] if training else []
        row.add_row(bar, Text("  ".join(word for word in words if word)))
        waiting = f"{p.phase} for {time.monotonic() - self.began:.0f} s"
        facts = [Text(fact) for fact in p.facts] if training else [Text(waiting)]
        return Group(Text(p.title, style="bold"), row, *facts)


def _count(value: float) -> str:
    """A short number: 950, 12.5k, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def _spread(value: float, low: float, high: float) -> str:
    """A number and its range in brackets, the range only where there is one."""
    size = max(abs(v) for v in (value, low, high) if math.isfinite(v)) if math.isfinite(value) else 0.0
    digits = 0 if size >= 1000 else 1 if size >= 10 else 3
    text = f"{value:.{digits}f}"
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})" if math.isfinite(low) and math.isfinite(high) and low < high else text


def _clock(seconds: float) -> str:
    """How long, in the two largest units."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
