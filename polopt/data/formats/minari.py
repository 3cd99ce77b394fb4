"""Minari: episodes of T steps with T + 1 observations, which may be dicts, in the local store or in a folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from polopt.core import spaces
from polopt.data.dataset import DataError, Dataset
from polopt.data.formats import common
from polopt.data.formats.arrays import laid_out


def read(name: str, spool: Path | None = None) -> tuple[dict, dict]:
    """(columns by our names, the spaces) of a dataset by its id in the local store, or by its folder; mapped from files in `spool`, if given."""
    minari = common.need("minari", f"Reading {name}")
    folder = folder_of(name)
    if folder is None:
        known = sorted(minari.list_local_datasets())
        have = f"there are {', '.join(known[:5])}{' and others' if len(known) > 5 else ''}" if known else "there is none at all"
        raise DataError(f"There is no Minari dataset {name!r} in the local store ({have}); get it with: minari download {name}.")
    try:
        data = minari.MinariDataset(folder)
        observation_space, action_space = (spaces.from_gymnasium(s) for s in (data.observation_space, data.action_space))
        rows = _transitions(name, data, observation_space)
        if spool is None:
            rows = list(rows)
            columns = jax.tree.map(lambda *parts: np.concatenate(parts), *rows) if rows else {}
        else:
            columns = laid_out(rows, spool)
    except DataError:
        raise
    except TypeError as error:
        raise DataError(f"The Minari dataset {name} cannot be used: {error}") from error
    except (OSError, KeyError, ValueError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(f"The Minari dataset {name} is cut off or damaged ({reason}); download it again.") from error
    if not columns:
        raise DataError(f"The Minari dataset {name} is empty: it holds no transition.")
    metadata = data.storage.metadata
    reference = tuple(metadata[key] for key in ("ref_min_score", "ref_max_score") if metadata.get(key) is not None)
    facts = {"name": name, "observation_space": observation_space, "action_space": action_space}
    return columns, {**facts, "reference": tuple(map(float, reference)) if len(reference) == 2 else None}


def _transitions(name: str, data, observation_space: spaces.Space) -> Iterator[dict]:
    """The columns of one episode after another."""
    first = None
    for index, episode in enumerate(data.iterate_episodes()):
        steps = len(episode.rewards)
        observation = _known(observation_space, episode.observations)
        for path, leaf in jax.tree_util.tree_leaves_with_path(observation):
            where = f"In {name}, episode {index}, the observations{jax.tree_util.keystr(path)}"
            if len(leaf) != steps + 1:
                raise DataError(f"{where} are {len(leaf)}, but {steps + 1}, one more than its rewards, are expected.")
            if first and np.shape(leaf)[1:] != _leaf(first["observation"], path).shape[1:]:
                raise DataError(f"{where} have the shape {np.shape(leaf)[1:]}, unlike those of episode 0; spaces cannot be mixed in one dataset.")
        if steps == 0:
            continue
        before, after = (jax.tree.map(lambda x, s=s: np.asarray(x)[s], observation) for s in (slice(0, -1), slice(1, None)))
        terminated, truncated = (np.asarray(x, bool).copy() for x in (episode.terminations, episode.truncations))
        truncated[-1] |= not terminated[-1]  # where the recording was stopped
        row = {"observation": before, "action": np.asarray(episode.actions), "reward": np.asarray(episode.rewards, np.float32)}
        row |= {"next_observation": after, "terminated": terminated, "truncated": truncated}
        first = first or row
        yield row


def folder_of(name: str) -> Path | None:
    """The folder with the data of a path or an id; None where there is none."""
    path = Path(name)
    candidates = [path, path / "data"]
    if not path.exists():
        from minari.storage import get_dataset_path

        candidates.append(Path(get_dataset_path(name)) / "data")
    return next((c for c in candidates if (c / "metadata.json").is_file()), None)


def _known(space: spaces.Space, value):
    """Only what the space names, so that additional records do no harm."""
    if isinstance(space, spaces.Dict) and isinstance(value, dict):
        return {name: _known(inner, value[name]) for name, inner in space.items}
    return np.asarray(value)


def _leaf(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def write(dataset: Dataset, name: str) -> None:
    """Into the local store, under an id such as `mine/hopper-v0`."""
    minari = common.need("minari", f"Writing {name}")
    buffers = []
    for start, end, *_ in zip(*dataset.episodes()):
        rows = slice(start, end)
        both = dataset.observation, dataset.next_observation
        observations = jax.tree.map(lambda x, y, s=rows: np.concatenate([np.asarray(x)[s], np.asarray(y)[s][-1:]]), *both)
        arrays = [np.asarray(x)[rows] for x in (dataset.action, dataset.reward, dataset.terminated, dataset.truncated)]
        names = ("actions", "rewards", "terminations", "truncations")
        buffers.append(minari.data_collector.EpisodeBuffer(observations=observations, **dict(zip(names, arrays))))
    described = {"observation_space": to_gymnasium(dataset.observation_space), "action_space": to_gymnasium(dataset.action_space)}
    reference = dict(zip(("ref_min_score", "ref_max_score"), dataset.reference or ()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of authors and links that nobody has given
            made = minari.create_dataset_from_buffers(name, buffers, description=dataset.name, **described)
        made.storage.update_metadata(reference)  # Minari itself keeps these only of an environment that it can make
    except ValueError as error:
        raise DataError(f"The Minari dataset {name} cannot be written ({str(error).rstrip('.')}).") from error


def to_gymnasium(space: spaces.Space):
    """Gymnasium's space of the same values."""
    from gymnasium import spaces as theirs

    if isinstance(space, spaces.Dict):
        return theirs.Dict({name: to_gymnasium(inner) for name, inner in space.items})
    if isinstance(space, spaces.Discrete):
        return theirs.Discrete(space.n, dtype=np.int32)
    if isinstance(space, spaces.MultiDiscrete):
        return theirs.MultiDiscrete(space.nvec, dtype=np.int32)
    if isinstance(space, spaces.MultiBinary):
        return theirs.MultiBinary(space.n)
    low, high = space.bounds()
    return theirs.Box(low.astype(space.dtype), high.astype(space.dtype), space.shape, np.dtype(space.dtype).type)
