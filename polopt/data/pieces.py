"""From a file of logged transitions to a folder of arrays, by pieces of whole episodes, so that neither need fit into memory.

Each column of the file is first laid out on the disk beside the folder, for as long as it takes. Rewards, ends and actions pass through memory
whole; observations do not.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import jax
import numpy as np

from polopt.data import files
from polopt.data.formats import arrays
from polopt.data.layout import assemble, settled

ROWS = 200_000  # of a piece, about: an episode is not cut


def convert(source: str | os.PathLike, target: str | os.PathLike, *, columns: dict[str, str] | None = None, rows: int = ROWS, **given) -> int:
    """Write the data of `source` as the folder `target`, and say how many transitions it has. `columns` and `given` are those of `files.read`."""
    name, target = os.fspath(source), Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with arrays.Folder(target) as folder, tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as spool:
        found, facts = files.columns_of(name, columns, Path(spool))
        facts |= {key: value for key, value in given.items() if value is not None}
        found, facts = settled(name, found, **facts)
        start, episode = 0, 0
        for end, episodes in _pieces(found["terminated"] | found["truncated"], rows):
            piece = assemble(name, jax.tree.map(lambda x, s=slice(start, end): x[s], found), **facts, first_episode=episode)
            folder.add(piece)
            start, episode, count = end, episode + episodes, count + len(piece)
    return count


def _pieces(ended, rows: int):
    """(the row behind each piece, how many episodes it has)."""
    ends = np.flatnonzero(ended) + 1
    start = first = 0
    while first < len(ends):
        last = min(int(np.searchsorted(ends, start + rows)), len(ends) - 1)
        yield int(ends[last]), last + 1 - first
        start, first = ends[last], last + 1
