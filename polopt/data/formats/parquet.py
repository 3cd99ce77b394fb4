"""Parquet: plain tables with a map of columns, and LeRobot's v3 folders of robot episodes, observations as state vectors.

A LeRobot folder has `meta/info.json` and `data/chunk-*/file-*.parquet`, a row a frame; its frames have no successor of their own, so
that the last frame of each episode only ends it. Episodes without `next.done` and `next.reward` count as truncated and unrewarded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from polopt.data.dataset import DataError, Dataset
from polopt.data.formats import common
from polopt.data.formats.arrays import laid_out
from polopt.data.layout import NEEDED, find_columns

LEROBOT = "v3"
FACTS = b"polopt"
ROWS = 50_000  # read at once


def read(path: Path, columns: dict[str, str] | None, spool: Path | None = None) -> tuple[dict, dict]:
    """(columns by our names, what the file says of the spaces); mapped from files in the folder `spool`, if one is given."""
    _parquet(path)
    if path.is_dir():
        return _read_lerobot(path, columns, spool)
    schema = _opened(path).schema_arrow
    stored = (schema.metadata or {}).get(FACTS)
    if stored and not columns:
        shapes = json.loads(schema.metadata[FACTS + b".shapes"])
        found = common.named(_columns([path], {name: name for name in schema.names}, spool))
        return common.nested({name: x.reshape(len(x), *shapes[name]) for name, x in found.items()}), common.known(json.loads(stored))
    return _columns([path], find_columns(str(path), schema.names, columns, NEEDED), spool), {}


def _columns(files: list[Path], named: dict[str, str], spool: Path | None) -> dict:
    """The columns of some files, one after another, by our names."""
    if spool is not None:
        return laid_out(_blocks(files, named), spool)
    blocks = list(_blocks(files, named))
    return {name: np.concatenate([block[name] for block in blocks]) for name in named}


def _blocks(files: list[Path], named: dict[str, str]) -> Iterator[dict]:
    """Some rows of the columns at a time."""
    import pyarrow

    shapes: dict[str, tuple] = {}
    for file in files:
        opened, row = _opened(file), 0
        try:
            for batch in opened.iter_batches(ROWS, columns=list(dict.fromkeys(named.values()))):
                yield {name: _array(file, batch, column, row, shapes) for name, column in named.items()}
                row += len(batch)
        except (pyarrow.ArrowInvalid, OSError, KeyError) as error:
            raise _damaged(file, error) from error


def write(dataset: Dataset, path: Path) -> None:
    """One table, arrays with more than one axis as lists."""
    parquet = _parquet(path)
    import pyarrow

    arrays = {name: np.asarray(x) for name, x in common.flat(dataset).items()}
    table = pyarrow.table({name: pyarrow.array(x if x.ndim == 1 else list(x.reshape(len(x), -1))) for name, x in arrays.items()})
    shapes = {name: x.shape[1:] for name, x in arrays.items()}
    metadata = {FACTS: json.dumps(common.facts(dataset)), FACTS + b".shapes": json.dumps(shapes)}
    parquet.write_table(table.replace_schema_metadata(metadata), path)


def _read_lerobot(path: Path, columns, spool: Path | None) -> tuple[dict, dict]:
    info = json.loads((path / "meta" / "info.json").read_text())
    version = str(info.get("codebase_version", ""))
    if not version.startswith(LEROBOT):
        raise DataError(f"{path} is a LeRobot dataset of version {version or 'unknown'}, but {LEROBOT}.0 is read; convert it by LeRobot's tool.")
    files = sorted((path / "data").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DataError(f"{path} has no data/chunk-*/file-*.parquet; download the dataset whole.")
    present = _opened(files[0]).schema_arrow.names
    named = find_columns(str(path), present, columns, ("observation", "action", "episode"))
    found = _columns(files, named | ({"index": "index"} if "index" in present else {}), spool)
    index = found.pop("index", None)
    if index is not None and (np.diff(index) < 0).any():
        if spool is not None:
            raise DataError(f"{path} has frames that are not in the order of their index; convert it to a file first, such as an .npz.")
        order = np.argsort(index, kind="stable")
        found = {name: column[order] for name, column in found.items()}
    frames = len(found["action"])
    if info.get("total_frames") not in (None, frames):
        raise DataError(f"{path} has {frames} frames, but its meta/info.json says {info['total_frames']}; download the dataset whole.")
    notes: tuple[str, ...] = ()
    if "reward" not in found:
        found["reward"] = np.zeros(frames, np.float32)
        notes = ("The frames have no reward; it is taken to be 0, which only cloning can learn from.",)
    return found, {"name": path.name, "notes": notes}


def _opened(path: Path):
    import pyarrow

    try:
        return _parquet(path).ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0].rstrip(".")
    return DataError(f"{path} is cut off or damaged ({reason}); copy or download it again.")


def _parquet(path):
    return common.need("pyarrow.parquet", f"Reading or writing {path}")


def _array(path, batch, column: str, first: int, shapes: dict[str, tuple]) -> np.ndarray:
    """A column of a batch that begins at a row; `shapes` holds those of the first row of each column."""
    values = batch.column(column).to_numpy(zero_copy_only=False)
    if values.dtype != object:
        return values
    expected = shapes.setdefault(column, np.shape(values[0]))
    odd = next((i for i, value in enumerate(values) if np.shape(value) != expected), None)
    if odd is not None:
        raise DataError(f"In {path}, row {first + odd}, the {column} has the shape {np.shape(values[odd])}, unlike row 0 with {expected}.")
    return np.stack([np.asarray(value) for value in values])
