"""A suite: several methods on one environment in one table of return, spread over seeds, divergence spent and time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polopt.envs.task import ControlTask
from polopt.run import records
from polopt.run.posing import RunError, compose, environment_of
from polopt.run.run import fit

KL = "kl/iteration"


class Row(NamedTuple):
    """What one method reached. A number that was not measured is nan."""

    name: str
    mean: float  # over seeds, of the last policy's final evaluation
    deviation: float  # over seeds, with ddof 1
    kl: float  # KL(old || new) of an iteration, over seeds and iterations
    seconds: float  # of training, all seeds, without compiling
    scores: tuple[float, ...]  # each seed's final return


class Table(tuple[Row, ...]):
    """Rows in the order asked for; `str` gives them as text."""

    def __str__(self) -> str:
        width = max(len("method"), *(len(row.name) for row in self))
        head = f"{'method':<{width}}  {'return':>9}  {'seed std':>9}  {'KL':>9}  {'seconds':>8}"
        return "\n".join([head, *(f"{r.name:<{width}}  {r.mean:>9.4g}  {r.deviation:>9.3g}  {r.kl:>9.3g}  {r.seconds:>8.1f}" for r in self)])


def suite(
    objectives: Sequence[str] | Mapping[str, tuple[str, Mapping[str, Any]]],
    env,
    seeds=10,
    *,
    steps: int,
    out: str | os.PathLike | None = None,
    **changes,
) -> Table:
    """Train every method on the same environment, steps and seeds, and compare what came out.

    objectives: names of methods, or by label a method with the hyperparameters that it changes, as `pg_guide.ABLATION` has them.
    env, seeds, steps: as in `polopt.fit`.
    out:        a new folder that keeps a run for each; by default nothing is kept.
    changes:    hyperparameters that all of them change, as in `polopt.fit`; a method's own changes take precedence.

    KL is reported by methods whose `measure_kl` is on, as the suite of `pg_guide` has it.
    """
    wanted = dict(objectives) if isinstance(objectives, Mapping) else {name: (name, {}) for name in objectives}
    if not wanted:
        raise RunError("A suite needs at least one method, but was given none. Name one, such as 'pg_guide:ppo'.")
    wanted = {label: (method, {**changes, **own}) for label, (method, own) in wanted.items()}
    task = ControlTask(environment_of(env), 1)
    for method, own in wanted.values():  # what would be refused later is refused before anything is trained
        compose(method, task, {name.replace("__", "."): value for name, value in own.items()})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if out is None else out)
        rows = []
        for label, (method, own) in wanted.items():
            directory = folder / label.replace(":", "-").replace(" ", "-").replace(",", "")
            fit(method, env, seeds=seeds, steps=steps, out=directory, evaluations=1, quiet=True, **own)
            rows.append(_row(label, records.read_record(directory)))
    return Table(rows)


def _row(label: str, record: records.Record) -> Row:
    scores = record.evaluation("last").scores
    kl = float(np.nanmean(record.metrics[KL])) if KL in record.metrics else np.nan
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else np.nan
    return Row(label, float(np.mean(scores)), deviation, kl, float(record.seconds[-1]), tuple(map(float, scores)))
