"""Episodes that a model has made, and those of them that are kept."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rollouts(NamedTuple):
    """(n, H, ...): vectors as networks take them, actions as learners see them, rewards, and whether the step was made."""

    vector: jax.Array
    action: jax.Array
    reward: jax.Array
    made: jax.Array

    @property
    def to_go(self):
        """(n, H) the sum of the rewards from each step on."""
        return jnp.cumsum(jnp.where(self.made, self.reward, 0.0)[:, ::-1], axis=1)[:, ::-1]


def added(kept: Rollouts, count, new: Rollouts, threshold):
    """(kept rollouts, how many there are) when those of the new ones that earned more than a threshold, as many as find a place, are put behind
    the `count` that are there."""
    good, places = new.to_go[:, 0] > threshold, kept.made.shape[0]
    place = jnp.where(good, count + jnp.cumsum(good) - 1, places)
    kept = jax.tree.map(lambda old, x: old.at[place].set(x.astype(old.dtype), mode="drop"), kept, new)
    return kept, jnp.minimum(count + jnp.sum(good), places).astype(jnp.int32)


def extremes(kept: Rollouts, count):
    """(largest return of an episode, largest size of a return to go) of the first `count` rollouts; (0, 1) of none."""
    there = jnp.arange(kept.made.shape[0]) < count
    best = jnp.max(kept.to_go[:, 0], where=there, initial=-jnp.inf)
    size = jnp.max(jnp.abs(kept.to_go), where=kept.made & there[:, None], initial=0.0)
    return jnp.where(count > 0, best, 0.0), jnp.where(size > 0, size, 1.0)
