"""Text data in JSONL and parquet, by the Hugging Face names of columns.

    prompts        question or prompt, and perhaps answer
    demonstrations prompt and completion, or messages, of which the assistant's last turn is the completion
    pairs          prompt, chosen and rejected; or chosen and rejected as messages that begin alike
    labels         prompt, completion and label (true where it is wanted)

A prompt or completion is a text, or a list of messages {"role": ..., "content": ...}, which the tokenizer's chat template writes. A plain completion
gets the tokenizer's stop token at its end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polopt.data.dataset import DataError
from polopt.data.formats import common
from polopt.data.prompts import at_least

SUFFIXES = (".jsonl", ".parquet")
PROMPT = ("prompt", "question", "problem", "query", "instruction")
ANSWER = ("answer", "solution", "ground_truth", "target")


class Row(NamedTuple):
    """A row of a file: where it stands, as in `line 3`, and its entries by column."""

    place: str
    entries: dict[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a JSONL or parquet file; DataError names the line that cannot be read."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise DataError(f"There is no format of texts for {path.name!r}; give a name that ends in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise DataError(f"The data {path} are not there; give the path of a file that ends in {', '.join(SUFFIXES)}.")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    if not rows:
        raise DataError(f"{path} has no rows; give a file that has some.")
    return rows


def _json_rows(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); write it in UTF-8.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries = json.loads(line)
        except ValueError as error:
            raise DataError(f"In {path}, line {number} is no JSON ({error}); write one object a line.") from error
        if not isinstance(entries, dict):
            raise DataError(f"In {path}, line {number} is a {type(entries).__name__}, but an object of columns is expected; write one object a line.")
        rows.append(Row(f"line {number}", entries))
    return rows


def _parquet_rows(path: Path) -> list[Row]:
    parquet = common.need("pyarrow.parquet", f"Reading {path}", "language")
    import pyarrow

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is cut off or damaged ({str(error).splitlines()[0].rstrip('.')}); copy or download it again.") from error
    return [Row(f"row {number}", entries) for number, entries in enumerate(table.to_pylist())]


def find_column(path, rows: Sequence[Row], given: str | None, usual: Sequence[str], what: str) -> str:
    """The name of the column that holds `what`: the one given, or the first usual one that the first row has."""
    there = rows[0].entries
    if given is not None and given not in there:
        raise DataError(f"{path} has no column {given!r}; it has {', '.join(there) or 'none'}.")
    found = given if given is not None else next((name for name in usual if name in there), None)
    if found is None:
        raise DataError(f"{path} has no column for the {what} ({', '.join(usual)}); it has {', '.join(there) or 'none'}; name the one that holds it.")
    return found


class Encoder:
    """Rows to tokens. Errors name the file and the row."""

    def __init__(self, path, tokenizer):
        self.path, self.tokenizer = path, tokenizer

    def prompt(self, row: Row, column: str) -> tuple[str, list[int]]:
        """(text, tokens) of a prompt; the assistant's turn is open at its end."""
        value = self.entry(row, column)
        if isinstance(value, str):
            return value, self.tokens(row, value, begin=True)
        text = self._chat(row, value, generate=True)
        return text, self.tokens(row, text)

    def following(self, row: Row, column: str, prompt: str | list, value: str | list) -> list[int]:
        """The tokens of a completion of the prompt, a stop token at their end. The column is named in errors."""
        stop = self.tokenizer.stop
        if isinstance(value, str) != isinstance(prompt, str):
            kinds = ["messages" if isinstance(x, list) else "a text" for x in (prompt, value)]
            raise self._wrong(row, f"the prompt is {kinds[0]}, but the {column} is {kinds[1]}; write both alike")
        if isinstance(value, str):
            tokens = self.tokens(row, value)
        else:
            before, whole = self._chat(row, prompt, generate=True), self._chat(row, [*prompt, *value], generate=False)
            if not whole.startswith(before):
                raise self._wrong(row, f"the chat template writes the prompt otherwise when the {column} follows; give them as plain texts")
            tokens = self.tokens(row, whole[len(before) :])
            # templates write more behind the end of a turn, which no completion says
            ends = [i for i, token in enumerate(tokens) if token in stop]
            tokens = tokens[: ends[-1] + 1] if ends else tokens
        return tokens if not stop or (tokens and tokens[-1] in stop) else [*tokens, stop[0]]

    def entry(self, row: Row, column: str) -> str | list:
        """A text or a list of messages."""
        value = row.entries.get(column)
        if isinstance(value, str):
            return value
        if not isinstance(value, list) or not value:
            given = "missing" if value is None else "empty" if value == [] else f"a {type(value).__name__}"
            raise self._wrong(row, f"the {column} is {given}, but a text or a list of messages is expected")
        for message in value:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str) or message.get("content") is None:
                raise self._wrong(row, f'the {column} has the message {message!r}, but {{"role": ..., "content": ...}} is expected')
        return value

    def label(self, row: Row, column: str) -> float:
        """True or false as 1 or 0."""
        value = row.entries.get(column)
        if not isinstance(value, (bool, int)) or value not in (0, 1):
            raise self._wrong(row, f"the {column} is {value!r}, but true or false is expected")
        return float(value)

    def tokens(self, row: Row, text: str, begin: bool = False) -> list[int]:
        try:
            return self.tokenizer.encode(text, begin=begin)
        except DataError as error:
            raise DataError(f"In {self.path}, {row.place}: {error}") from error

    def _chat(self, row: Row, messages: list, generate: bool) -> str:
        try:
            return self.tokenizer.chat(messages, generate=generate)
        except DataError as error:
            raise DataError(f"In {self.path}, {row.place}: {error}") from error

    def _wrong(self, row: Row, what: str) -> DataError:
        return DataError(f"In {self.path}, {row.place}: {what}.")

    def turns(self, row: Row, column: str) -> tuple[list, list]:
        """(prompt, completion) of messages: all but the assistant's last turn, and that."""
        messages = self.entry(row, column)
        if isinstance(messages, str) or messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise self._wrong(row, f"the {column} must be turns of which the last is the assistant's, after one of the user at least")
        return messages[:-1], messages[-1:]

    def common_turns(self, row: Row) -> tuple[list, list, list]:
        """(prompt, chosen, rejected) of pairs without a prompt: the messages with which both begin, and the rest of each."""
        chosen, rejected = (self.entry(row, column) for column in ("chosen", "rejected"))
        if isinstance(chosen, str) or isinstance(rejected, str):
            raise self._wrong(row, "chosen and rejected are texts without a prompt; add a column prompt, or give messages")
        shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
        if not shared or shared == min(len(chosen), len(rejected)):
            raise self._wrong(row, "chosen and rejected must begin with the same messages and then differ; add a column prompt, or correct them")
        return chosen[:shared], chosen[shared:], rejected[shared:]


def fitting(path, prompts: Sequence[list[int]], completions: Sequence[list[list[int]]], longest: int | None, length: int | None):
    """Which rows stay, and what to say of those left out: prompts beyond `longest` tokens, and completions beyond `length`.

    completions: of each row, all its completions, or none.
    """
    for what, most in (("longest", longest), ("length", length)):
        if most is not None:
            at_least(what, most, 1)
    whole = np.array([longest is None or len(p) <= longest for p in prompts])
    short = np.array([length is None or all(len(c) <= length for c in row) for row in completions])
    notes = []
    if not whole.all():
        notes.append(f"{(~whole).sum()} of {len(whole)} prompts of {path} are longer than {longest} tokens and were left out.")
    if (whole & ~short).any():
        notes.append(f"{(whole & ~short).sum()} of {len(whole)} rows of {path} have a completion longer than {length} tokens and were left out.")
    if not (whole & short).any():
        longest_found = max(len(p) for p in prompts)
        raise DataError(
            f"No row of {path} fits: the longest prompt has {longest_found} tokens where {longest or 'any number'} fit, and completions may have "
            f"{length or 'any number'}; raise longest or length, or shorten the texts."
        )
    return np.flatnonzero(whole & short), tuple(notes)


def split(path, keys: Sequence[str], held_out: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to learn from, rows held out), shuffled by the seed; rows of equal keys stay together.

    held_out: how many at least; by default a tenth, up to 256.
    """
    rng = np.random.default_rng(seed)
    kinds = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    of_row = np.array([kinds[key] for key in keys])
    if len(kinds) < 2:
        raise DataError(f"{path} has only one prompt, but one to learn from and another to hold out are needed; add some.")
    wanted = min(256, max(1, len(keys) // 10)) if held_out is None else held_out
    order = rng.permutation(len(kinds))
    sizes = np.bincount(of_row)[order]
    count = int(np.searchsorted(np.cumsum(sizes, axis=0), wanted)) + 1
    if wanted < 1 or count >= len(kinds):
        raise DataError(f"{wanted} rows of {path} are to be held out, but it has {len(keys)}; hold out at least 1 and leave some to learn from.")
    held = np.isin(of_row, order[:count])
    return rng.permutation(np.flatnonzero(~held)), np.flatnonzero(held)
