"""Sending metrics elsewhere while a run trains: TensorBoard, Weights & Biases, MLflow and Trackio.

The run directory has everything anyway. A logger that breaks is therefore dropped with a warning, and the run goes on.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Logger(Protocol):
    """Takes numbers by name at a step; steps do not go back."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def make_logger(name: str, config: Mapping[str, Any], directory) -> Logger:
    """The logger called `name`, or several at once with commas between: "tensorboard,wandb".

    config: what the run is (run.json), shown beside its numbers. directory: the run directory; its name becomes the run's.
    Raises ValueError for an unknown name and ImportError when the logger's package is not installed.
    """
    names = list(dict.fromkeys(part.strip() for part in name.split(",") if part.strip()))
    for one in names:
        if one not in LOGGERS:
            raise ValueError(f"There is no logger {one!r}; choose among {', '.join(LOGGERS)}, several with commas between.")
    started: dict[str, Logger] = {}
    try:
        for one in names:
            started[one] = LOGGERS[one](config, Path(directory))
    except BaseException:
        for logger in started.values():
            logger.close()
        raise
    return Several(started)


class Several:
    """Hands everything on to all its loggers. Values that are not finite numbers are left out."""

    def __init__(self, loggers: dict[str, Logger]):
        self.loggers = dict(loggers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        finite = {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}
        if finite:
            self._each("log", step, finite)

    def close(self) -> None:
        self._each("close")
        self.loggers = {}

    def _each(self, action: str, *arguments) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                getattr(logger, action)(*arguments)
            except Exception as error:
                del self.loggers[name]
                warnings.warn(f"The logger {name!r} failed and is left out from here on ({error}); the run directory has all numbers.", stacklevel=3)


class TensorBoard:
    """Event files in `<run>/tensorboard`, for `tensorboard --logdir`. Written by tensorboardX, which needs no TensorFlow."""

    def __init__(self, config: Mapping[str, Any], directory: Path):
        writer = _package("tensorboardX", "tensorboard").SummaryWriter
        self.writer = writer(str(directory / "tensorboard"), flush_secs=10)
        # TensorBoard shows text as Markdown, in which four spaces make a block that is left as it is.
        self.writer.add_text("run", "    " + json.dumps(config, indent=2, default=str).replace("\n", "\n    "))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the Weights & Biases project "polopt" (WANDB_PROJECT names another; WANDB_MODE=offline needs no account)."""

    def __init__(self, config: Mapping[str, Any], directory: Path):
        wandb = _package("wandb", "wandb")
        project = os.environ.get("WANDB_PROJECT", "polopt")
        self.run = wandb.init(project=project, name=directory.name, dir=str(directory), config=dict(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of the MLflow experiment "polopt", or of MLFLOW_EXPERIMENT_NAME; MLFLOW_TRACKING_URI says where."""

    def __init__(self, config: Mapping[str, Any], directory: Path):
        mlflow = _package("mlflow", "mlflow")
        self.client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "polopt")
        experiment = self.client.get_experiment_by_name(name)
        identifier = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.run = self.client.create_run(identifier, run_name=directory.name).info.run_id
        parameters = [mlflow.entities.Param(key, str(value)[:500]) for key, value in _flat(config).items()]
        for start in range(0, len(parameters), 100):  # a server takes at most 100 at once
            self.client.log_batch(self.run, params=parameters[start : start + 100])
        self.metric = mlflow.entities.Metric

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run, metrics=[self.metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run)


class Trackio:
    """A run of the Trackio project "polopt", kept on this machine; `trackio show` opens it."""

    def __init__(self, config: Mapping[str, Any], directory: Path):
        trackio = _package("trackio", "trackio")
        self.run = trackio.init(project="polopt", name=directory.name, config=dict(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


LOGGERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio}


def _package(module: str, extra: str):
    """Import a logger's package, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"The logger {extra!r} needs the package {module} ({error}); install it with `pip install polopt[{extra}]`.") from error


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found = {}
    for key, value in config.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + str(key): value}
    return found
