"""The run directory, written line by line while a run goes on and read back at any moment.

    run.json           what was asked for: method, its fields, environment, seeds, versions, machine, command
    metrics.jsonl      a line a chunk of training: step, iteration, seconds, and one number per seed for every metric
    evaluations.jsonl  a line an evaluation: step, policy, and the returns and lengths of its episodes per seed
    status.json        how the run stands: state, stopped seeds, step, seconds

A run can be killed while it writes. Readers therefore skip a line that is not whole, and a line that starts at a step
at or before an earlier one (the run was resumed from a checkpoint) replaces what came after that step.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class NotARun(ValueError):
    """The directory does not hold a run that can be read."""


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one evaluation. returns and lengths hold an array (episodes,) for every seed."""

    step: int
    policy: str  # "last" or "best"
    final: bool
    returns: tuple[np.ndarray, ...]
    lengths: tuple[np.ndarray, ...]

    @property
    def scores(self) -> np.ndarray:
        """The mean return of each seed, (seeds,); nan for a seed with no finite episode."""
        means = []
        for episodes in self.returns:
            finite = episodes[np.isfinite(episodes)]
            means.append(finite.mean() if finite.size else np.nan)
        return np.array(means)


@dataclass(frozen=True)
class Record:
    """A run directory in memory. `metrics` maps a name to an array (time, seeds), nan where there was no number."""

    directory: Path
    config: dict[str, Any]
    steps: np.ndarray  # (time,) environment steps per seed
    seconds: np.ndarray  # (time,) seconds of training
    metrics: dict[str, np.ndarray]
    evaluations: tuple[Evaluation, ...]
    status: dict[str, Any]
    unreadable: int  # lines skipped because they were not whole

    @property
    def title(self) -> str:
        return title(self.config)

    @property
    def horizontal(self) -> str:
        """What is counted along a learning curve."""
        if self.config.get("language"):
            return "iterations per seed"
        return "updates per seed" if self.config.get("data") else "environment steps per seed"

    @property
    def seeds(self) -> list[int]:
        return list(self.config["seeds"])

    @property
    def stopped(self) -> dict[int, str]:
        """Why training stopped, by seed, for the seeds that did not reach the end."""
        return {int(seed): str(why) for seed, why in (self.status.get("stopped") or {}).items()}

    def evaluation(self, policy: str = "last") -> Evaluation | None:
        """The newest evaluation of this policy, a final one before any other; None when there is none."""
        found = [e for e in self.evaluations if e.policy == policy]
        return max(found, key=lambda e: (e.final, e.step), default=None)


def title(config: dict[str, Any]) -> str:
    """What was learnt, and from what."""
    method, env, data = config["method"], config["env"], config.get("data")
    if not data:
        return f"{method} on {env}"
    return f"{method} from {data['name']}" + (f", evaluated on {env}" if data["evaluated"] else "")


def read_record(directory) -> Record:
    """Read a run directory, whole or in the making. Raises NotARun when `run.json` is missing or no run's."""
    directory = Path(directory)
    if not directory.is_dir():
        raise NotARun(f"There is no directory {str(directory)!r}; give the directory that `polopt train` wrote.")
    path = directory / "run.json"
    if not path.exists():
        raise NotARun(f"The directory {str(directory)!r} holds no run.json, so it is not a run; give one that `polopt train` wrote.")
    try:
        config = read_json(path)
    except ValueError as error:
        raise NotARun(f"The file {str(path)!r} is damaged ({error}); restore it from a copy or train anew.") from error
    missing = [k for k in ("format", "method", "env", "seeds") if not isinstance(config, dict) or k not in config]
    if missing:
        raise NotARun(f"The file {str(path)!r} lacks {', '.join(missing)}, so it is not a run's; give a directory that `polopt train` wrote.")
    if config["format"] != 1:
        raise NotARun(f"The run {str(directory)!r} has format {config['format']!r}, but this polopt reads format 1; use the polopt that wrote it.")

    rows, bad_rows = _lines(directory / "metrics.jsonl")
    marks, bad_marks = _lines(directory / "evaluations.jsonl")
    rows = _without_replaced(rows)
    seeds = len(config["seeds"])
    names = dict.fromkeys(k for row in rows for k in row if k not in ("step", "iteration", "seconds"))
    metrics = {name: np.stack([_per_seed(row.get(name), seeds, name, directory) for row in rows]) for name in names}
    try:
        status = read_json(directory / "status.json")
    except (OSError, ValueError):
        status = {}
    evaluations = {}
    for mark in marks:
        key = (int(mark["step"]), str(mark.get("policy", "last")), bool(mark.get("final", False)))
        returns, lengths = (tuple(_numbers(episodes or []) for episodes in mark.get(k) or []) for k in ("returns", "lengths"))
        if len(returns) == seeds:
            evaluations[key] = Evaluation(*key, returns, lengths)
        else:
            bad_marks += 1
    return Record(
        directory=directory,
        config=config,
        steps=np.array([row["step"] for row in rows], np.int64),
        seconds=_numbers([row.get("seconds") for row in rows]),
        metrics=metrics,
        evaluations=tuple(evaluations[key] for key in sorted(evaluations)),
        status=status if isinstance(status, dict) else {},
        unreadable=bad_rows + bad_marks,
    )


def read_lines(path) -> list[dict[str, Any]]:
    """The whole rows of a file of lines; none where there is no file."""
    return _lines(Path(path))[0]


def read_json(path) -> Any:
    """The value in a JSON file. Raises OSError when it cannot be opened and ValueError when it is not JSON."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def append_line(path, row: dict[str, Any]) -> None:
    """Append `row` as one line of JSON and hand it to the operating system, so that it survives the process being killed.

    Arrays become lists, floats keep seven significant digits (what float32 holds), nan and infinity become null.
    A half-written last line, left by a run that was killed, is closed first, so that it does not swallow this one.
    """
    line = json.dumps(_plain(row, digits=7), allow_nan=False, separators=(",", ":")) + "\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())


def write_json_atomic(path, value: dict[str, Any]) -> None:
    """Write `value` as JSON so that a reader sees the old file or the new one, never a part, whatever happens.

    Floats keep every digit. JSON has no infinity: infinities become the words "inf" and "-inf", which `float` reads,
    and nan becomes null.
    """
    path = Path(path)
    text = json.dumps(_plain(value), allow_nan=False, indent=2, ensure_ascii=False) + "\n"
    new = path.with_name(f".{path.name}.new")
    with open(new, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _plain(value, digits: int | None = None):
    """The value with arrays as lists and floats as JSON can hold them; rounded to `digits` significant digits if given."""
    if isinstance(value, dict):
        return {str(k): _plain(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, digits) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), digits)
    if isinstance(value, float):
        if math.isnan(value) or (digits and math.isinf(value)):
            return None
        if math.isinf(value):
            return str(value)
        return float(f"{value:.{digits}g}") if digits else value
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _lines(path: Path) -> tuple[list[dict], int]:
    """The whole lines of a JSONL file that carry a step, and how many others were skipped; none when there is no file."""
    if not path.exists():
        return [], 0
    rows, bad = [], 0
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), (int, float)):
            rows.append(row)
        else:
            bad += 1
    return rows, bad


def _without_replaced(rows: list[dict]) -> list[dict]:
    """Rows with increasing steps: a row that goes back drops the earlier ones from its step on."""
    kept = []
    for row in rows:
        while kept and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return kept


def _numbers(values) -> np.ndarray:
    """A list of numbers and nulls as a float64 array, null as nan."""
    return np.array([np.nan if v is None else v for v in values], np.float64)


def _per_seed(value, seeds: int, name: str, directory: Path) -> np.ndarray:
    """A metric's value in one row as (seeds,): missing is nan, a single number holds for every seed."""
    if value is None or isinstance(value, (int, float)):
        return np.full(seeds, np.nan if value is None else value, np.float64)
    if len(value) != seeds:
        raise NotARun(f"The metric {name!r} in {str(directory)!r} has {len(value)} values, but the run has {seeds} seeds; metrics.jsonl is damaged.")
    return _numbers(value)
