"""The task of a language model: prompts, and a verifier of what it writes."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import equinox as eqx

from polopt.data.prompts import Prompts


class WrittenTask(eqx.Module):
    """What the tasks of language models share.

    model:       the policy that training starts from; None until `with_model` gives one.
    verifier:    see `polopt.data.prompts.Verifier`; None where there are demonstrations alone.
    steps:       iterations of the method.
    length:      the most new tokens, the stop token counted.
    stop:        the tokens that end a completion; none where all have the full length.
    tokenizer:   see `polopt.data.tokenizer.Tokenizer`.
    notes:       what was left out of the data, and why, a sentence each.
    """

    model: Any
    verifier: Any
    steps: int = eqx.field(static=True)
    length: int = eqx.field(static=True)
    stop: tuple[int, ...] = eqx.field(static=True)
    tokenizer: Any = eqx.field(static=True)
    name: str = eqx.field(static=True)
    notes: tuple[str, ...] = eqx.field(static=True, default=())

    @property
    def host(self) -> bool:
        """Whether grading calls code on the host."""
        return self.verifier is not None and self.verifier.host

    def with_model(self, model) -> Self:
        """The same task for another policy."""
        return dataclasses.replace(self, model=model)


class LanguageTask(WrittenTask):
    """Write completions of `prompts` that `verifier` rewards; the prompts `held_out` are only evaluated on."""

    prompts: Prompts = dataclasses.field(kw_only=True)
    held_out: Prompts = dataclasses.field(kw_only=True)
