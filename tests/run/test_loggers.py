"""Loggers: each is written to for real where its package is installed, and read back."""

import json
import sqlite3
import struct
import sys

import pytest

from polopt.run.loggers import LOGGERS, Several, make_logger

CONFIG = {"method": "ppo", "env": "CartPole-v1", "fields": {"learning_rate": 3e-4, "network.hidden": [64, 64], "target_kl": None}, "seeds": [0, 1]}
VALUES = {"return": 12.5, "loss/value": 0.25, "kl": float("nan"), "entropy": None}


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "ppo-run"
    path.mkdir()
    return path


def run(name, directory):
    logger = make_logger(name, CONFIG, directory)
    logger.log(100, VALUES)
    logger.log(200, {"return": 20.0})
    logger.close()


def test_unknown_names_list_the_choices(directory):
    with pytest.raises(ValueError, match="no logger 'tensorbord'; choose among tensorboard, wandb, mlflow, trackio"):
        make_logger("tensorbord", CONFIG, directory)


@pytest.mark.parametrize("name, module", [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow"), ("trackio", "trackio")])
def test_a_missing_package_names_the_extra(name, module, directory, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs the package {module} .*pip install polopt\[{name}\]"):
        make_logger(name, CONFIG, directory)


def test_no_name_logs_nowhere(directory):
    run("", directory)
    assert list(directory.iterdir()) == []


class Memory:
    def __init__(self, config, directory):
        self.rows, self.closed = [], 0

    def log(self, step, values):
        self.rows.append((step, values))

    def close(self):
        self.closed += 1


class Broken(Memory):
    def log(self, step, values):
        raise OSError("the server is gone")


def test_several_at_once_each_named_once(directory, monkeypatch):
    memories = []

    def make(*arguments):
        memories.append(Memory(*arguments))
        return memories[-1]

    monkeypatch.setitem(LOGGERS, "memory", make)
    monkeypatch.setitem(LOGGERS, "other", make)
    logger = make_logger("memory, other,memory", CONFIG, directory)
    logger.log(100, VALUES)
    logger.log(150, {"kl": float("inf")})
    logger.close()
    logger.close()
    assert [m.rows for m in memories] == [[(100, {"return": 12.5, "loss/value": 0.25})]] * 2
    assert [m.closed for m in memories] == [1, 1]


def test_a_logger_that_breaks_is_dropped_and_the_others_go_on():
    good = Memory(None, None)
    logger = Several({"bad": Broken(None, None), "good": good})
    with pytest.warns(UserWarning, match="'bad' failed and is left out .*the server is gone"):
        logger.log(1, {"x": 1.0})
    logger.log(2, {"x": 2.0})
    assert [step for step, _ in good.rows] == [1, 2]


def test_a_logger_that_cannot_start_closes_those_before_it(directory, monkeypatch):
    made = []

    def first(*arguments):
        made.append(Memory(*arguments))
        return made[-1]

    monkeypatch.setitem(LOGGERS, "memory", first)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError):
        make_logger("memory,wandb", CONFIG, directory)
    assert made[0].closed == 1


def test_tensorboard(directory):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    run("tensorboard", directory)
    (path,) = (directory / "tensorboard").iterdir()
    data, found, texts = path.read_bytes(), [], []
    while data:  # an event file is a row of length, checksum, event, checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.append((event.step, value.tag, value.simple_value))
            else:
                texts.append(value.tensor.string_val[0].decode())
    assert found == [(100, "return", 12.5), (100, "loss/value", 0.25), (200, "return", 20.0)]
    assert '"learning_rate": 0.0003' in texts[0]


def test_tensorboard_reads_it(directory):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run("tensorboard", directory)
    events = accumulator.EventAccumulator(str(directory / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("return")] == [(100, 12.5), (200, 20.0)]


@pytest.mark.filterwarnings("default")
def test_wandb(directory, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(directory), "WANDB_PROJECT": "trial"}.items():
        monkeypatch.setenv(name, value)
    run("wandb", directory)
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    data = path.read_bytes()
    assert b"loss/value" in data and b"0.25" in data and b"learning_rate" in data and b"ppo-run" in data and b"trial" in data


@pytest.mark.filterwarnings("default")
def test_mlflow(directory, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(directory)
    mlflow.set_tracking_uri(f"sqlite:///{directory}/mlflow.db")
    run("mlflow", directory)
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("polopt").experiment_id])
    assert found.info.run_name == "ppo-run" and found.info.status == "FINISHED"
    assert found.data.params["fields.learning_rate"] == "0.0003" and found.data.params["env"] == "CartPole-v1"
    assert [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "return")] == [(100, 12.5), (200, 20.0)]
    assert [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "loss/value")] == [(100, 0.25)]


@pytest.mark.filterwarnings("default")
def test_trackio(directory, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(directory))
    pytest.importorskip("trackio")
    run("trackio", directory)
    (path,) = directory.rglob("polopt.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(metrics)) for step, metrics in rows] == [(100, {"return": 12.5, "loss/value": 0.25}), (200, {"return": 20.0})]
