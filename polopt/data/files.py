"""From a path or a name to a dataset, and back."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from polopt.core import spaces
from polopt.data.dataset import DataError, Dataset
from polopt.data.formats import hdf5, minari, npz, parquet
from polopt.data.layout import assemble

FORMS = "FILE.npz (ours, OGBench's or any with --columns), FILE.hdf5 (D4RL), FILE.parquet, a LeRobot or Minari folder, or minari:ID"
BY_SUFFIX = {".npz": npz, ".hdf5": hdf5, ".h5": hdf5, ".parquet": parquet}


def read(
    path: str | os.PathLike,
    *,
    columns: dict[str, str] | None = None,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
    reference: tuple[float, float] | None = None,
) -> Dataset:
    """The dataset at a path; DataError says in one sentence what is wrong and where.

    columns:   which column of the file holds our observation, action, reward, next_observation, terminated, truncated or episode.
    observation_space, action_space: instead of what the file says, or does not say.
    reference: mean returns of a random policy and of an expert.
    """
    name = os.fspath(path)
    place = Path(name)
    if name.startswith("minari:"):
        found, facts = minari.read(name.removeprefix("minari:"))
    elif (place / "meta" / "info.json").is_file():
        found, facts = parquet.read(place, columns)
    elif place.is_dir():
        if not any((folder / "metadata.json").is_file() for folder in (place, place / "data")):
            raise DataError(f"{name} is a folder of no format that is known; give one of {FORMS}.")
        found, facts = minari.read(name)
    elif place.suffix not in BY_SUFFIX:
        there = "is of no format that is known" if place.exists() else "is not there"
        raise DataError(f"The dataset {name} {there}; give one of {FORMS}.")
    elif not place.is_file():
        raise DataError(f"The dataset {name} is not there; make one with: polopt data collect random --env ENV --steps N --to {name}.")
    else:
        found, facts = BY_SUFFIX[place.suffix].read(place, columns)
    given = {"observation_space": observation_space, "action_space": action_space, "reference": reference}
    facts = {"name": place.stem, **facts, **{key: value for key, value in given.items() if value is not None}}
    dataset = assemble(name, found, **facts)
    return dataclasses.replace(dataset, name=dataset.name or place.stem)


def write(dataset: Dataset, path: str | os.PathLike) -> Path | str:
    """Write a dataset in the format that the path's ending, or `minari:`, names."""
    name = os.fspath(path)
    writable(name)
    if name.startswith("minari:"):
        minari.write(dataset, name.removeprefix("minari:"))
        return name
    place = Path(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    BY_SUFFIX[place.suffix].write(dataset, place)
    return place


def writable(path: str | os.PathLike) -> None:
    """DataError where `write` knows no format for a name: asked before the work."""
    name = os.fspath(path)
    if not name.startswith("minari:") and Path(name).suffix not in BY_SUFFIX:
        raise DataError(f"There is no format for {name!r}; give a name that ends in {', '.join(BY_SUFFIX)}, or minari:ID.")
