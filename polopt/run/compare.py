"""Comparing runs: the same statistics for each, and how likely each beats the first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from polopt.data.dataset import DataTask
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.run import records
from polopt.run.data import load_data
from polopt.run.run import Run, RunError, compose, fit, summary
from polopt.run.statistics import probability_of_improvement


def train_all(methods: list[str], env: str | None, out: str | os.PathLike, *, data: str | None = None, language=None, **options) -> list[Run]:
    """One run of each method on the same environment, seeds and steps, in folders of `out` named by method.

    With `data` every method learns from these, and is evaluated on the environment. `language` are instead the arguments of `fit` that pose
    a task for language models.

    What would be refused later is refused before anything is trained. When a run is interrupted it is the last one returned.
    """
    if len(set(methods)) != len(methods):
        raise RunError(f"The methods {', '.join(methods)} are not all different. Name each one once.")
    _at_least_two(methods)
    if language:
        given = language | ({} if data is None else {"data": data})
    else:
        _check(methods, env, data, options.get("steps") or 1)
        given = {"env": env} if data is None else {"data": data, "evaluate_on": env}
    folders = [Path(out) / method.replace(":", "-") for method in methods]
    for folder in folders:
        if (folder / "run.json").exists():
            raise RunError(f"{folder} holds a run already. Give another folder with --out, or compare the runs that are there by their folders.")
    runs = []
    for method, folder in zip(methods, folders):
        runs.append(fit(method, out=folder, **given, **options))
        if runs[-1].status["state"] == "interrupted":
            break
    return runs


def _check(methods: list[str], env: str, data: str | None, steps: int) -> None:
    environment = make(env)
    task = ControlTask(environment, steps) if data is None else DataTask(load_data(data, environment), steps, environment)
    for method in methods:
        compose(method, task, {})


def comparison(runs: list[Run], policy: str = "best") -> list[dict[str, Any]]:
    """For each run the final statistics of a policy and, against the first run, the probability of improvement with its interval."""
    _at_least_two(runs)
    environments = {run.config["env"] for run in runs}
    if len(environments) > 1:
        raise RunError(f"The runs are on different environments ({', '.join(sorted(environments))}); compare runs on one.")
    rows = []
    for run in runs:
        scores = _final_scores(run, policy)
        rows.append({"run": run, "scores": scores, **summary(scores[:, None])})
    for row in rows[1:]:
        row["improvement"] = probability_of_improvement(_finite(row["scores"]), _finite(rows[0]["scores"]))
    return rows


def keep(rows: list[dict[str, Any]], policy: str) -> Path:
    """Append what a comparison found to `comparisons.jsonl` in the folder of its first run."""
    path = rows[0]["run"].directory / "comparisons.jsonl"
    names = {"scores", "mean", "iqm", "interval", "improvement"}
    found = [{"run": str(r["run"].directory), "method": r["run"].config["method"], **{k: v for k, v in r.items() if k in names}} for r in rows]
    records.append_line(path, {"policy": policy, "env": rows[0]["run"].config["env"], "runs": found})
    return path


def _at_least_two(things: list) -> None:
    if len(things) < 2:
        raise RunError(f"A comparison needs at least 2 runs or methods, but was given {len(things)}. Name another one.")


def _finite(scores: np.ndarray) -> np.ndarray:
    return scores[np.isfinite(scores)]


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
