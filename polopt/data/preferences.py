"""Preferences: prompts with responses of which some are better."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
from jax import Array

from polopt.data.language import WrittenTask
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


class PreferenceTask(WrittenTask):
    """Learn from `preferences`; those `held_out` are only evaluated on."""

    preferences: Preferences = dataclasses.field(kw_only=True)
    held_out: Preferences = dataclasses.field(kw_only=True)
