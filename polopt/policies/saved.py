"""Trained policies by the folder of their run, for what is built on top of them.

Opening a run is the business of `polopt.run`, which stands above the policies; it says here how, when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_opener: list[Callable[[str], Any]] = []


def opened_by(opener: Callable[[str], Any]) -> Callable[[str], Any]:
    """Mark the function from a run's folder to its policy, a pytree of NumPy arrays."""
    _opener[:] = [opener]
    return opener


def open_policy(directory: str) -> Any:
    """The policy of a run. ValueError says why there is none."""
    if not _opener:
        raise ValueError(f"The run {directory} cannot be opened yet; import polopt.run first, or train by polopt.fit or the command line.")
    if not Path(directory).is_dir():
        raise ValueError(f"There is no run in {directory}; give the folder that `polopt train` named.")
    return _opener[0](directory)
