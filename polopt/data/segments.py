"""A log as sequences of numbers: rows of state, action, reward and end one behind the other, and single transitions back from such rows."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

NEAREST = 0.999  # to a bound that a unit action may be before tanh is undone


class Drawn(NamedTuple):
    """Transitions (m, ...): vectors, unit actions as vectors, rewards, whether they end, next vectors."""

    vector: jax.Array
    action: jax.Array
    reward: jax.Array
    ends: jax.Array
    following: jax.Array


class Segments(eqx.Module):
    """n rows (n, d) in the order of the log, each column of mean 0 and deviation 1: a vector, a unit action before tanh, the reward, the end.

    A segment is `length` rows. It never runs on over a cut; it does over a terminal state, as none of its transitions would ever end otherwise.

    start: (n,) rows at which segments begin, for whole numbers below `count`.
    """

    rows: jax.Array
    mean: jax.Array
    deviation: jax.Array
    start: jax.Array
    count: jax.Array
    size: int = eqx.field(static=True)
    length: int = eqx.field(static=True)

    @staticmethod
    def of(vector, action, reward, terminated, truncated, length: int) -> "Segments":
        """From vectors (n, size), unit actions (n, ...) and the rest (n,)."""
        n = reward.shape[0]
        raw = jnp.arctanh(jnp.clip(action.reshape(n, -1), -NEAREST, NEAREST))
        rows = jnp.concatenate([vector, raw, reward[:, None], jnp.asarray(terminated, jnp.float32)[:, None]], axis=1)
        mean, deviation = jnp.mean(rows, axis=0), jnp.std(rows, axis=0)
        deviation = jnp.where(deviation > 0, deviation, 1.0)
        cuts = jnp.cumsum(jnp.asarray(truncated, jnp.int32))
        last = jnp.arange(n) + length - 2  # the last row whose successor is the next one of the segment
        before = cuts - jnp.asarray(truncated, jnp.int32)
        whole = (last + 1 < n) & (cuts[jnp.minimum(last, n - 1)] == before)
        start = jnp.nonzero(whole, size=n, fill_value=0)[0]
        return Segments((rows - mean[None]) / deviation[None], mean, deviation, start, jnp.sum(whole), vector.shape[1], length)

    @property
    def is_action(self):
        """(d,) which columns are the action's."""
        column = jnp.arange(self.rows.shape[1])
        return (column >= self.size) & (column < self.rows.shape[1] - 2)

    def drawn(self, key, n: int):
        """(n, length, d) random segments."""
        first = self.start[jax.random.randint(key, (n,), 0, jnp.maximum(self.count, 1))]
        return self.rows[first[:, None] + jnp.arange(self.length)[None]]

    def read(self, row):
        """(vector, unit action as a vector, reward, chance of an end) of a row (d,), as they were before they were made alike."""
        row = row * self.deviation + self.mean
        return row[: self.size], jnp.tanh(row[self.size : -2]), row[-2], row[-1]

    def transitions(self, segments) -> Drawn:
        """Of each pair of rows of segments (m, length, d)."""
        vector, action, reward, end = jax.vmap(jax.vmap(self.read))(segments)
        every = Drawn(vector[:, :-1], action[:, :-1], reward[:, :-1], end[:, :-1] > 0.5, vector[:, 1:])
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), every)


def longest_piece(truncated) -> int:
    """The rows of the longest piece of a log without a cut inside."""
    ends = np.flatnonzero(np.append(np.asarray(truncated)[:-1], True))
    return int(np.diff(np.append(-1, ends)).max())
