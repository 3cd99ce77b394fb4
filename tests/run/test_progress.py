"""Progress: plain lines at a sensible rate, a live view in a terminal, silence on request."""

import io
import re

import pytest

from polopt.run import progress
from polopt.run.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines(clock):
    out = io.StringIO()
    with Progress(100_000, 4, "ppo on CartPole-v1", stream=out) as p:
        p.compiling()
        p.update(10_000, 2.0, [10.0, 20.0, None, float("nan")])
        p.evaluated(10_000, 33.0, 30.0, 36.0)
        p.note("Seed 2 stopped.")
        p.update(20_000, 4.0, [None] * 4)
    assert out.getvalue().splitlines() == [
        "ppo on CartPole-v1",
        "compiling",
        "step 10k of 100k (10 %)  20k steps/s  return 15.0 (10.0 to 20.0)  18 s left",
        "Seed 2 stopped.",
        "step 20k of 100k (20 %)  20k steps/s  return 15.0 (10.0 to 20.0)  evaluated 33.0 (30.0 to 36.0) at 10k  16 s left",
    ]


def test_a_fast_run_prints_about_twenty_lines(clock):
    out = io.StringIO()
    with Progress(1_000_000, 1, "run", stream=out) as p:
        for i in range(1, 1001):
            clock.now += 0.01
            p.update(1000 * i, 0.01 * i, [1.0])
    lines = [x for x in out.getvalue().splitlines() if x.startswith("step")]
    assert 20 <= len(lines) <= 22 and lines[-1].startswith("step 1M of 1M (100 %)") and "left" not in lines[-1]


def test_a_slow_run_speaks_each_ten_seconds_and_a_long_one_less_often(clock):
    out = io.StringIO()
    with Progress(10**9, 1, "run", stream=out) as p:
        for i in range(1, 61):
            clock.now += 1
            p.update(100 * i, float(i), [1.0])
        assert out.getvalue().count("step ") == 1 + 5
        for i in range(61, 36_000):
            clock.now += 1
            p.update(100 * i, float(i), [1.0])
    assert out.getvalue().count("\nstep ") < 150


def test_what_came_last_is_said_at_the_end(clock):
    out = io.StringIO()
    with Progress(1000, 2, "run", stream=out) as p:
        p.update(100, 1.0, [1.0, 2.0])
        p.update(110, 1.1, [1.0, 2.0])
        p.evaluated(110, 5.0)
    assert out.getvalue().splitlines()[-1].startswith("step 110 of 1k (11 %)") and "evaluated 5.000 at 110" in out.getvalue()


def test_quiet_says_nothing():
    out = Terminal()
    with Progress(1000, 1, "run", quiet=True, stream=out) as p:
        p.compiling()
        p.update(1000, 1.0, [1.0])
        p.evaluated(1000, 1.0, 0.5, 1.5)
        p.note("text")
    assert out.getvalue() == ""


def test_the_live_view(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    with Progress(100_000, 4, "ppo on [CartPole-v1]", stream=out) as p:
        p.compiling()
        p.update(50_000, 2.0, [10.0, 20.0, 30.0, 40.0])
        p.evaluated(50_000, 33.0, 30.0, 36.0)
        p.note("Seed [bold] stopped.")
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue())
    assert "compiling for 0 s" in text and "Seed [bold] stopped." in text
    last = text[text.rindex("ppo on [CartPole-v1]") :]
    for words in ("50k of 100k steps  50 %  2 s left", "100k steps/s", "return 25.0 (10.0 to 40.0)", "evaluated 33.0 (30.0 to 36.0) at 50k"):
        assert words in last
    assert out.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_an_error_inside_passes_and_leaves_the_terminal_in_order(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with pytest.raises(KeyboardInterrupt):
        with Progress(1000, 1, "run", stream=out) as p:
            p.update(10, 0.1, [1.0])
            raise KeyboardInterrupt
    assert "\x1b[?25h" in out.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    with Progress(1000, 1, "run", stream=out) as p:
        p.update(1000, 1.0, [1.0])
    assert out.getvalue().splitlines() == ["run", "step 1k of 1k (100 %)  1k steps/s  return 1.000"]


def test_a_resumed_run_measures_its_own_speed():
    p = Progress(1000, 2, "run", quiet=True)
    p.update(500, 100.0)
    p.update(600, 101.0)
    assert p.speed == 200.0
