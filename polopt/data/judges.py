"""Judges: which of two completions of a prompt is preferred, and with what probability.

verifier            1 where it rewards a more than b, 1/2 where alike; or sigmoid((r_a - r_b) / temperature)
reward model        sigmoid(r_a - r_b), the Bradley-Terry model
preference matrix   P[a, b], any preference over sequences that can be listed, cycles too
"""

from __future__ import annotations

from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.data.dataset import DataError
from polopt.data.prompts import Prompts
from polopt.data.verifiers import sequence_number


class Judge(Protocol):
    """host: whether it calls code on the host."""

    host: bool

    def __call__(self, prompts: Prompts, index: Array, tokens_a: Array, mask_a: Array, tokens_b: Array, mask_b: Array) -> Array:
        """(N,) the probability that completion a of prompt `index[i]` is preferred to completion b; tokens and masks are (N, T)."""
        ...


class VerifierJudge(eqx.Module):
    """Prefers what the verifier rewards more. Where it failed on either completion, neither is preferred: 1/2.

    temperature:  None for certain preferences.
    """

    verifier: Any
    temperature: float | None = eqx.field(static=True, default=None)

    def __post_init__(self):
        if self.temperature is not None and not self.temperature > 0:
            raise DataError(f"The temperature of a judge is {self.temperature}, but a number above 0 is expected; give None for certain preferences.")

    @property
    def host(self) -> bool:
        return self.verifier.host

    def __call__(self, prompts: Prompts, index, tokens_a, mask_a, tokens_b, mask_b) -> Array:
        both = jnp.concatenate([tokens_a, tokens_b]), jnp.concatenate([mask_a, mask_b])
        grades = self.verifier(prompts, jnp.concatenate([index, index]), *both)
        margin = jnp.subtract(*jnp.split(grades.reward, 2))
        judged = jnp.logical_and(*jnp.split(grades.valid, 2))
        preferred = (1 + jnp.sign(margin)) / 2 if self.temperature is None else jax.nn.sigmoid(margin / self.temperature)
        return jnp.where(judged, preferred, 0.5)


class RewardJudge(eqx.Module):
    """The Bradley-Terry model of `reward(prompts, index, tokens, mask)` -> (N,), a pytree such as an Equinox module."""

    reward: Any
    host = False

    def __call__(self, prompts: Prompts, index, tokens_a, mask_a, tokens_b, mask_b) -> Array:
        return jax.nn.sigmoid(self.reward(prompts, index, tokens_a, mask_a) - self.reward(prompts, index, tokens_b, mask_b))


class MatrixJudge(eqx.Module):
    """P (Q, N, N): the probability that sequence i is preferred to sequence j after prompt q, whose token is q. Make it by `matrix_judge`."""

    preference: Array
    vocabulary: int = eqx.field(static=True)
    host = False

    def __call__(self, prompts: Prompts, index, tokens_a, mask_a, tokens_b, mask_b) -> Array:
        problem = prompts.tokens[index, -1]
        return self.preference[problem, sequence_number(tokens_a, self.vocabulary), sequence_number(tokens_b, self.vocabulary)]


def matrix_judge(preference, vocabulary: int) -> MatrixJudge:
    """The judge of a matrix (Q, N, N), sequences in lexicographic order; DataError where P[i, j] + P[j, i] is not 1 or P is no probability."""
    P = np.asarray(preference, np.float64)
    if P.ndim != 3 or P.shape[1] != P.shape[2]:
        raise DataError(f"The preference matrix has the shape {P.shape}, but (prompts, sequences, sequences) is expected.")
    lengths = [t for t in range(1, 32) if vocabulary**t == P.shape[1]]
    if not lengths:
        raise DataError(f"The preference matrix has {P.shape[1]} sequences, but {vocabulary} tokens make {vocabulary}, {vocabulary**2}, ... of them.")
    outside = np.argwhere(~((P >= 0) & (P <= 1)))
    if len(outside):
        q, i, j = outside[0].tolist()
        raise DataError(f"The preference P[{q}, {i}, {j}] is {P[q, i, j]:g}, but a probability from 0 to 1 is expected.")
    unequal = np.argwhere(np.abs(P + P.swapaxes(1, 2) - 1) > 1e-6)
    if len(unequal):
        q, i, j = unequal[0].tolist()
        raise DataError(
            f"P[{q}, {i}, {j}] + P[{q}, {j}, {i}] is {P[q, i, j] + P[q, j, i]:g}, but 1 is expected, as one of two is preferred; "
            "take (P + 1 - P transposed) / 2."
        )
    return MatrixJudge(jnp.asarray(P, jnp.float32), vocabulary)
