"""Verifiers that run on the host: a user's own function, and the scorers of other libraries.

A user's function has the signature

    def reward(prompts: list[str], completions: list[str], **columns) -> list[float | None]

and is given by its place, as in `my_rewards.py:reward`. For a batch of completions it gets the prompt and the text of each, without padding, stop and
special tokens, and of each column of the data that it names (or all, with `**columns`) the entry of each prompt. It returns a number for each, and
None where it cannot judge. A completion on which it raises, or for which it gives None or a number that is not finite, is not valid: its reward is 0,
and whoever asked leaves it out and counts it. If a batch raises, each completion is tried by itself, to see which one it is. Where no completion of a
batch is valid, a VerifierError says why the first is not. Calls never overlap.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from polopt.core.callbacks import keep
from polopt.core.errors import HostError, MissingCode
from polopt.core.user_code import module_at
from polopt.data.dataset import DataError
from polopt.data.language import LanguageTask
from polopt.data.prompts import Graded, Prompts
from polopt.data.verifiers import content

EXAMPLE = "my_rewards.py:reward"
SIGNATURE = "def reward(prompts, completions, **columns)"


class VerifierError(HostError):
    """A verifier failed on every completion of a batch, or its answer cannot be read."""


class Rows:
    """What a verifier on the host knows of each prompt: the text, and the entries of columns. Equal to itself alone, so that it can be static."""

    def __init__(self, texts: Sequence[str], columns: dict[str, Sequence[Any]] | None = None):
        self.texts, self.columns = list(texts), {name: list(values) for name, values in (columns or {}).items()}
        self.lock = threading.Lock()


class HostVerifier(eqx.Module):
    """Grades by a function of texts. The facts of its prompts are (n,) int32, their places in `rows`.

    function:  as in the docstring of this module.
    columns:   the columns that it is given.
    alone:     each completion is graded by a call of its own, so that one that fails does not repeat the others.
    """

    function: Callable[..., Sequence[float | None]] = eqx.field(static=True)
    rows: Rows = eqx.field(static=True)
    tokenizer: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)
    columns: tuple[str, ...] = eqx.field(static=True)
    stop: tuple[int, ...] = eqx.field(static=True, default=())
    alone: bool = eqx.field(static=True, default=False)
    host = True

    def __call__(self, prompts: Prompts, index, tokens, mask) -> Graded:
        count = tokens.shape[0]
        shapes = Graded(jax.ShapeDtypeStruct((count,), jnp.float32), jax.ShapeDtypeStruct((count,), bool))
        # not ordered, so that it works under vmap; a grade depends on its arguments alone
        return io_callback(self._grade, shapes, prompts.facts[index], tokens, content(tokens, mask, self.stop))

    def _grade(self, rows, tokens, said) -> Graded:
        tokens, said = np.asarray(tokens), np.asarray(said)
        texts = [self.tokenizer.decode(line[here]) for line, here in zip(tokens, said)]
        try:
            with self.rows.lock:
                return self.grade(np.asarray(rows).tolist(), texts)
        except VerifierError as error:
            keep(error)
            raise

    def grade(self, rows: list[int], completions: list[str]) -> Graded:
        """The grades of completions of the prompts at these places, in NumPy."""
        found = None if self.alone else self._attempt(rows, completions)
        if not isinstance(found, list):
            found = [self._single(row, completion) for row, completion in zip(rows, completions)]
        judged = [_number(value) for value in found]
        valid = np.array([isinstance(value, float) for value in judged])
        if len(judged) and not valid.any():
            text = completions[0] if len(completions[0]) <= 60 else completions[0][:57] + "..."
            cause = found[0] if isinstance(found[0], Exception) else None
            raise VerifierError(
                f"The verifier {self.name} could grade none of {len(judged)} completions; on the first, {text!r}, it {judged[0]}; "
                "try it on that text in plain Python."
            ) from cause
        return Graded(np.array([value if isinstance(value, float) else 0.0 for value in judged], np.float32), valid)

    def _single(self, row: int, completion: str) -> Any:
        found = self._attempt([row], [completion])
        return found[0] if isinstance(found, list) else found

    def _attempt(self, rows: list[int], completions: list[str]) -> list | Exception:
        """What the function returns, or raises."""
        columns = {name: [self.rows.columns[name][r] for r in rows] for name in self.columns}
        try:
            found = self.function(prompts=[self.rows.texts[r] for r in rows], completions=completions, **columns)
        except Exception as error:
            return error
        try:
            found = list(found)
        except TypeError:
            found = None
        if found is None or len(found) != len(completions):
            given = "what is no list" if found is None else f"a list of {len(found)}"
            raise VerifierError(
                f"The verifier {self.name} returned {given} for {len(completions)} completions, but a list of a number or None for each is expected; "
                f"write it as {SIGNATURE} with one entry a completion."
            )
        return found


def _number(value) -> float | str:
    """The reward that a verifier gave, or what it did instead."""
    if isinstance(value, Exception):
        return f"raised {type(value).__name__}: {' '.join(str(value).split())}"
    if value is None:
        return "returned None"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"returned the {type(value).__name__} {value!r}, which is no number"
    return number if math.isfinite(number) else f"returned {number}"


def own_verifier(place: str | Callable, rows: Rows, tokenizer, stop: tuple[int, ...] = ()) -> HostVerifier:
    """The verifier of a user's function, by its place `file.py:function` or `package.module:function`, or the function itself."""
    function, name = (place, getattr(place, "__name__", "given")) if callable(place) else (_function(place), place)
    return HostVerifier(function, rows, tokenizer, name, _columns(name, function, rows), stop)


def graded_by(task: LanguageTask, place: str | Callable) -> LanguageTask:
    """The same task under a user's verifier. Its columns are those of the data, or `answer`, the text of the demonstration, for tasks in JAX."""
    parts = task.prompts, task.held_out
    if isinstance(task.verifier, HostVerifier):
        rows = task.verifier.rows
    else:
        shown = all(p.demonstration is not None for p in parts)
        texts = [text for p in parts for text in _texts(task, p.tokens, p.mask)]
        rows = Rows(texts, {"answer": [a for p in parts for a in _texts(task, p.demonstration, p.demonstration_mask)]} if shown else None)
        places = jnp.split(jnp.arange(len(texts), dtype=jnp.int32), [len(task.prompts)])
        parts = [dataclasses.replace(p, facts=where) for p, where in zip(parts, places)]
    verifier = own_verifier(place, rows, task.tokenizer, task.stop)
    return dataclasses.replace(task, prompts=parts[0], held_out=parts[1], verifier=verifier)


def _texts(task: LanguageTask, tokens, mask) -> list[str]:
    said = np.asarray(content(tokens, mask, task.stop))
    return [task.tokenizer.decode(row[here]) for row, here in zip(np.asarray(tokens), said)]


def _function(place: str) -> Callable:
    where, colon, attribute = place.rpartition(":")
    if not colon or not where or not attribute:
        raise DataError(f"The verifier {place!r} is no place of a function; give a file and a function, as in {EXAMPLE}.")
    try:
        module = module_at(where, "the verifier", EXAMPLE)
    except MissingCode as error:
        raise DataError(str(error)) from error
    except Exception as error:
        raise DataError(f"{where} raised {type(error).__name__}: {' '.join(str(error).split())}; try to import it in plain Python.") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        own = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__ and not n.startswith("_")]
        there = f"it has {', '.join(own)}" if own else "it has none"
        raise DataError(f"{where} has no function {attribute!r} ({there}); give one after the colon, written as {SIGNATURE}.")
    return function


def _columns(name: str, function: Callable, rows: Rows) -> tuple[str, ...]:
    """The columns that a function is to be given: those it names, or all if it takes `**columns`."""
    parameters = inspect.signature(function).parameters.values()
    keyword = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    missing = [p for p in ("prompts", "completions") if p not in keyword and not anything]
    if missing:
        raise DataError(f"The verifier {name} does not take {missing[0]}; write it as {SIGNATURE}.")
    needed = [p.name for p in parameters if p.name in keyword and p.default is p.empty and p.name not in ("prompts", "completions")]
    absent = [column for column in needed if column not in rows.columns]
    if absent:
        there = ", ".join(rows.columns) or "none"
        raise DataError(f"The verifier {name} asks for the column {absent[0]!r}, but the data have {there}; name one of these, or give it a default.")
    return tuple(column for column in rows.columns if anything or column in keyword)
