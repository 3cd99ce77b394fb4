"""Small runs that several tests look at, each trained once a worker, and what a person at a terminal gets."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polopt
from polopt.cli import main
from polopt.run.training import Training

ROOT = Path(__file__).parents[1]
SIZES = dict(num_envs=4, num_steps=8, minibatches=2, epochs=2, network__hidden=(8,), critic_network__hidden=(8,))
# A checkpoint every second iteration of 32 steps. Other steps are another program to compile, and so are other seeds.
PLAN = dict(steps=640, seeds=2, evaluations=10, episodes=2, final_episodes=2, quiet=True)
ONE_PASS = {k: v for k, v in SIZES.items() if k not in ("minibatches", "epochs")}


def options(**more) -> list[str]:
    """SIZES and PLAN as the command line has them, with changes."""
    words = []
    for name, value in {**SIZES, **PLAN, **more}.items():
        flag = "--" + name.replace("__", ".").replace("_", "-")
        words += [flag] if value is True else [flag, *map(str, value)] if isinstance(value, tuple) else [flag, str(value)]
    return words


def fit(method="ppo", env="probe:action", **more):
    return polopt.fit(method, env, **{**(ONE_PASS if method in ("a2c", "reinforce") else SIZES), **PLAN, **more})


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="polopt-runs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def finished(env: str = "probe:action", method: str = "ppo") -> Path:
    """The folder of a run of two seeds that nothing has interrupted. Tests may add files to it, nothing else."""
    return _finished(env, method)


@functools.cache
def _finished(env: str, method: str) -> Path:
    return fit(method, env, out=_folder() / f"{method}-{env.replace(':', '-')}").directory


def copy_of(directory: Path, to: Path) -> Path:
    return Path(shutil.copytree(directory, to))


def as_interrupted(directory: Path, to: Path, iteration: int) -> Path:
    """A copy of a run as it was when it was killed just after the checkpoint of `iteration`."""
    copy = copy_of(directory, to)
    for name in ("evaluation.json", "report.html", "curve.png"):
        (copy / name).unlink()
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name) > iteration:
            shutil.rmtree(checkpoint)
    status = json.loads((copy / "status.json").read_text())
    (copy / "status.json").write_text(json.dumps({**status, "state": "running"}))
    return copy


def digests(directory: Path) -> dict[int, str]:
    """What each checkpoint says of its contents: equal digests are equal states, bit for bit."""
    found = (directory / "checkpoints").glob("*[0-9]/meta/metadata")
    return {int(path.parents[1].name): json.loads(path.read_text())["digest"] for path in found}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def polopt_says(capsys, *words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command."""
    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def one_sentence(err: str) -> str:
    """What follows `polopt: `, on one line and nothing else."""
    assert err.startswith("polopt: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    return err.removeprefix("polopt: ").strip()


def signal_after(monkeypatch, advances: int, number: int) -> None:
    """Send this process a signal after so many chunks of training."""
    advance, calls = Training._advance, []

    def and_signal(self, *args):
        advance(self, *args)
        calls.append(1)
        if len(calls) == advances:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Training, "_advance", and_signal)


@contextlib.contextmanager
def training(directory: Path, *words):
    """`polopt train` into a folder, in a process of its own, after its first checkpoint is written."""
    words = [sys.executable, "-m", "polopt.cli", "train", *map(str, words), "--out", str(directory)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not digests(directory):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no checkpoint in two minutes"
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()
