"""Verifiers that run in JAX, inside the compiled program."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from polopt.data.prompts import Graded, Prompts


def content(tokens: Array, mask: Array, stop: tuple[int, ...]) -> Array:
    """(N, T) bool: the tokens of completions that say something, without the stop token at their end."""
    return mask & ~jnp.isin(tokens, jnp.asarray(stop, tokens.dtype)) if stop else mask


def certain(reward: Array) -> Graded:
    """Rewards of a verifier that cannot fail."""
    return Graded(reward.astype(jnp.float32), jnp.ones(reward.shape, bool))


class Answer(NamedTuple):
    """The facts of `Matches`: tokens (n, A) int32 padded on the right and mask (n, A) bool, without a stop token."""

    tokens: Array
    mask: Array


class Matches(eqx.Module):
    """1 where the completion is the answer, token by token, else 0. The stop token does not count."""

    stop: tuple[int, ...] = eqx.field(static=True, default=())
    host = False

    def __call__(self, prompts: Prompts, index, tokens, mask) -> Graded:
        answer = jax.tree.map(lambda x: x[index], prompts.facts)
        width = max(tokens.shape[1], answer.tokens.shape[1])
        said = _widened(content(tokens, mask, self.stop), width)
        wanted = _widened(answer.mask, width)
        same = _widened(tokens, width) == _widened(answer.tokens, width)
        return certain(jnp.all((said == wanted) & (same | ~wanted), axis=1))


class Lookup(eqx.Module):
    """The reward of each sequence from a table: facts are rewards (n, V^T), sequences numbered in lexicographic order."""

    vocabulary: int = eqx.field(static=True)
    host = False

    def __call__(self, prompts: Prompts, index, tokens, mask) -> Graded:
        return certain(prompts.facts[index, sequence_number(tokens, self.vocabulary)])


def sequence_number(tokens: Array, vocabulary: int) -> Array:
    """(N,) the place of each row of tokens (N, T) in the lexicographic order of all V^T sequences."""
    powers = vocabulary ** jnp.arange(tokens.shape[1] - 1, -1, -1, dtype=jnp.int32)
    return jnp.sum(tokens * powers[None], axis=1)


class Goal(NamedTuple):
    """The facts of `Countdown`: target (n,) int32, and counts (n, largest + 1) int32, how often each number is there to be used."""

    target: Array
    counts: Array


class Countdown(eqx.Module):
    """1 where the completion is an expression of + - * whose value is the target and that uses each given number exactly once, else 0.

    A product binds closer than a sum. Signs and brackets are not in the language, nor are numbers that begin with 0 (but 0 is). Values are exact
    while they fit 31 bits, which holds for every expression of the given numbers; one that uses others is wrong whatever its value.

    digits:     the first of ten tokens 0 ... 9 that follow one another.
    operators:  the tokens + - *.
    """

    digits: int = eqx.field(static=True)
    operators: tuple[int, int, int] = eqx.field(static=True)
    stop: tuple[int, ...] = eqx.field(static=True, default=())
    host = False

    def __call__(self, prompts: Prompts, index, tokens, mask) -> Graded:
        goal = jax.tree.map(lambda x: x[index], prompts.facts)
        return certain(jax.vmap(self._reaches)(goal, tokens, content(tokens, mask, self.stop)))

    def _reaches(self, goal: Goal, tokens, said):
        """Whether one expression reaches its goal: read from left to right, a sum of what is done and a signed product that is open."""
        plus, minus, times = self.operators
        largest = goal.counts.shape[0] - 1
        numbers = jnp.arange(largest + 1)

        def read(state, item):
            done, product, number, length, counts, ok = state
            token, here = item
            digit = token - self.digits
            is_digit = (digit >= 0) & (digit <= 9)
            is_operator = (token == plus) | (token == minus) | (token == times)
            leading = is_digit & (length > 0) & (number == 0)
            # a number beyond the largest is wrong already, and stays below what would overflow
            longer = jnp.minimum(number * 10 + digit, largest + 1)
            fine = ok & (is_digit | (is_operator & (length > 0))) & ~leading & ~(is_digit & (longer > largest))
            closed = product * number
            after = (
                jnp.where(is_digit | (token == times), done, done + closed),
                jnp.where(is_digit, product, jnp.where(token == times, closed, jnp.where(token == minus, -1, 1))),
                jnp.where(is_digit, longer, 0),
                jnp.where(is_digit, length + 1, 0),
                counts + (is_operator & (numbers == number)),
                fine,
            )
            return jax.tree.map(lambda new, old: jnp.where(here, new, old), after, state), None

        zero = jnp.int32(0)
        start = (zero, jnp.int32(1), zero, zero, jnp.zeros_like(goal.counts), jnp.bool_(True))
        (done, product, number, length, counts, ok), _ = jax.lax.scan(read, start, (tokens, said))
        counts = counts + (numbers == number)
        return ok & (length > 0) & jnp.all(counts == goal.counts) & (done + product * number == goal.target)


def _widened(x: Array, width: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, width - x.shape[1])))
