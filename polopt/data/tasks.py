"""From a name to the task of a language model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from polopt.data import reasoning, synthetic, testbeds, text_files, text_tasks
from polopt.data.dataset import DataError
from polopt.data.host_verifiers import graded_by
from polopt.data.language import LanguageTask

WORDS = reasoning.PREFIX  # tasks that a model with a tokenizer is needed for
FORMS = f"{', '.join(synthetic.SPACES)}, {', '.join(testbeds.TESTBEDS)}, reasoning_gym:NAME, FILE.jsonl or FILE.parquet"


def names() -> list[str]:
    """The tasks that need neither a package nor a file."""
    return [*synthetic.SPACES, *testbeds.TESTBEDS]


def make_language_task(
    name: str,
    *,
    model: Any = None,
    tokenizer: Any = None,
    count: int | None = None,
    held_out: int | None = None,
    verifier: str | Callable | None = None,
    seed: int = 0,
    steps: int = 300,
    **options,
) -> LanguageTask:
    """The task that `name` means; DataError says in one sentence what is wrong.

    name:      a synthetic task (`polopt.data.synthetic`), a testbed (`polopt.data.testbeds`), `reasoning_gym:NAME`, or a file of questions
               (`polopt.data.text_tasks.question_task`).
    model:     the policy that training starts from; the testbeds bring their own and take none.
    tokenizer: of the model. A file needs one; synthetic tasks and testbeds bring their own and take none.
    count, held_out: prompts to learn from and to evaluate on; testbeds have as many as `prompts` says, for both, and take neither.
    verifier:  a user's function or its place `file.py:function`, instead of the task's own; see `polopt.data.host_verifiers`.
    options:   of the task itself.
    """
    shared = {"model": model, "count": count, "held_out": held_out, "seed": seed, "steps": steps}
    if name.endswith(text_files.SUFFIXES):
        return _of_file(name, tokenizer, verifier, shared, options)
    task = _named(name, tokenizer, shared, options)
    return task if verifier is None else graded_by(task, verifier)


def _named(name: str, tokenizer, shared: dict[str, Any], options: dict[str, Any]) -> LanguageTask:
    """A task that no file holds."""
    if name in testbeds.TESTBEDS:
        _known(name, testbeds.TESTBEDS[name], options)
        _not_taken(name, "its prompts are as many as prompts=N says, for both", {key: shared[key] for key in ("count", "held_out")})
        _not_taken(name, "it brings its own, a table", {"model": shared["model"], "tokenizer": tokenizer})
        return testbeds.TESTBEDS[name](seed=shared["seed"], steps=shared["steps"], **options)
    if name in synthetic.SPACES:
        _known(name, synthetic.SPACES[name], options)
        _not_taken(name, "its tokens are characters; for a model with a tokenizer take reasoning_gym:NAME or a file", {"tokenizer": tokenizer})
        return synthetic.make(name, **shared, **options)
    if name.startswith(reasoning.PREFIX):
        return reasoning.reasoning_task(name, tokenizer, **shared, **options)
    near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"give one of {FORMS}."
    raise DataError(f"There is no task {name!r}; {hint}")


def _of_file(name: str, tokenizer, verifier, shared: dict[str, Any], options: dict[str, Any]) -> LanguageTask:
    """The questions of a file."""
    if tokenizer is None:
        raise DataError(f"The texts of {name} need a tokenizer; give the directory of a model that has one.")
    _known(name, text_tasks.question_task, options)
    return text_tasks.question_task(name, tokenizer, verifier=verifier, **shared, **options)


def _not_taken(name: str, why: str, given: dict[str, Any]) -> None:
    for option, value in given.items():
        if value is not None:
            raise DataError(f"The task {name} takes no {option}: {why}.")


def _known(name: str, function, options: dict[str, Any]) -> None:
    general = ("path", *inspect.signature(make_language_task).parameters)
    known = [option for option in inspect.signature(function).parameters if option not in general]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise DataError(f"The task {name} has no option {unknown[0]!r}; it has {', '.join(known)}.")
