"""Parquet: plain tables with a map of columns, and LeRobot's v3 folders of robot episodes, observations as state vectors.

A LeRobot folder has `meta/info.json` and `data/chunk-*/file-*.parquet`, a row a frame; its frames have no successor of their own, so
that the last frame of each episode only ends it. Episodes without `next.done` and `next.reward` count as truncated and unrewarded.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from polopt.data.dataset import DataError, Dataset
from polopt.data.formats import common
from polopt.data.layout import NEEDED, find_columns

LEROBOT = "v3"
FACTS = b"polopt"


def read(path: Path, columns: dict[str, str] | None) -> tuple[dict, dict]:
    """(columns by our names, what the file says of the spaces)."""
    _parquet(path)
    if path.is_dir():
        return _read_lerobot(path, columns)
    table = _table(path)
    present = list(table.column_names)
    stored = (table.schema.metadata or {}).get(FACTS)
    if stored and not columns:
        facts = common.known(json.loads(stored))
        shapes = json.loads(table.schema.metadata[FACTS + b".shapes"])
        return common.nested({name: _array(path, table, name).reshape(len(table), *shapes[name]) for name in present}), facts
    named = find_columns(str(path), present, columns, NEEDED)
    return {name: _array(path, table, column) for name, column in named.items()}, {}


def write(dataset: Dataset, path: Path) -> None:
    """One table, arrays with more than one axis as lists."""
    parquet = _parquet(path)
    import pyarrow

    arrays = {name: np.asarray(x) for name, x in common.flat(dataset).items()}
    table = pyarrow.table({name: pyarrow.array(x if x.ndim == 1 else list(x.reshape(len(x), -1))) for name, x in arrays.items()})
    shapes = {name: x.shape[1:] for name, x in arrays.items()}
    metadata = {FACTS: json.dumps(common.facts(dataset)), FACTS + b".shapes": json.dumps(shapes)}
    parquet.write_table(table.replace_schema_metadata(metadata), path)


def _read_lerobot(path: Path, columns) -> tuple[dict, dict]:
    import pyarrow

    info = json.loads((path / "meta" / "info.json").read_text())
    version = str(info.get("codebase_version", ""))
    if not version.startswith(LEROBOT):
        raise DataError(f"{path} is a LeRobot dataset of version {version or 'unknown'}, but {LEROBOT}.0 is read; convert it by LeRobot's tool.")
    files = sorted((path / "data").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DataError(f"{path} has no data/chunk-*/file-*.parquet; download the dataset whole.")
    table = pyarrow.concat_tables([_table(file) for file in files], promote_options="default")
    if "index" in table.column_names:
        table = table.sort_by("index")
    if info.get("total_frames") not in (None, len(table)):
        raise DataError(f"{path} has {len(table)} frames, but its meta/info.json says {info['total_frames']}; download the dataset whole.")
    present = list(table.column_names)
    named = find_columns(str(path), present, columns, ("observation", "action", "episode"))
    notes: tuple[str, ...] = ()
    found = {name: _array(path, table, column) for name, column in named.items()}
    if "reward" not in found:
        found["reward"] = np.zeros(len(table), np.float32)
        notes = ("The frames have no reward; it is taken to be 0, which only cloning can learn from.",)
    return found, {"name": path.name, "notes": notes}


def _table(path: Path):
    import pyarrow

    try:
        return _parquet(path).read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is cut off or damaged ({reason}); copy or download it again.") from error


def _parquet(path):
    return common.need("pyarrow.parquet", f"Reading or writing {path}")


def _array(path, table, column: str) -> np.ndarray:
    values = table.column(column).combine_chunks().to_numpy(zero_copy_only=False)
    if values.dtype != object:
        return values
    widths = {np.shape(v) for v in values}
    if len(widths) > 1:
        first = next(i for i, v in enumerate(values) if np.shape(v) != np.shape(values[0]))
        raise DataError(f"In {path}, row {first}, the {column} has the shape {np.shape(values[first])}, unlike row 0 with {np.shape(values[0])}.")
    return np.stack([np.asarray(v) for v in values])
