"""Log-probabilities and entropies of tokens from hidden states, without all the logits at once.

    s = head h,  s = c tanh(s / c) under a soft cap c,  z = s / temperature
    log_prob = z_y - log sum exp z            entropy = -sum p log p,  p = softmax(z)

The logits of n tokens over a large vocabulary are the largest array of a training step. Here the tokens that count are gathered first, and only
as many chunks of them as there are get logits, in the backward pass once more:

    d log_prob / dz = 1[y] - p                d entropy / dz = -p (log p + entropy)
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

LARGEST = 2**25  # logits at once: 128 MiB in float32
FEWEST = 128  # tokens at once, however large the vocabulary: fewer waste a matrix product


def logit_scores(logits: Array, targets: Array, *, entropy: bool = True) -> tuple[Array, Array]:
    """(log_prob, entropy) (...,) of targets (...,) under the softmax of logits (..., V). Impossible tokens add nothing to the entropy."""
    log_p = jax.nn.log_softmax(logits)
    log_prob = jnp.take_along_axis(log_p, targets[..., None], axis=-1, mode="clip")[..., 0]
    if not entropy:
        return log_prob, jnp.zeros_like(log_prob)
    return log_prob, -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isneginf(log_p), 0, log_p), -1)


def head_logits(hidden: Array, head: Array, softcap: float | None = None) -> Array:
    """(n, V) logits of hidden (n, D) and head (V, D), at least float32."""
    logits = jnp.einsum("nd,vd->nv", hidden, head, preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32))
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def token_scores(
    hidden: Array,
    head: Array,
    targets: Array,
    mask: Array,
    temperature: float | Array = 1.0,
    *,
    chunk: int | None = None,
    softcap: float | None = None,
    entropy: bool = True,
) -> tuple[Array, Array]:
    """(log_prob, entropy) (n,) of targets (n,), 0 where mask (n,) is False, whatever stands there.

    hidden: (n, D); head: (V, D). Gradients reach hidden, head and temperature.
    chunk: tokens whose logits exist at once; by default as many as make 128 MiB of logits. With n or more, the plain expression is used,
    which can be differentiated again.
    """
    n, size = hidden.shape[0], max(FEWEST, LARGEST // head.shape[0]) if chunk is None else chunk
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    temperature = jnp.asarray(temperature, dtype)
    mask = mask.astype(bool)
    if n <= size:
        hidden = jnp.where(mask[:, None], hidden, 0)
        log_prob, spread = logit_scores(head_logits(hidden, head, softcap) / temperature, targets, entropy=entropy)
        return jnp.where(mask, log_prob, 0), jnp.where(mask, spread, 0)
    return _chunked(size, softcap, entropy, hidden, head, targets, mask, temperature)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(size, softcap, entropy, hidden, head, targets, mask, temperature):
    return _forward(size, softcap, entropy, hidden, head, targets, mask, temperature)[0]


def _chunks(size, hidden, targets, mask):
    """How many chunks count, the place of each token among those that count, and a function that gathers chunk i."""
    n = hidden.shape[0]
    order = jnp.argsort(~mask, stable=True)
    place = jnp.zeros(n, order.dtype).at[order].set(jnp.arange(n, dtype=order.dtype))
    padded = jnp.pad(order, (0, -n % size))
    count = mask.sum()

    def gather(i):
        index = jax.lax.dynamic_slice(padded, (i * size,), (size,))
        counts = i * size + jnp.arange(size) < count
        return jnp.where(counts[:, None], hidden[index], 0), targets[index], index, counts

    return (count + size - 1) // size, place, padded.shape[0], gather


def _forward(size, softcap, entropy, hidden, head, targets, mask, temperature):
    chunks, place, total, gather = _chunks(size, hidden, targets, mask)

    def one(i, found):
        h, y, _, _ = gather(i)
        scores = logit_scores(head_logits(h, head, softcap) / temperature, y, entropy=entropy)
        return tuple(jax.lax.dynamic_update_slice(a, b, (i * size,)) for a, b in zip(found, scores))

    empty = jnp.zeros(total, temperature.dtype)
    log_prob, spread = (jnp.where(mask, a[place], 0) for a in jax.lax.fori_loop(0, chunks, one, (empty, empty)))
    return (log_prob, spread), (hidden, head, targets, mask, temperature, spread)


def _backward(size, softcap, entropy, saved, cotangents):
    hidden, head, targets, mask, temperature, spread = saved
    by_log_prob, by_entropy = (jnp.where(mask, g, 0) for g in cotangents)
    chunks, place, total, gather = _chunks(size, hidden, targets, mask)

    def one(i, found):
        d_hidden, d_head, d_temperature = found
        h, y, index, counts = gather(i)
        s = head_logits(h, head, softcap)
        log_p = jax.nn.log_softmax(s / temperature)
        p = jnp.exp(log_p)
        g = jnp.where(counts, by_log_prob[index], 0)
        weight = g[:, None]
        if entropy:
            weight = weight + jnp.where(counts, by_entropy[index], 0)[:, None] * (log_p + spread[index][:, None])
        hit = jnp.arange(head.shape[0])[None] == jnp.clip(y, 0, head.shape[0] - 1)[:, None]
        d_s = (jnp.where(hit, g[:, None], 0) - p * weight) / temperature
        d_temperature = d_temperature - jnp.sum(d_s * s) / temperature
        if softcap is not None:
            d_s = d_s * (1 - jnp.square(s / softcap))
        # products in the parameters' precision, sums over chunks in float32
        d_s = d_s.astype(hidden.dtype)
        d_h = jnp.einsum("nv,vd->nd", d_s, head)
        d_head = d_head + jnp.einsum("nv,nd->vd", d_s, h, preferred_element_type=temperature.dtype)
        return jax.lax.dynamic_update_slice(d_hidden, d_h.astype(hidden.dtype), (i * size, 0)), d_head, d_temperature

    first = (jnp.zeros((total, hidden.shape[1]), hidden.dtype), jnp.zeros(head.shape, temperature.dtype), jnp.zeros_like(temperature))
    d_hidden, d_head, d_temperature = jax.lax.fori_loop(0, chunks, one, first)
    return jnp.where(mask[:, None], d_hidden[place], 0), d_head.astype(head.dtype), None, None, d_temperature


_chunked.defvjp(_forward, _backward)
