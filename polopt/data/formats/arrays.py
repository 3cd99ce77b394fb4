"""A folder `NAME.arrays` of one .npy file an array and `polopt.json`: mapped into memory instead of read, for data larger than memory.

Rows are read from the disk when a minibatch takes them. Where the accelerator has a memory of its own, the arrays are moved there and must fit.
What is in such a folder was checked when it was written, and is not checked again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from polopt.data.dataset import DataError, Dataset
from polopt.data.formats import common

FACTS = "polopt.json"


def read(path: Path) -> Dataset:
    """The dataset of a folder, its arrays mapped."""
    try:
        facts = json.loads((path / FACTS).read_text())
        arrays = {name: _mapped(path / f"{name}.npy") for name in facts["arrays"]}
        return Dataset(**common.nested(arrays), **common.known(facts))
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is cut off or damaged ({reason}); copy it again, or convert the data once more.") from error


def _mapped(place: Path):
    """A file's array. Where computing is done in the machine's own memory JAX takes it as it lies, without a copy."""
    array = np.load(place, mmap_mode="r")
    return jax.device_put(array, may_alias=True) if jax.default_backend() == "cpu" else array


def write(dataset: Dataset, path: Path) -> None:
    with Folder(path) as folder:
        folder.add(dataset)


class Folder:
    """Datasets of the same spaces, one after another, become a folder; it has its name once it is whole."""

    def __init__(self, path: Path):
        self.path, self.part = path, path.with_name(path.name + ".part")
        if path.exists():
            raise DataError(f"{path} is there already; remove it, or give another name.")
        self.files: dict[str, Growing] = {}
        self.facts: dict | None = None

    def __enter__(self):
        return self

    def add(self, dataset: Dataset) -> None:
        if self.facts is None:
            self.facts = common.facts(dataset)
            self.part.mkdir(parents=True, exist_ok=True)
            self.files = {name: Growing(self.part / f"{name}.npy") for name in common.flat(dataset)}
        self.facts["notes"] = list(dict.fromkeys([*self.facts["notes"], *dataset.notes]))
        for name, array in common.flat(dataset).items():
            self.files[name].add(np.asarray(array))

    def __exit__(self, kind, error, trace):
        for file in self.files.values():
            file.close()
        if kind is None and self.facts is not None:
            (self.part / FACTS).write_text(json.dumps({**self.facts, "arrays": list(self.files)}, indent=1))
            self.part.rename(self.path)


class Growing:
    """A .npy file to which rows are added."""

    def __init__(self, place: Path):
        self.place, self.file, self.like, self.count = place, place.open("wb"), None, 0

    def add(self, rows: np.ndarray) -> None:
        if self.like is None:
            self.like = rows[:0]
            self._head()
        if rows.shape[1:] != self.like.shape[1:]:
            raise ValueError(f"rows of the shape {rows.shape[1:]} cannot follow rows of the shape {self.like.shape[1:]}")
        self.file.write(np.ascontiguousarray(rows, self.like.dtype).tobytes())
        self.count += len(rows)

    def _head(self) -> None:
        """NumPy leaves room in the header for a first axis of any length, so that it can be written again."""
        self.file.seek(0)
        described = np.lib.format.dtype_to_descr(self.like.dtype)
        np.lib.format.write_array_header_1_0(self.file, {"descr": described, "fortran_order": False, "shape": (self.count, *self.like.shape[1:])})

    def close(self) -> None:
        if self.like is not None:
            self._head()
        self.file.close()



def laid_out(blocks: Iterable[dict], spool: Path) -> dict:
    """Columns, nested as each block of their rows is, mapped from files in the folder `spool`."""
    columns: dict[str, Growing] = {}
    for block in blocks:
        for name, rows in common.named(block).items():
            column = columns[name] = columns.get(name) or Growing(spool / f"{name}.npy")
            column.add(np.asarray(rows))
    for column in columns.values():
        column.close()
    return common.nested({name: np.load(column.place, mmap_mode="r") for name, column in columns.items()})
