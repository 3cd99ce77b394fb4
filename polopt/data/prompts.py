"""Prompts, and who grades what is written after them."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import numpy as np
from jax import Array

from polopt.data.dataset import DataError


class Prompts(eqx.Module):
    """n prompts of P tokens or fewer. Every leaf has the prompts as its first axis.

    tokens, mask:  (n, P) int32 and bool, padded on the left.
    facts:         what a verifier needs of each prompt, arrays (n, ...): an answer's tokens, a table's row.
    demonstration, demonstration_mask: (n, N) int32 and bool, padded on the right: a right completion with its stop token; None where unknown.
    """

    tokens: Array
    mask: Array
    facts: Any = ()
    demonstration: Array | None = None
    demonstration_mask: Array | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def take(self, rows) -> Prompts:
        """The prompts of these rows: a slice, or whole numbers that may be traced."""
        return jax.tree.map(lambda x: x[rows], self)


class Graded(NamedTuple):
    """reward (N,) float32; valid (N,) bool, False where the verifier failed on a completion, whose reward is then 0 and means nothing."""

    reward: Array
    valid: Array


class Verifier(Protocol):
    """Grades completions.

    host:    whether it calls code on the host, so that what uses it cannot be split over devices and waits for it.
    """

    host: bool

    def __call__(self, prompts: Prompts, index: Array, tokens: Array, mask: Array) -> Graded:
        """Completion i, `tokens[i]` where `mask[i]`, follows prompt `index[i]`; index (N,) int32, tokens (N, T) int32, mask (N, T) bool."""
        ...


def padded(rows, *, left: bool = False, width: int | None = None, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask), each (n, width), from lists of whole numbers; `width` is by default the length of the longest, and at least 1."""
    width = max([1, *map(len, rows)]) if width is None else width
    tokens, mask = np.full((len(rows), width), pad, np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        if len(row) > width:
            raise DataError(f"Row {i} has {len(row)} tokens, but at most {width} are expected; raise the length, or leave the row out.")
        place = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, place], mask[i, place] = row, True
    return tokens, mask


def make_prompts(prompts, *, facts: Any = (), demonstrations=None, width: int | None = None, pad: int = 0) -> Prompts:
    """Prompts from lists of tokens, one for each prompt, and perhaps lists of tokens of right completions."""
    tokens, mask = padded(prompts, left=True, width=width, pad=pad)
    shown = (None, None) if demonstrations is None else padded(demonstrations, pad=pad)
    return Prompts(tokens, mask, facts, *shown)


def on_device(tree):
    """The same pytree with JAX arrays."""
    return jax.tree.map(jax.numpy.asarray, tree)


def at_least(what: str, given, lowest: int) -> None:
    """DataError where an option is no whole number of this size."""
    if not isinstance(given, int) or isinstance(given, bool) or given < lowest:
        raise DataError(f"{what} is {given!r}, but a whole number of at least {lowest} is expected; give one.")
