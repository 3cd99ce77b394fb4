"""What goes on in another process: one for all that a test process asks for, so that JAX is imported once.

Started as a program it reads calls of the functions here, one a line as Python literals, and answers each with a line: what the function gave and
what went wrong.
"""

from __future__ import annotations

import ast
import atexit
import functools
import os
import signal
import subprocess
import sys
import traceback

from tests import memory

AFTER = 3  # chunks


def advanced(name: str, folder: str, iterations: int) -> str:
    """The digest of the state to which a small method comes from the checkpoint in `folder`."""
    return _ask("advanced", name, folder, iterations)


def interrupted_fit(method: str, **given) -> None:
    """`polopt.fit(method, **given)`, which is asked to stop after three chunks."""
    assert _ask("interrupted_fit", method, given) == "interrupted"


@functools.cache
def _process() -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-m", "tests.contracts.elsewhere"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # which ends it: there is no more to read
    return process


def _ask(*call):
    process = _process()
    process.stdin.write(f"{call!r}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, "the other process has ended"
    found, wrong = ast.literal_eval(answer)
    assert not wrong, wrong
    return found


def _advanced(name: str, folder: str, iterations: int) -> str:
    import jax

    from polopt.run.checkpoint import Checkpoints, digest
    from tests.contracts import helpers

    on = helpers.home(name)
    method = helpers.small(name, on)
    state, _, _ = Checkpoints(folder).restore(jax.eval_shape(lambda key: method.init(on, key), jax.random.key(0)))
    return digest(helpers.advanced(method, on, state, iterations))


def _interrupted_fit(method: str, given: dict) -> str:
    import polopt
    from polopt.run.training import Training

    advance = Training._advance
    calls = []

    def stop_in_time(self, *args):
        advance(self, *args)
        calls.append(1)
        if len(calls) == AFTER:
            os.kill(os.getpid(), signal.SIGTERM)

    Training._advance = stop_in_time
    try:
        return polopt.fit(method, **given).status["state"]
    finally:
        Training._advance = advance


def _serve() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what a run prints is no answer
    functions = {"advanced": _advanced, "interrupted_fit": _interrupted_fit}
    for line in sys.stdin:
        function, *given = ast.literal_eval(line)
        found, wrong = None, ""
        try:
            found = functions[function](*given)
        except Exception:
            wrong = traceback.format_exc()
        memory.let_go()
        print(repr((found, wrong)), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
