"""A program of its own that reads a JSON line [answer, completion] and writes 1.0, 0.0, or a sentence that says why it cannot tell.

Here math-verify's own limits of time work, which need a main thread. Started as `python math_worker.py SECONDS` by `polopt.data.mathematics`.
"""

import contextlib
import functools
import json
import os
import sys


def main(seconds: int) -> None:
    # what a library prints must not come between our lines
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdin.reconfigure(encoding="utf-8")
    from math_verify import parse, verify

    @functools.lru_cache(maxsize=4096)
    def gold(answer: str):
        marked = any(mark in answer for mark in ("$", r"\boxed", r"\(", r"\["))
        found = parse(answer if marked else f"${answer}$", parsing_timeout=seconds)
        if not found:
            raise ValueError(f"the answer {answer!r} holds nothing that math-verify can read")
        return found

    def equal(answer: str, completion: str) -> float | str:
        try:
            return float(verify(gold(answer), parse(completion, parsing_timeout=seconds), timeout_seconds=seconds))
        except Exception as error:
            return str(error) or type(error).__name__

    print("ready", file=channel, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            print(json.dumps(equal(*json.loads(line))), file=channel, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
