"""From a name to the task of a language model."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from polopt.data import reasoning, synthetic, testbeds, text_files, text_tasks
from polopt.data.dataset import DataError
from polopt.data.language import LanguageTask

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
    seed: int = 0,
    steps: int = 300,
    **options,
) -> LanguageTask:
    """The task that `name` means; DataError says in one sentence what is wrong.

    name:      a synthetic task (`polopt.data.synthetic`), a testbed (`polopt.data.testbeds`), `reasoning_gym:NAME`, or a file of questions
               (`polopt.data.text_tasks.question_task`).
    model:     the policy that training starts from; the testbeds bring their own.
    tokenizer: of the model. Synthetic tasks and testbeds bring their own, a file needs one.
    count, held_out: prompts to learn from and to evaluate on; testbeds have as many as `prompts` says, for both.
    options:   of the task itself.
    """
    shared = {"model": model, "count": count, "held_out": held_out, "seed": seed, "steps": steps}
    if name in testbeds.TESTBEDS:
        _known(name, testbeds.TESTBEDS[name], options)
        return testbeds.TESTBEDS[name](seed=seed, steps=steps, **options)
    if name in synthetic.SPACES:
        _known(name, synthetic.SPACES[name], options)
        return synthetic.make(name, **shared, **options)
    if name.startswith(reasoning.PREFIX):
        return reasoning.reasoning_task(name, tokenizer, **shared, **options)
    if name.endswith(text_files.SUFFIXES):
        if tokenizer is None:
            raise DataError(f"The texts of {name} need a tokenizer; give the directory of a model that has one.")
        _known(name, text_tasks.question_task, options)
        return text_tasks.question_task(name, tokenizer, **shared, **options)
    near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"give one of {FORMS}."
    raise DataError(f"There is no task {name!r}; {hint}")


def _known(name: str, function, options: dict[str, Any]) -> None:
    general = ("path", *inspect.signature(make_language_task).parameters)
    known = [option for option in inspect.signature(function).parameters if option not in general]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise DataError(f"The task {name} has no option {unknown[0]!r}; it has {', '.join(known)}.")
