"""The package reasoning_gym: procedural questions with scorers of their own.

Its data set with the seed s makes entry i from s + i, so that neighbouring seeds share almost all of their entries. Here training and held-out
questions are different entries of one data set, task seeds lie far apart, and equal questions are all on one side. Of a completion with
<answer> ... </answer> the last such part is scored, else all of it.
"""

from __future__ import annotations

import difflib
from typing import Any

from polopt.data.dataset import DataError
from polopt.data.formats import common
from polopt.data.host_verifiers import HostVerifier, Rows
from polopt.data.language import LanguageTask
from polopt.data.prompts import at_least
from polopt.data.text_files import Encoder, Row
from polopt.data.text_tasks import LENGTH, asked_task, turns
from polopt.data.tokenizer import CharacterTokenizer

PREFIX = "reasoning_gym:"
APART = 1_000_003  # between the entries of neighbouring task seeds
PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"


def reasoning_task(
    name: str,
    tokenizer=None,
    *,
    model: Any = None,
    count: int | None = None,
    held_out: int | None = None,
    seed: int = 0,
    steps: int = 300,
    chat: bool = False,
    system: str | None = None,
    length: int | None = None,
    longest: int | None = None,
    **config,
) -> LanguageTask:
    """`reasoning_gym:NAME`, graded by that data set's scorer.

    tokenizer:  by default the printable characters of ASCII.
    count, held_out: questions to learn from, 512 by default, and to evaluate on, 128.
    config:     fields of the data set's own configuration.
    The others are as in `polopt.data.text_tasks.question_task`.
    """
    package = common.need("reasoning_gym", name, "language")
    from reasoning_gym.factory import DATASETS
    from reasoning_gym.utils import extract_answer

    known, given = sorted(DATASETS), name.removeprefix(PREFIX)
    if given not in DATASETS:
        near = difflib.get_close_matches(given.lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(PREFIX + n for n in near)}?" if near else f"it has {', '.join(known)}."
        raise DataError(f"reasoning_gym has no data set {given!r}; {hint}")
    tokenizer = CharacterTokenizer(PRINTABLE) if tokenizer is None else tokenizer
    wanted, held = 512 if count is None else count, 128 if held_out is None else held_out
    at_least("count", wanted, 1)
    at_least("held_out", held, 1)
    try:
        data = package.create_dataset(given, seed=seed * APART, size=wanted + held, **config)
        entries = [data[i] for i in range(wanted + held)]
    except Exception as error:
        raise DataError(f"{name} could not be made: {type(error).__name__}: {' '.join(str(error).split())}; correct its options.") from error
    encoder = Encoder(name, tokenizer)
    rows = [Row(f"entry {i}", {"prompt": turns(e["question"], system) if chat or system else e["question"]}) for i, e in enumerate(entries)]
    written = [encoder.prompt(row, "prompt") for row in rows]
    table = Rows([text for text, _ in written], {"entry": entries})

    def score(prompts, completions, entry):
        marked = [extract_answer(completion) for completion in completions]
        return [data.score_answer(c.strip() if m is None else m, e) for c, m, e in zip(completions, marked, entry)]

    verifier = HostVerifier(score, table, tokenizer, name, ("entry",), tokenizer.stop, alone=True)
    answers = [e["answer"] for e in entries]
    return asked_task(
        name,
        [tokens for _, tokens in written],
        verifier,
        tokenizer,
        answers=[encoder.tokens(row, a) for row, a in zip(rows, answers)] if all(isinstance(a, str) for a in answers) else None,
        model=model,
        length=LENGTH if length is None else length,
        longest=longest,
        count=wanted,
        held_out=held,
        seed=seed,
        steps=steps,
        name=name,
    )
