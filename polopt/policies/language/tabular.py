"""Exact language policies: tables of logits, small enough that every expectation over their sequences can be written down.

A prompt is one token, the number q of the problem; every completion has T tokens. With z the logits of a row,

    bandit          logits (Q, K)             T = 1
    linear          base (Q, K) + features (Q, d) weights (d, K)    T = 1, and only the weights learn
    chain           logits (Q, T, V)          row t after t tokens
    autoregressive  logits (Q, prefixes, V)   row 0 before the first token, row 1 + V r + y after token y on row r

`log_probs` is the distribution over all V^T sequences in lexicographic order, in which `polopt.envs.exact.sequences` has its expectations.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from polopt.policies.language.protocol import Scored
from polopt.policies.language.scoring import logit_scores

KINDS = ("bandit", "linear", "chain", "autoregressive")


class Place(NamedTuple):
    """problem (B,) and row (B,): where in the table each completion stands."""

    problem: Array
    row: Array


class TabularPolicy(eqx.Module):
    """logits as above; the table keeps their precision. kind may be left out for two axes (a bandit)."""

    logits: Array
    features: Array | None
    weights: Array | None
    kind: str = eqx.field(static=True)

    def __init__(self, logits: Array, kind: str | None = None, *, features: Array | None = None, weights: Array | None = None):
        """features and weights: of the linear kind, with logits as its base; the weights are 0 by default."""
        logits = jnp.asarray(logits)
        kind = "bandit" if kind is None and logits.ndim == 2 else kind
        if kind not in KINDS:
            raise ValueError(f"The kind of a table of logits of the shape {logits.shape} is {kind!r}, but it must be one of {', '.join(KINDS)}.")
        axes = 2 if kind in ("bandit", "linear") else 3
        if logits.ndim != axes:
            wanted = {2: "(problems, answers)", 3: "(problems, rows, tokens)"}[axes]
            raise ValueError(f"The logits of a {kind} policy have the shape {logits.shape}, but {wanted} is expected.")
        if (features is not None or weights is not None) != (kind == "linear") or (kind == "linear" and features is None):
            raise ValueError(f"A {kind} policy {'needs features (problems, d)' if kind == 'linear' else 'has no features and no weights'}.")
        if kind == "linear":
            features = jnp.asarray(features, logits.dtype)
            weights = jnp.zeros((features.shape[1], logits.shape[1]), logits.dtype) if weights is None else jnp.asarray(weights, logits.dtype)
        self.logits, self.features, self.weights, self.kind = logits, features, weights, kind
        if kind == "autoregressive":
            _levels(logits.shape[1], logits.shape[2])

    @property
    def vocabulary(self) -> int:
        return self.logits.shape[-1]

    @property
    def length(self) -> int:
        """T: the tokens of every completion."""
        if self.kind == "autoregressive":
            return len(_levels(self.logits.shape[1], self.vocabulary))
        return self.logits.shape[1] if self.kind == "chain" else 1

    def trainable(self):
        """All of the table; of the linear kind the weights alone."""
        if self.kind != "linear":
            return jax.tree.map(lambda _: True, self)
        return eqx.tree_at(lambda p: p.weights, jax.tree.map(lambda _: False, self), True)

    def table(self) -> Array:
        """(Q, rows, V): the logits of every row."""
        if self.kind == "linear":
            fixed, features = jax.lax.stop_gradient((self.logits, self.features))
            return (fixed + features @ self.weights)[:, None]
        return self.logits[:, None] if self.kind == "bandit" else self.logits

    def log_probs(self) -> Array:
        """(Q, N): the log-probability of every sequence."""
        log_p = jax.nn.log_softmax(self.table())
        problems, _, vocabulary = log_p.shape
        total, first = log_p[:, 0], 1
        for count in [vocabulary**t for t in range(1, self.length)]:
            rows = log_p[:, None, first] if self.kind == "chain" else log_p[:, first : first + count]
            total = (total[:, :, None] + rows).reshape(problems, count * vocabulary)
            first += 1 if self.kind == "chain" else count
        return total

    def start(self, prompts: Array, mask: Array, length: int) -> tuple[Array, Place]:
        self._check(prompts, mask, length)
        place = Place(prompts[:, -1], jnp.zeros(prompts.shape[0], jnp.int32))
        return self.table()[place], place

    def extend(self, cache: Place, tokens: Array) -> tuple[Array, Place]:
        place = Place(cache.problem, self._following(cache.row, tokens))
        return self.table().at[place].get(mode="clip"), place

    def score(self, prompts, mask, completions, completion_mask, temperature=1.0, *, entropy: bool = True) -> Scored:
        logits = self.table().at[prompts[:, -1:], self._rows(prompts, mask, completions)].get(mode="clip")
        log_prob, spread = logit_scores(logits / temperature, completions, entropy=entropy)
        return Scored(jnp.where(completion_mask, log_prob, 0), jnp.where(completion_mask, spread, 0))

    def embed(self, prompts, mask, completions, completion_mask) -> Array:
        """(B, Q + T V): which problem, and which token at each position, as zeros and ones: what a reward model reads."""
        self._check(prompts, mask, completions.shape[1])
        dtype = self.logits.dtype
        written = jax.nn.one_hot(completions, self.vocabulary, dtype=dtype) * completion_mask[..., None].astype(dtype)
        return jnp.concatenate([jax.nn.one_hot(prompts[:, -1], self.logits.shape[0], dtype=dtype), written.reshape(written.shape[0], -1)], 1)

    def states(self, prompts, mask, completions) -> Array:
        """(B, N, Q rows): which row of the table each token is drawn from, as zeros and ones: what a critic of tokens reads."""
        problems, rows, _ = self.table().shape
        place = prompts[:, -1:] * rows + self._rows(prompts, mask, completions)
        return jax.nn.one_hot(place, problems * rows, dtype=self.logits.dtype)

    def _rows(self, prompts, mask, completions) -> Array:
        """(B, N): the row before each token."""
        self._check(prompts, mask, completions.shape[1])
        rows = [jnp.zeros(prompts.shape[0], jnp.int32)]
        for t in range(completions.shape[1] - 1):
            rows.append(self._following(rows[-1], completions[:, t]))
        return jnp.stack(rows, 1)

    def _following(self, row, token):
        return row + 1 if self.kind == "chain" else 1 + self.vocabulary * row + token

    def _check(self, prompts, mask, length):
        if prompts.shape != mask.shape:
            raise ValueError(f"The prompts have the shape {prompts.shape} and their mask {mask.shape}; they must be equal.")
        if length > self.length:
            raise ValueError(f"{length} tokens are asked of a {self.kind} policy whose sequences have {self.length}; lower the length.")


def _levels(rows: int, vocabulary: int) -> list[int]:
    """The prefixes of each length in an autoregressive table."""
    levels = [1]
    while sum(levels) < rows:
        levels.append(levels[-1] * vocabulary)
    if sum(levels) != rows:
        raise ValueError(
            f"An autoregressive table has {rows} rows for {vocabulary} tokens, but it needs one for every prefix of 0 ... T-1 tokens: "
            f"{sum(levels[:-1])} or {sum(levels)} are the nearest."
        )
    return levels
