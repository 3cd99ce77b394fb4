"""What the readers share: spaces as JSON, nested columns by dotted names, and one sentence for a missing package."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from polopt.core import spaces
from polopt.data.dataset import DataError, Dataset

KINDS = {kind.__name__: kind for kind in (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box, spaces.Dict)}
ARRAYS = ("observation", "action", "reward", "next_observation", "terminated", "truncated")


def need(package: str, what: str, extra: str = "data"):
    """The package, or one sentence that says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(f"{what} needs the package {package.partition('.')[0]}; install it with: pip install 'polopt[{extra}]'.") from error


def facts(dataset: Dataset) -> dict[str, Any]:
    """What a dataset is besides its arrays, as JSON."""
    return {
        "format": 1,
        "name": dataset.name,
        "observation_space": space_to_json(dataset.observation_space),
        "action_space": space_to_json(dataset.action_space),
        "reference": dataset.reference,
        "notes": list(dataset.notes),
    }


def known(found: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `assemble` in the facts of a file."""
    reference = found.get("reference")
    return {
        "name": found["name"],
        "observation_space": space_from_json(found["observation_space"]),
        "action_space": space_from_json(found["action_space"]),
        "reference": None if reference is None else tuple(reference),
        "notes": tuple(found.get("notes", ())),
    }


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "items": [[name, space_to_json(inner)] for name, inner in space.items]}
    return {"kind": type(space).__name__, **dataclasses.asdict(space)}


def space_from_json(value: dict[str, Any]) -> spaces.Space:
    value = dict(value)
    kind = value.pop("kind")
    if kind == "Dict":
        return spaces.Dict(tuple((name, space_from_json(inner)) for name, inner in value["items"]))
    return KINDS[kind](**{name: tuple(x) if isinstance(x, list) else x for name, x in value.items()})


def flat(dataset: Dataset) -> dict[str, Any]:
    """Every array by dotted name."""
    return named({name: getattr(dataset, name) for name in ARRAYS})


def named(columns: dict[str, Any]) -> dict[str, Any]:
    """Columns, some of them dicts of columns, by dotted name."""
    found: dict[str, Any] = {}
    for name, column in columns.items():
        _flatten(name, column, found)
    return found


def _flatten(name: str, value, found: dict) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(f"{name}.{key}", inner, found)
    else:
        found[name] = value


def nested(columns: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`, for dotted names that begin with one of ours."""
    found: dict[str, Any] = {}
    for dotted, value in columns.items():
        first, *path = dotted.split(".")
        place, key = found, first
        for step in path:
            place, key = place.setdefault(key, {}), step
        place[key] = value
    return found
