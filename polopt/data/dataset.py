"""Datasets: logged transitions in one layout, whatever file they came from."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import spaces
from polopt.core.normalise import RunningStatistics

MARGIN = 1e-3  # added to the deviation of each observation, so that a constant one is not divided by zero


class DataError(ValueError):
    """A dataset that cannot be used: the message says what is wrong, where, and what to do."""


class Dataset(eqx.Module):
    """n transitions in the order in which they were made, one episode after another. A pytree of NumPy or JAX arrays.

    observation, next_observation:  (n, ...) as the observation space says; the latter is the true successor, also at an end.
    action:      (n, ...) in the bounds of the environment.
    terminated:  (n,) the episode ended in a terminal state, which is worth nothing.
    truncated:   (n,) the episode was cut, or the recording was; its last state still has a value.
    reference:   mean returns of a random policy and of an expert, by which scores are normalised; None where unknown.
    notes:       what the reader had to assume, a sentence each.
    """

    observation: Any
    action: Any
    reward: Any
    next_observation: Any
    terminated: Any
    truncated: Any
    observation_space: spaces.Space = eqx.field(static=True)
    action_space: spaces.Space = eqx.field(static=True)
    name: str = eqx.field(static=True, default="data")
    reference: tuple[float, float] | None = eqx.field(static=True, default=None)
    notes: tuple[str, ...] = eqx.field(static=True, default=())

    def __len__(self) -> int:
        return self.reward.shape[0]

    @property
    def ended(self):
        """(n,): the last transition of each episode."""
        return self.terminated | self.truncated

    def episodes(self) -> "Episodes":
        """Where each episode lies, and what it earned."""
        ends = np.flatnonzero(np.asarray(self.ended)) + 1
        starts = np.concatenate([[0], ends[:-1]]).astype(int)
        returns = np.add.reduceat(np.asarray(self.reward, np.float64), starts)
        return Episodes(starts, ends, returns, ends - starts)

    def vectors(self, observations=None) -> Any:
        """(n, size) the numbers of the observations, whole numbers as one-hot, images left out."""
        observations = self.observation if observations is None else observations
        return jax.vmap(lambda o: spaces.flatten(self.observation_space, o)[0])(observations)

    def statistics(self) -> RunningStatistics:
        """Mean and variance of the observations by which they are normalised: (s - mean) / (deviation + 0.001), as in TD3+BC's code."""
        vector = self.vectors()
        deviation = jnp.std(vector, axis=0) + MARGIN
        return RunningStatistics(jnp.mean(vector, axis=0), deviation**2, jnp.asarray(float(len(self))))

    def score(self, returns):
        """100 (return - random) / (expert - random), D4RL's normalised score."""
        if self.reference is None:
            raise DataError(f"{self.name} carries no reference returns, by which a score is normalised; give them with reference=(random, expert).")
        low, high = self.reference
        return 100 * (np.asarray(returns) - low) / (high - low)

    def on_device(self) -> "Dataset":
        """The same with JAX arrays, moved once rather than at every call."""
        return jax.tree.map(jnp.asarray, self)

    def digest(self) -> str:
        """A SHA-256 of everything that is learnt from."""
        total = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self):
            array = np.ascontiguousarray(leaf)
            total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            total.update(array)
        return total.hexdigest()

    def take(self, rows) -> "Dataset":
        """The transitions of a slice or of rising indices; the last of a piece that is cut off from its episode counts as truncated."""
        chosen = jax.tree.map(lambda x: np.asarray(x)[rows], self)
        if not len(chosen):
            return chosen
        index = np.arange(len(self))[rows]
        cut = np.append(np.diff(index) != 1, True) & ~chosen.terminated
        return eqx.tree_at(lambda d: d.truncated, chosen, chosen.truncated | cut)


class Episodes(NamedTuple):
    """For each episode: its first row, the row behind its last, the sum of its rewards, its length."""

    start: np.ndarray
    end: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray


class DataTask(eqx.Module):
    """Learn from `dataset` by `steps` updates a seed, never acting; `env` is only evaluated on, and may be None."""

    dataset: Dataset
    steps: int = eqx.field(static=True)
    env: Any = None


def concatenated(datasets: list[Dataset], name: str) -> Dataset:
    """Several datasets of the same spaces, one after another."""
    first = datasets[0]
    for other in datasets[1:]:
        if (other.observation_space, other.action_space) != (first.observation_space, first.action_space):
            raise DataError(
                f"{other.name} has the spaces {other.observation_space} and {other.action_space}, but {first.name} has {first.observation_space} and "
                f"{first.action_space}; only data of one environment can be joined."
            )
    leaves = [jax.tree.leaves(d) for d in datasets]
    joined = jax.tree.unflatten(jax.tree.structure(first), [np.concatenate([np.asarray(x) for x in column]) for column in zip(*leaves)])
    return dataclasses.replace(joined, name=name, notes=tuple(dict.fromkeys(note for d in datasets for note in d.notes)))
