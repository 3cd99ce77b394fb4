"""Comparing runs: the same statistics for each, and how likely each beats the first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from polopt.run import records
from polopt.run.run import Run, RunError, fit, summary
from polopt.run.statistics import probability_of_improvement


def train_all(methods: list[str], env: str, out: str | os.PathLike, **options) -> list[Run]:
    """One run of each method on the same environment, seeds and steps, in folders of `out` named by method."""
    if len(set(methods)) != len(methods):
        raise RunError(f"The methods {', '.join(methods)} are not all different. Name each one once.")
    return [fit(method, env, out=Path(out) / method.replace(":", "-"), **options) for method in methods]


def comparison(runs: list[Run], policy: str = "best") -> list[dict[str, Any]]:
    """For each run the final statistics of a policy and, against the first run, the probability of improvement with its interval."""
    if len(runs) < 2:
        raise RunError(f"A comparison needs at least 2 runs, but was given {len(runs)}.")
    environments = {run.config["env"] for run in runs}
    if len(environments) > 1:
        raise RunError(f"The runs are on different environments ({', '.join(sorted(environments))}); compare runs on one.")
    rows = []
    for run in runs:
        scores = _final_scores(run, policy)
        rows.append({"run": run, "scores": scores, **summary(scores[:, None])})
    for row in rows[1:]:
        row["improvement"] = probability_of_improvement(row["scores"], rows[0]["scores"])
    return rows


def _final_scores(run: Run, policy: str) -> np.ndarray:
    found = records.read_record(run.directory).evaluation(policy)
    if found is None or not found.final:
        raise RunError(f"The run {run.directory} has no final evaluation: it is {run.status['state']}. Finish it by `polopt resume {run.directory}`.")
    return found.scores


def write_report(runs: list[Run], path: str | os.PathLike) -> Path:
    """One HTML report of several runs at `path`, with their learning curves as `curve.png` beside it."""
    from polopt.run.report import html_report, learning_curve

    path = Path(path)
    if not path.parent.is_dir():
        raise RunError(f"There is no folder {path.parent} to write {path.name} into. Make it first, or give another file.")
    found = [records.read_record(run.directory) for run in runs]
    learning_curve(found, path.with_name("curve.png"))
    html_report(found, path)
    return path
