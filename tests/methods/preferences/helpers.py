"""Columns from plain numbers, a small log, and the losses on a table of logits, whose every pair can be listed."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.preferences.training import logged
from polopt.loops.preference import Columns
from polopt.policies.language.tabular import TabularPolicy


def columns(log_prob, score, *, length=None, **anchor) -> Columns:
    """Columns of float arrays; an anchor that is a number is that everywhere."""
    log_prob, score = jnp.asarray(log_prob, float), jnp.asarray(score, float)
    anchors = {name: jnp.broadcast_to(jnp.asarray(x, float), log_prob.shape) for name, x in anchor.items()}
    return Columns(log_prob, anchors, score, jnp.ones(log_prob.shape, int) if length is None else jnp.asarray(length))


def pair(h, order=1, **anchor) -> Columns:
    """One pair with the margin h beside anchors at 0, the first better where order is 1."""
    anchor = anchor or {"start": 0.0, "previous": 0.0}
    return columns(jnp.stack([jnp.asarray(h, float), jnp.zeros(())])[None], [[0.5 + 0.5 * order, 0.5 - 0.5 * order]], **anchor)


def all_pairs(logits, score, **anchor_logits) -> Columns:
    """Every ordered pair of different arms of a table of logits (K,); scores (K,) or, of each pair, (K, K) for the first over the second."""
    logits = jnp.asarray(logits)
    index = np.array(list(itertools.permutations(range(logits.shape[0]), 2)))
    take = lambda x: jax.nn.log_softmax(jnp.asarray(x, logits.dtype))[index]  # noqa: E731
    score = jnp.asarray(score)
    scores = score[index] if score.ndim == 1 else jnp.stack([score[index[:, 0], index[:, 1]], score[index[:, 1], index[:, 0]]], 1)
    return Columns(take(logits), {name: take(x) for name, x in anchor_logits.items()}, scores, jnp.ones(index.shape, int))


def least_squares(residual, size: int):
    """The logits (K,) of smallest length whose residuals, linear in them, have the least squares; `residual(logits)` may be weighted."""
    start = jnp.zeros(size)
    jacobian = jax.jacobian(residual)(start)
    return -jnp.linalg.pinv(jacobian) @ residual(start)


def log_of_pairs(arms: int = 4, pairs: int = 32, *, steps: int = 4, seed: int = 0, prompts: int = 1):
    """A task of random pairs of different arms, winner first."""
    draw = np.random.default_rng(seed)
    responses = np.stack([draw.permutation(arms)[:2] for _ in range(pairs)])
    model = TabularPolicy(jnp.asarray(draw.standard_normal((prompts, arms)), jnp.float32))
    return logged(model, draw.integers(prompts, size=pairs), responses, np.tile([[1, 0]], (pairs, 1)), steps=steps)
