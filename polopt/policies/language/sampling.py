"""Drawing completions: compiled, a row for each prompt, with an early end when every row has stopped.

    logits -> / temperature -> the top_k largest -> the fewest that hold a mass of top_p -> draw

`log_prob` is that of the distribution drawn from. With neither top-k nor top-p it is what `score` gives at the same temperature. Either of them
gives the kept tokens the mass of the others, so `log_prob` is then the larger one, and a trainer that compares the two sees a ratio below 1.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polopt.core.parts import hyper, part
from polopt.policies.language.protocol import LanguagePolicy


@part
class Sampling:
    """How the next token is drawn from the logits."""

    temperature: float = hyper(1.0, above=0)  # logits are divided by it: above 1 more even, below 1 more certain
    top_k: int | None = hyper(None, at_least=1)  # only that many of the likeliest tokens (and those that tie with the last); none: all
    top_p: float | None = hyper(None, above=0, at_most=1)  # only the likeliest tokens that together hold this mass; none: all
    greedy: bool = False  # the likeliest token, with no draw; log_prob is that of the distribution that a draw would be from


PLAIN = Sampling()


class Completions(NamedTuple):
    """tokens (B, N) int32, 0 where nothing was written; mask (B, N): True on what the policy wrote, its stop token too;

    log_prob (B, N) of each token under the distribution it was drawn from, 0 where masked; finished (B,): ended by a stop token, not by the length.
    """

    tokens: Array
    mask: Array
    log_prob: Array
    finished: Array


def filtered(logits: Array, sampling: Sampling) -> Array:
    """(B, V): the log-probabilities of the distribution that `sampling` draws from; -inf where it never does."""
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if sampling.top_p is not None:
        # a token stays when those above it hold less than top_p; the likeliest always does
        ordered = jnp.sort(logits, axis=-1, descending=True)
        mass = jax.nn.softmax(ordered)
        stays = jnp.cumsum(mass, axis=-1) - mass < sampling.top_p
        least = jnp.min(jnp.where(stays, ordered, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.nn.log_softmax(logits)


def draw(logits: Array, key: Array, sampling: Sampling) -> tuple[Array, Array]:
    """(tokens, log_prob) (B,) from logits (B, V)."""
    log_p = filtered(logits, sampling)
    tokens = jnp.argmax(log_p, -1) if sampling.greedy else jax.random.categorical(key, log_p)
    return tokens.astype(jnp.int32), jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]


@functools.partial(jax.jit, static_argnames=("length", "stop", "repeats"))
def generate(
    policy: LanguagePolicy,
    prompts: Array,
    mask: Array,
    key: Array,
    *,
    length: int,
    stop: tuple[int, ...] = (),
    sampling: Sampling = PLAIN,
    repeats: int = 1,
) -> Completions:
    """Completions of up to `length` tokens for each of the prompts (B, P), padded on the left where mask (B, P) is False.

    stop:    tokens that end a completion; with none every completion has `length` tokens.
    repeats: completions a prompt, in adjoining rows: prompt 0 `repeats` times, then prompt 1. A prompt is read once, whatever their number.
    """
    if length < 1 or repeats < 1:
        raise ValueError(f"The length is {length} and the repeats are {repeats}, but both must be at least 1.")
    logits, cache = policy.start(prompts, mask, length)
    if repeats > 1:
        logits, cache = jax.tree.map(lambda x: jnp.repeat(x, repeats, axis=0) if jnp.ndim(x) else x, (logits, cache))
    stops = jnp.asarray(stop, jnp.int32)

    def written(i, logits):
        tokens, log_prob = draw(logits, jax.random.fold_in(key, i), sampling)
        return tokens, log_prob, jnp.any(tokens[:, None] == stops[None], -1)

    def put(record, i, row):
        return tuple(jax.lax.dynamic_update_index_in_dim(a, b.astype(a.dtype), i, 0) for a, b in zip(record, row))

    def open_rows(state):
        i, _, _, done, _ = state
        return (i < length) & ~jnp.all(done)

    def step(state):
        i, cache, last, done, record = state
        logits, cache = policy.extend(cache, last)
        tokens, log_prob, stopped = written(i, logits)
        tokens, log_prob = jnp.where(done, 0, tokens), jnp.where(done, 0, log_prob)
        return i + 1, cache, tokens, done | stopped, put(record, i, (tokens, ~done, log_prob))

    tokens, log_prob, done = written(0, logits)
    rows = tokens.shape[0]
    # position first: each step writes one contiguous row
    empty = (jnp.zeros((length, rows), jnp.int32), jnp.zeros((length, rows), bool), jnp.zeros((length, rows), log_prob.dtype))
    record = put(empty, 0, (tokens, jnp.ones(rows, bool), log_prob))
    _, _, _, done, record = jax.lax.while_loop(open_rows, step, (jnp.int32(1), cache, tokens, done, record))
    tokens, wrote, log_prob = (a.T for a in record)
    return Completions(tokens, wrote, log_prob, done)
