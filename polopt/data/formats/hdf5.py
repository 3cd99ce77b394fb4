"""D4RL's HDF5: flat arrays `observations`, `actions`, `rewards`, `terminals`, `timeouts`, and perhaps `next_observations`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polopt.data.dataset import DataError, Dataset
from polopt.data.formats import common
from polopt.data.formats.arrays import laid_out
from polopt.data.layout import NEEDED, find_columns

ROWS = 50_000  # read at once, where a column is not read whole


def read(path: Path, columns: dict[str, str] | None, spool: Path | None = None) -> tuple[dict, dict]:
    """(columns by our names, nothing of the spaces: the file has none); mapped from files in the folder `spool`, if one is given."""
    h5py = common.need("h5py", f"Reading {path}")
    try:
        with h5py.File(path) as file:
            sets: list[str] = []
            file.visititems(lambda name, item: sets.append(name) if isinstance(item, h5py.Dataset) and item.ndim else None)
            named = find_columns(str(path), [name for name in sets if not name.startswith(("infos/", "metadata/"))], columns, NEEDED)
            if spool is None:
                return {name: file[column][()] for name, column in named.items()}, {}
            count = max(len(file[column]) for column in named.values())
            blocks = ({name: file[column][at : at + ROWS] for name, column in named.items()} for at in range(0, max(count, 1), ROWS))
            return laid_out(blocks, spool), {}
    except OSError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is cut off or damaged ({reason}); copy or download it again.") from error


def write(dataset: Dataset, path: Path) -> None:
    h5py = common.need("h5py", f"Writing {path}")
    if isinstance(dataset.observation, dict):
        raise DataError(f"{path} cannot hold dicts of observations, as D4RL's layout has one array; write an .npz or a Minari dataset.")
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    with h5py.File(path, "w") as file:
        for name, array in zip(names, common.flat(dataset).values()):
            file.create_dataset(name, data=np.asarray(array), compression="gzip")
