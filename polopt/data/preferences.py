"""Preferences: prompts with responses of which some are better."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
from jax import Array

from polopt.data.prompts import Prompts


class Preferences(eqx.Module):
    """n prompts with K responses each: 2 for pairs, the chosen one first, and 1 for single labelled responses.

    responses, mask: (n, K, N) int32 and bool, padded on the right.
    score:           (n, K) float32, higher is better; 1 and 0 where only the order, or the label, is known.
    """

    prompts: Prompts
    responses: Array
    mask: Array
    score: Array

    def __len__(self) -> int:
        return self.score.shape[0]

    def take(self, rows) -> Preferences:
        """The rows of a slice, or of whole numbers that may be traced."""
        return jax.tree.map(lambda x: x[rows], self)


class PreferenceTask(eqx.Module):
    """Learn from `preferences`; `held_out` is only evaluated on. The rest is as in `polopt.data.language.LanguageTask`."""

    model: Any
    preferences: Preferences
    held_out: Preferences
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

    def with_model(self, model) -> PreferenceTask:
        """The same task for another policy."""
        return dataclasses.replace(self, model=model)
