"""Tasks from files of texts, and from any list of questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from polopt.data import text_files
from polopt.data.dataset import DataError
from polopt.data.host_verifiers import HostVerifier, Rows, own_verifier
from polopt.data.language import LanguageTask
from polopt.data.mathematics import math_verifier
from polopt.data.preferences import Preferences, PreferenceTask
from polopt.data.prompts import make_prompts, on_device, padded
from polopt.data.text_files import Encoder, Row

LENGTH = 256  # new tokens, where neither the user nor a demonstration says more


def turns(question: str | list, system: str | None) -> list:
    """A question as a conversation: a system message if there is one, and the user's turn."""
    asked = question if isinstance(question, list) else [{"role": "user", "content": question}]
    return [{"role": "system", "content": system}, *asked] if system else asked


def question_task(
    path: str | Path,
    tokenizer,
    *,
    model: Any = None,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    verifier: str | Callable | None = None,
    chat: bool = False,
    system: str | None = None,
    length: int | None = None,
    longest: int | None = None,
    count: int | None = None,
    held_out: int | None = None,
    seed: int = 0,
    steps: int = 300,
) -> LanguageTask:
    """Questions of a JSONL or parquet file.

    prompt_column, answer_column: by default the first usual names there, as in `polopt.data.text_files`.
    verifier:   a user's function or its place `file.py:function`; by default math-verify against the answer, or what stands after its last ####.
    chat:       a plain question becomes a user's turn of the chat template; messages always do. system: a message before it.
    length:     the most new tokens. longest: the most tokens of a prompt; rows with longer ones are left out, as the task's notes say.
    count:      the most rows to learn from. held_out: how many rows are held out.
    """
    rows = text_files.read_rows(path)
    asked = text_files.find_column(path, rows, prompt_column, text_files.PROMPT, "prompt")
    has_answer = answer_column is not None or any(name in rows[0].entries for name in text_files.ANSWER)
    answered = text_files.find_column(path, rows, answer_column, text_files.ANSWER, "answer") if has_answer or verifier is None else None
    encoder = Encoder(path, tokenizer)
    if chat or system:
        rows = [Row(row.place, row.entries | {asked: turns(encoder.entry(row, asked), system)}) for row in rows]
    if answered is not None:
        rows = [Row(row.place, row.entries | {answered: _answer(path, row, answered)}) for row in rows]
    written = [encoder.prompt(row, asked) for row in rows]
    columns = {name: [row.entries.get(name) for row in rows] for name in rows[0].entries if name != asked}
    table = Rows([text for text, _ in written], columns)
    if verifier is None:
        judge = math_verifier(table, tokenizer, answered, tokenizer.stop)
    else:
        judge = own_verifier(verifier, table, tokenizer, tokenizer.stop)
    return asked_task(
        path,
        [tokens for _, tokens in written],
        judge,
        tokenizer,
        answers=None if answered is None else [encoder.tokens(row, row.entries[answered]) for row in rows],
        model=model,
        length=LENGTH if length is None else length,
        longest=longest,
        count=count,
        held_out=held_out,
        seed=seed,
        steps=steps,
        name=Path(path).stem,
    )


def asked_task(
    source, prompts, verifier: HostVerifier, tokenizer, *, answers, model, length, longest, count, held_out, seed, steps, name
) -> LanguageTask:
    """The task of prompts in tokens that a verifier on the host grades; answers are demonstrations where all of them fit into the length."""
    kept, notes = text_files.fitting(source, prompts, [[] for _ in prompts], longest, length)
    learnt, held = text_files.split(source, [verifier.rows.texts[i] for i in kept], held_out, seed)
    shown = None if answers is None else [_ended(answers[i], tokenizer.stop) for i in kept]
    if shown is not None and max(map(len, shown)) > length:
        notes = (*notes, f"Some answers of {source} are longer than {length} tokens, so that they are no demonstrations.")
        shown = None
    whole = on_device(make_prompts([prompts[i] for i in kept], facts=kept.astype(np.int32), demonstrations=shown, pad=tokenizer.pad))
    parts = {"prompts": whole.take(learnt[:count]), "held_out": whole.take(held)}
    return LanguageTask(model, verifier, steps, length, tokenizer.stop, tokenizer, name, notes, **parts)


def demonstration_task(
    path: str | Path,
    tokenizer,
    *,
    model: Any = None,
    length: int | None = None,
    longest: int | None = None,
    held_out: int | None = None,
    seed: int = 0,
    steps: int = 300,
) -> LanguageTask:
    """Completions to imitate: `prompt` and `completion`, or `messages`; there is no verifier. The length is by default that of the longest."""
    rows = text_files.read_rows(path)
    encoder = Encoder(path, tokenizer)
    if "messages" in rows[0].entries:
        pairs = [(Row(row.place, row.entries | {"prompt": before}), after) for row in rows for before, after in [encoder.turns(row, "messages")]]
    else:
        for column in ("prompt", "completion"):
            text_files.find_column(path, rows, column, (), column)
        pairs = [(row, encoder.entry(row, "completion")) for row in rows]
    prompts = [encoder.prompt(row, "prompt") for row, _ in pairs]
    completions = [encoder.following(row, "completion", row.entries["prompt"], value) for row, value in pairs]
    kept, notes = text_files.fitting(path, [tokens for _, tokens in prompts], [[c] for c in completions], longest, length)
    learnt, held = text_files.split(path, [prompts[i][0] for i in kept], held_out, seed)
    shown = [completions[i] for i in kept]
    whole = on_device(make_prompts([prompts[i][1] for i in kept], demonstrations=shown, pad=tokenizer.pad))
    length = length if length is not None else max(map(len, shown))
    parts = {"prompts": whole.take(learnt), "held_out": whole.take(held)}
    return LanguageTask(model, None, steps, length, tokenizer.stop, tokenizer, Path(path).stem, notes, **parts)


def preference_task(
    path: str | Path,
    tokenizer,
    *,
    model: Any = None,
    verifier=None,
    length: int | None = None,
    longest: int | None = None,
    held_out: int | None = None,
    seed: int = 0,
    steps: int = 300,
) -> PreferenceTask:
    """Pairs (`chosen` and `rejected`, with a `prompt` or beginning alike) or single completions with a `label`, which is known by that column.

    verifier:  graded by it when the policy is evaluated; see `polopt.data.prompts.Verifier`.
    """
    rows = text_files.read_rows(path)
    encoder = Encoder(path, tokenizer)
    there = rows[0].entries
    if "label" in there:
        needed, columns = ("prompt", "completion"), ("completion",)
    else:
        needed, columns = ("chosen", "rejected"), ("chosen", "rejected")
    for column in needed:
        text_files.find_column(path, rows, column, (), column)
    asked, responses = [], []
    for row in rows:
        if "prompt" in there:
            values = [encoder.entry(row, column) for column in columns]
        else:
            before, *values = encoder.common_turns(row)
            row = Row(row.place, row.entries | {"prompt": before})
        asked.append(encoder.prompt(row, "prompt"))
        responses.append([encoder.following(row, c, row.entries["prompt"], value) for c, value in zip(columns, values)])
    score = np.array([[encoder.label(row, "label")] if "label" in there else [1.0, 0.0] for row in rows], np.float32)
    kept, notes = text_files.fitting(path, [tokens for _, tokens in asked], responses, longest, length)
    learnt, held = text_files.split(path, [asked[i][0] for i in kept], held_out, seed)
    tokens, mask = padded([response for i in kept for response in responses[i]], pad=tokenizer.pad)
    shape = (len(kept), len(columns), tokens.shape[1])
    prompts = make_prompts([asked[i][1] for i in kept], pad=tokenizer.pad)
    whole = on_device(Preferences(prompts, tokens.reshape(shape), mask.reshape(shape), jnp.asarray(score[kept])))
    length = length if length is not None else tokens.shape[1]
    parts = {"preferences": whole.take(learnt), "held_out": whole.take(held)}
    return PreferenceTask(model, verifier, steps, length, tokenizer.stop, tokenizer, Path(path).stem, notes, **parts)


def _answer(path, row: Row, column: str) -> str:
    value = row.entries.get(column)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
        raise DataError(f"In {path}, {row.place}: the {column} is {value!r}, but a text or a number is expected.")
    return str(value)


def _ended(tokens: Sequence[int], stop: tuple[int, ...]) -> list[int]:
    return [*tokens, *stop[:1]]
