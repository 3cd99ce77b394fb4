"""The probabilities with which logged actions were drawn, where a file has a column of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from polopt.data.dataset import DataError, Dataset
from polopt.data.formats import common

USUAL = ("behaviour", "behavior", "propensity", "action_prob", "action_probability")


def behaviour_column(path: str | os.PathLike, dataset: Dataset, column: str | None = None) -> np.ndarray | None:
    """(n,) b(a|s) of each logged action from a column of the dataset's file; None where no column is named and none is there.

    Probabilities of whole-number actions; of a box densities, in the units of the environment.
    """
    arrays = _columns(Path(os.fspath(path)), (column,) if column else USUAL)
    if not arrays:
        if column is None:
            return None
        raise DataError(f"{path} has no column {column!r} with the probabilities of its actions; name another one, or none to clone them.")
    (found,) = arrays
    return checked(found, dataset, f"the column {column or 'of behaviour probabilities'} of {path}")


def checked(found, dataset: Dataset, what: str = "behaviour") -> np.ndarray:
    """Probabilities (n,) as float64; DataError where they are not one positive number a step."""
    array = np.asarray(found)
    if array.shape not in ((len(dataset),), (len(dataset), 1)) or array.dtype.kind not in "iuf":
        raise DataError(
            f"{what} has the shape {array.shape}, but one probability for each of the {len(dataset)} transitions is expected. "
            "A file without next_observation loses the last row of each cut episode: write one with `polopt data convert`, and add the column there."
        )
    array = array.reshape(-1).astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if bad.size:
        raise DataError(f"In {what}, row {bad[0]} is {array[bad[0]]:g}, but an action that was drawn has a finite probability above 0.")
    return array


def _columns(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """The first of the columns that a file has; none of a folder or a dataset by name."""
    if not path.is_file():
        return []
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names if name in file.files][:1]
    if path.suffix == ".parquet":
        table = common.need("pyarrow.parquet", f"Reading {path}").read_table(path)
        return [table.column(name).to_numpy() for name in names if name in table.column_names][:1]
    with common.need("h5py", f"Reading {path}").File(path) as file:
        return [file[name][()] for name in names if name in file][:1]
