"""From a name to the task of a language model."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from polopt.data import synthetic, testbeds
from polopt.data.dataset import DataError
from polopt.data.language import LanguageTask

FORMS = f"{', '.join(synthetic.SPACES)}, {', '.join(testbeds.TESTBEDS)}"


def names() -> list[str]:
    """The tasks that need neither a package nor a file."""
    return [*synthetic.SPACES, *testbeds.TESTBEDS]


def make_language_task(
    name: str, *, model: Any = None, count: int | None = None, held_out: int | None = None, seed: int = 0, steps: int = 300, **options
) -> LanguageTask:
    """The task that `name` means; DataError says in one sentence what is wrong.

    model:     the policy that training starts from; the testbeds bring their own.
    """
    if name in testbeds.TESTBEDS:
        _known(name, testbeds.TESTBEDS[name], options)
        return testbeds.TESTBEDS[name](seed=seed, steps=steps, **options)
    if name in synthetic.SPACES:
        _known(name, synthetic.SPACES[name], options)
        return synthetic.make(name, count=count, held_out=held_out, seed=seed, steps=steps, model=model, **options)
    near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"give one of {FORMS}."
    raise DataError(f"There is no task {name!r}; {hint}")


def _known(name: str, function, options: dict[str, Any]) -> None:
    known = [option for option in inspect.signature(function).parameters if option not in ("seed", "steps")]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise DataError(f"The task {name} has no option {unknown[0]!r}; it has {', '.join(known)}.")
