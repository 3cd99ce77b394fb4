"""Checkpoints: the whole state, written atomically by Orbax, with a digest that tells a damaged one."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np


class CheckpointError(RuntimeError):
    """No checkpoint can be restored."""


def digest(tree) -> str:
    """A SHA-256 over the paths, types and bytes of a tree's arrays."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


class Checkpoints:
    """The checkpoints of a run: the newest `keep` of them, each a folder named by its iteration.

    A checkpoint holds everything, the best policy so far included, so that keeping the newest keeps the best too.
    """

    def __init__(self, directory: Path, keep: int = 3):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax reports every save at length, and every file that it cannot read
        self._ocp = ocp
        self._directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self._directory, options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        )

    def iterations(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, iteration: int, tree, meta: dict[str, Any]) -> None:
        """Write a checkpoint; `meta` must be JSON. Whatever happens, the earlier ones stay whole. OSError when it cannot be written."""
        ocp = self._ocp
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave({**meta, "digest": digest(tree)}))
        try:
            if iteration in self.iterations():  # a damaged one, which training has come past again
                shutil.rmtree(self._directory / str(iteration))
                self._manager.reload()
            self._manager.save(iteration, args=args, force=True)
            self._manager.wait_until_finished()
        except Exception as error:
            for part in self._directory.glob(f"{iteration}.*"):  # what is not whole only takes space
                shutil.rmtree(part, ignore_errors=True)
            reason = _reason(error)
            if isinstance(error, OSError) or reason is None:
                raise
            raise OSError(reason) from error  # TensorStore has kinds of its own for a full disk

    def restore(self, like) -> tuple[Any, dict[str, Any], list[str]]:
        """The newest sound checkpoint as (tree shaped as `like`, meta, notes); the notes name those that were damaged."""
        ocp = self._ocp
        damaged = []
        for iteration in reversed(self.iterations()):
            folder = self._directory / str(iteration)
            try:
                args = ocp.args.Composite(tree=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
                found = self._manager.restore(iteration, args=args)
                if digest(found.tree) != found.meta["digest"]:
                    raise ValueError("its contents do not match their digest")
            except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged folder
                damaged.append(f"{folder} is damaged ({_first_line(error)})")
                continue
            notes = [f"The checkpoint {'; '.join(damaged)}: the one before it, {folder.name}, is used."] if damaged else []
            return found.tree, found.meta, notes
        if not damaged:
            raise CheckpointError(f"There is no checkpoint in {self._directory}: the run stopped before its first one. Resume it to start it again.")
        raise CheckpointError(
            f"No checkpoint can be restored: {'; '.join(damaged)}. Bring the folder back from a copy, or train again into another one."
        )

    def close(self) -> None:
        self._manager.close()


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = text.rstrip(".")
    return text if len(text) <= 160 else text[:157] + "..."


def _reason(error: Exception) -> str | None:
    """Why a checkpoint could not be written, where the message has the words of the operating system."""
    words = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO))
    return next((word for word in words if word in str(error)), None)
