"""From a path or a name to a dataset, and back."""

from __future__ import annotations

import dataclasses
import operator
import os
from pathlib import Path

from polopt.core import spaces
from polopt.data.dataset import DataError, Dataset
from polopt.data.formats import arrays, hdf5, minari, npz, parquet
from polopt.data.layout import assemble

FORMS = (
    "FILE.npz (ours, OGBench's, or any after polopt data convert), FILE.hdf5 (D4RL), FILE.parquet, FOLDER.arrays, a LeRobot or Minari folder, "
    "or minari:ID"
)
BY_SUFFIX = {".npz": npz, ".hdf5": hdf5, ".h5": hdf5, ".parquet": parquet, ".arrays": arrays}


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
    given = {"observation_space": observation_space, "action_space": action_space, "reference": reference}
    given = {key: value for key, value in given.items() if value is not None}
    if (Path(name) / arrays.FACTS).is_file():
        return _as_given(arrays.read(Path(name)), columns, given)
    found, facts = columns_of(name, columns)
    return assemble(name, found, **facts | given)


def columns_of(name: str, columns: dict[str, str] | None, spool: Path | None = None) -> tuple[dict, dict]:
    """(columns by our names, what the file says of its name and spaces); with `spool`, a folder, the columns are mapped from files in it."""
    place = Path(name)
    if name.startswith("minari:"):
        found, facts = minari.read(name.removeprefix("minari:"), spool)
    elif (place / "meta" / "info.json").is_file():
        found, facts = parquet.read(place, columns, spool)
    elif place.is_dir():
        if not any((folder / "metadata.json").is_file() for folder in (place, place / "data")):
            raise DataError(f"{name} is a folder of no format that is known; give one of {FORMS}.")
        found, facts = minari.read(name, spool)
    elif place.suffix not in BY_SUFFIX:
        there = "is of no format that is known" if place.exists() else "is not there"
        raise DataError(f"The dataset {name} {there}; give one of {FORMS}.")
    elif not place.is_file():
        raise DataError(f"The dataset {name} is not there; make one with: polopt data collect random --env ENV --steps N --to {name}.")
    else:
        found, facts = BY_SUFFIX[place.suffix].read(place, columns, spool)
    return found, {**facts, "name": facts.get("name") or place.stem}


def _as_given(dataset: Dataset, columns: dict[str, str] | None, given: dict) -> Dataset:
    """A mapped dataset, whose columns and spaces were settled when it was converted, if these are what is given now."""
    if columns:
        raise DataError(f"{dataset.name} is a folder of arrays, whose columns have our names already; leave --columns out.")
    for what, fits in (("observation_space", _alike), ("action_space", operator.eq)):
        if what in given and not fits(given[what], getattr(dataset, what)):
            raise DataError(
                f"{dataset.name} was converted with the {what.replace('_', ' ')} {getattr(dataset, what)}, but {given[what]} is given; "
                "convert it once more, with --env."
            )
    return dataclasses.replace(dataset, **given)


def _alike(one: spaces.Space, other: spaces.Space) -> bool:
    """Whether values of two spaces have the same form, whatever the bounds of their boxes."""
    if isinstance(one, spaces.Dict) and isinstance(other, spaces.Dict):
        names = [[name for name, _ in space.items] for space in (one, other)]
        return names[0] == names[1] and all(_alike(a, b) for (_, a), (_, b) in zip(one.items, other.items))
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        return (one.shape, one.dtype) == (other.shape, other.dtype)
    return one == other


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
