"""Runs that are interrupted, in a process of their own: one process for all that a test process asks for, so that JAX is imported once.

Started as a program it reads calls of `polopt.fit`, one a line as Python literals, and answers each with a line: empty, or what went wrong.
"""

from __future__ import annotations

import ast
import functools
import os
import signal
import subprocess
import sys
import traceback

AFTER = 3  # chunks


@functools.cache
def _process() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "tests.contracts.interrupted"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def interrupted_fit(method: str, **given) -> None:
    """`polopt.fit(method, **given)` in another process, which is asked to stop after three chunks."""
    process = _process()
    process.stdin.write(f"{(method, given)!r}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, "the process that is interrupted has ended"
    assert not answer.strip(), ast.literal_eval(answer)


def _serve() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what a run prints is no answer
    import jax

    import polopt
    from polopt.run import training

    advance = training.Training._advance
    calls = []

    def stop_in_time(self, *args):
        advance(self, *args)
        calls.append(1)
        if len(calls) == AFTER:
            os.kill(os.getpid(), signal.SIGTERM)

    training.Training._advance = stop_in_time
    for line in sys.stdin:
        method, given = ast.literal_eval(line)
        calls.clear()
        try:
            run = polopt.fit(method, **given)
            wrong = "" if run.status["state"] == "interrupted" else f"the run was not interrupted: {run.status}"
        except Exception:
            wrong = traceback.format_exc()
        jax.clear_caches()
        print(repr(wrong) if wrong else "", file=answers, flush=True)


if __name__ == "__main__":
    _serve()
