"""math-verify as a verifier: whether a completion's last result is the answer, as mathematics rather than as text.

It runs in a process of its own, one for all verifiers: a model writes what it likes, and one number too large would else hold up the training.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from functools import cache
from pathlib import Path

from polopt.data.formats import common
from polopt.data.host_verifiers import HostVerifier, Rows

SECONDS = 10.0  # for one completion, after which it counts as one that could not be graded


class Grader:
    """Asks `math_worker.py`, which is started when it is first needed, and again after a completion that took too long."""

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()

    def __call__(self, answer: str, completion: str) -> float:
        """1 where they are equal, else 0. TimeoutError and ValueError where that cannot be said."""
        with self._lock:
            process = self._running()
            too_long = threading.Event()
            watch = threading.Timer(self.seconds, lambda: (too_long.set(), process.kill()))
            watch.start()
            try:
                process.stdin.write(json.dumps([answer, completion]) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            finally:
                watch.cancel()
            if not line:
                self._end()
                if too_long.is_set():
                    raise TimeoutError(f"math-verify took longer than {self.seconds:g} s")
                raise ValueError("math-verify ended")
        found = json.loads(line)
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _running(self) -> subprocess.Popen:
        if self._process is None:
            # -P: this folder's modules must not stand before the packages of the same names
            command = [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py")), str(max(1, int(self.seconds / 2)))]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
            )
            weakref.finalize(self, _ended, self._process)
            if self._process.stdout.readline() != "ready\n":  # importing it takes seconds, which no completion is to blame for
                self._end()
                raise ValueError("math-verify did not start")
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            _ended(self._process)
            self._process = None


def _ended(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@cache
def grader() -> Grader:
    """The one of this program."""
    return Grader()


def final(answer: str) -> str:
    """What stands after the last ####, as in gsm8k, or all of the answer."""
    return answer.rpartition("####")[2].strip()


def math_verifier(rows: Rows, tokenizer, column: str = "answer", stop: tuple[int, ...] = ()) -> HostVerifier:
    """1 where math-verify finds a completion equal to its row's answer in this column, else 0."""
    common.need("math_verify", "Grading mathematics", "language")

    def equal(prompts, completions, **columns):
        return [grader()(final(answer), completion) for answer, completion in zip(columns[column], completions)]

    return HostVerifier(equal, rows, tokenizer, "math-verify", (column,), stop, alone=True)
