"""Datasets as a user names them: `load_data` reads one, with the spaces of an environment where one is given."""

from __future__ import annotations

import os

from polopt.data import files, pieces
from polopt.data.dataset import DataError, Dataset
from polopt.envs.make import make


def load_data(
    data: str | os.PathLike | Dataset,
    env=None,
    *,
    columns: dict[str, str] | None = None,
    reference: tuple[float, float] | None = None,
) -> Dataset:
    """A dataset from a file, a folder or `minari:ID`. DataError says what is wrong with it, and where.

    env:       the environment that the data come from, or its name: its spaces are then those of the data, and what does not fit is refused.
    columns:   which columns of a plain npz, HDF5 or parquet file hold our observation, action, reward, next_observation, terminated,
               truncated and episode, by these names; usual names are found without it.
    reference: mean returns of a random policy and of an expert, by which scores are normalised.
    """
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, (str, os.PathLike)):
        raise DataError(f"data is a {type(data).__name__}, but a path, minari:ID or a Dataset is expected; one of {files.FORMS}.")
    return files.read(data, columns=columns, reference=reference, **_spaces(env))


def convert_data(data: str | os.PathLike, to: str | os.PathLike, env=None, *, columns: dict[str, str] | None = None) -> int:
    """Write a dataset that need not fit into memory as a folder `NAME.arrays`: how many transitions it has. Arguments as those of `load_data`."""
    return pieces.convert(data, to, columns=columns, **_spaces(env))


def _spaces(env) -> dict:
    """The spaces of an environment, or of its name, as the readers take them."""
    environment = make(env) if isinstance(env, str) else env
    return {} if environment is None else {"observation_space": environment.observation_space, "action_space": environment.action_space}
