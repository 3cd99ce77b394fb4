"""NumPy's npz: ours, OGBench's, and anybody's with a map of columns.

Ours holds the arrays of a dataset by their names, those of a dict by dotted names, and `polopt`, the spaces as JSON. OGBench's has
`observations`, `actions` and `terminals`, no rewards, and as many observations as states: the last row of a trajectory holds its last
state and an action that was never taken.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from polopt.data.dataset import DataError, Dataset
from polopt.data.formats import common
from polopt.data.layout import NEEDED, find_columns


def read(path: Path, columns: dict[str, str] | None, spool: Path | None = None) -> tuple[dict, dict]:
    """(columns by our names, what the file says of the spaces); mapped from files in the folder `spool`, if one is given."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # opened here, so that it is closed whatever is wrong with it
            arrays = {name: file[name] if spool is None else _unpacked(file.zip, name, spool) for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        if "pickle" in str(error):
            raise DataError(f"{path} holds Python objects, such as rows of different shapes, rather than numbers; write plain arrays.") from error
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is cut off or damaged ({reason}); copy or download it again.") from error
    if "polopt" in arrays and not columns:
        facts = json.loads(str(arrays.pop("polopt")))
        return common.nested(arrays), common.known(facts)
    if not columns and {"observations", "actions", "terminals"} <= set(arrays) and not {"rewards", "next_observations"} & set(arrays):
        note = "The file has no rewards (OGBench's are those of a task that is chosen later); they are taken to be 0."
        found = {"observation": arrays["observations"], "action": arrays["actions"], "reward": np.zeros(len(arrays["actions"]), np.float32)}
        return {**found, "truncated": arrays["terminals"]}, {"notes": (note,)}
    named = find_columns(str(path), list(arrays), columns, NEEDED)
    return {name: arrays[column] for name, column in named.items()}, {}


def _unpacked(archive: zipfile.ZipFile, name: str, spool: Path) -> np.ndarray:
    return np.load(archive.extract(f"{name}.npy", spool), mmap_mode="r", allow_pickle=False)


def write(dataset: Dataset, path: Path) -> None:
    np.savez_compressed(path, polopt=np.asarray(json.dumps(common.facts(dataset))), **{k: np.asarray(v) for k, v in common.flat(dataset).items()})
