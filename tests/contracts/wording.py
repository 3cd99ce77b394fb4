"""Small tasks of language methods: tables of logits whose completions differ in length, and pairs that were drawn from them."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from polopt.data import testbeds
from polopt.data.judges import VerifierJudge
from polopt.data.language import LanguageTask
from polopt.data.preferences import PreferenceTask
from polopt.policies.language.transformer import Transformer, tiny

STEPS = 6  # iterations
OPTIONS = "prompts=5,length=3,vocabulary=4,low=0.4,high=0.6"


@functools.cache
def prompts() -> LanguageTask:
    """Sequences of up to 3 tokens out of 4, of which one stops."""
    options = {name: float(value) if "." in value else int(value) for name, value in (pair.split("=") for pair in OPTIONS.split(","))}
    return dataclasses.replace(testbeds.chain(**options, steps=STEPS), stop=(3,))


@functools.cache
def preferences(embedding: bool) -> PreferenceTask:
    """Pairs that the table wrote and its verifier ordered; with `embedding` the model is a transformer, which reads what a reward is of."""
    of = prompts()
    pairs = testbeds.drawn_preferences(jax.random.key(0), of, VerifierJudge(of.verifier), 4)
    lengths = 1 + jnp.arange(pairs.mask[..., 0].size).reshape(pairs.mask.shape[:2]) % 3  # so that what is divided by a length shows
    pairs = dataclasses.replace(pairs, mask=pairs.mask & (jnp.arange(3)[None, None] < lengths[..., None]))
    model = Transformer.random(dataclasses.replace(tiny(8), layers=1), jax.random.key(1)) if embedding else of.model
    return PreferenceTask(model, None, STEPS, of.length, of.stop, of.tokenizer, "pairs", preferences=pairs, held_out=pairs)


def as_files(on, folder: Path) -> dict[str, str]:
    """The arguments of `fit` for a task of the same kind that is named rather than handed over."""
    if isinstance(on, LanguageTask):
        return {"task": f"t-chain:{OPTIONS}"}
    rows = [{"prompt": f"{i}+{i}=", "chosen": str(2 * i), "rejected": str(i)} for i in range(10, 30)]
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return {"model": "tiny", "data": str(file)}
