"""From the columns of a file to a dataset: names, missing successors, ends of episodes, spaces, and what cannot be right."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from polopt.core import spaces
from polopt.data.dataset import DataError, Dataset

ROUNDING = 1e-4  # how far beyond its bound an action may lie, in parts of the box, and still be taken for the bound

# What files call each column, ours first. `episode` numbers the episodes; where it changes, one ends.
NAMES = {
    "observation": ("observation", "observations", "obs", "state", "states", "observation.state"),
    "action": ("action", "actions", "act"),
    "reward": ("reward", "rewards", "next.reward"),
    "next_observation": ("next_observation", "next_observations", "next_obs", "next_state", "next_states"),
    "terminated": ("terminated", "terminations", "terminals", "terminal", "next.done", "done", "dones"),
    "truncated": ("truncated", "truncations", "timeouts", "timeout"),
    "episode": ("episode", "episode_index", "episode_id"),
}
NEEDED = ("observation", "action", "reward")


def find_columns(source: str, present: list[str], given: dict[str, str] | None = None, needed=NEEDED) -> dict[str, str]:
    """Which column of a file holds what, by our names; `given` goes before the names that are usual."""
    given = given or {}
    unknown = [name for name in given if name not in NAMES]
    if unknown:
        raise DataError(f"There is no column {unknown[0]!r} to be named; known are {', '.join(NAMES)}.")
    absent = [column for column in given.values() if column not in present]
    if absent:
        raise DataError(f"{source} has no column {absent[0]!r}; it has {', '.join(sorted(present)) or 'none'}.")
    found = dict(given)
    for name, usual in NAMES.items():
        match = next((column for column in usual if column in present), None)
        if name not in found and match:
            found[name] = match
    missing = [name for name in needed if name not in found]
    if missing:
        raise DataError(
            f"{source} has no column for the {missing[0]}; it has {', '.join(sorted(present)) or 'none'}. "
            f"Say which one it is: polopt data convert {source} --columns {missing[0]}=NAME --to data.npz."
        )
    return found


def assemble(
    source: str,
    columns: dict[str, Any],
    *,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
    name: str | None = None,
    reference: tuple[float, float] | None = None,
    notes: tuple[str, ...] = (),
    first_episode: int = 0,
) -> Dataset:
    """A checked dataset from columns by our names, each (n, ...) in time order; DataError says what is wrong and where.

    Without `next_observation` the successor is the next row's observation. A truncated episode's last row then has none: it is left
    out, and the row before is the truncated one. Spaces that are not given are read off the numbers, and a note says so.
    first_episode: how many episodes lie before these columns, where they are a piece of something longer.
    """
    columns, known = settled(source, columns, observation_space=observation_space, action_space=action_space, notes=notes)
    observation_space, action_space = known["observation_space"], known["action_space"]
    terminated, truncated = columns["terminated"], columns["truncated"]
    rows = len(terminated)
    reward = _numbers(source, "reward", columns["reward"])
    if reward.ndim == 2 and reward.shape[1] == 1:
        reward = reward[:, 0]
    if reward.ndim != 1:
        raise DataError(f"In {source}, the reward has the shape {reward.shape}, but one number a step, ({rows},), is expected.")
    where = _Where(source, terminated | truncated, first_episode)
    observation = _fit(where, "observation", observation_space, columns["observation"])
    action = _fit(where, "action", action_space, columns["action"])
    following = columns.get("next_observation")
    if following is not None:
        following = _fit(where, "next_observation", observation_space, following)
    _finite(where, "reward", reward)
    action = _inside(where, action_space, action)
    keep = np.ones(rows, bool)
    if following is None:
        successor = np.arange(rows) + ~(terminated | truncated)  # a terminal row has none, and its own stands for it
        following = jax.tree.map(lambda x: x[successor], observation)
        keep = ~truncated | terminated
        truncated = np.append(truncated[1:] & ~terminated[1:], False) & keep & ~terminated
        if not keep.any():
            raise DataError(f"{source} holds no whole transition: every episode is cut after its first step.")
    parts = (observation, action, reward.astype(np.float32), following, terminated, truncated)
    parts = parts if keep.all() else jax.tree.map(lambda x: x[keep], parts)
    return Dataset(*parts, observation_space, action_space, name or source, reference, known["notes"])


def settled(source: str, columns: dict[str, Any], *, observation_space=None, action_space=None, notes=(), **facts) -> tuple[dict, dict]:
    """The columns with their ends as two flags, and the facts with both spaces: what a piece of them cannot tell by itself."""
    columns, notes = dict(columns), list(notes)
    rows = _rows(source, columns)
    columns["terminated"], columns["truncated"] = _ends(source, columns, rows, notes)
    columns.pop("episode", None)
    observation_space = observation_space or _observation_space(columns["observation"])
    action_space = action_space or _action_space(source, columns["action"], notes)
    return columns, {**facts, "observation_space": observation_space, "action_space": action_space, "notes": tuple(notes)}


class _Where:
    """Says where a row lies."""

    def __init__(self, source: str, ended, first_episode: int):
        self.source, self.ends, self.first = source, np.flatnonzero(ended), first_episode

    def __call__(self, row: int) -> str:
        episode = int(np.searchsorted(self.ends, row))
        start = self.ends[episode - 1] + 1 if episode else 0
        return f"In {self.source}, episode {self.first + episode}, step {row - start}"


def _rows(source: str, columns: dict[str, Any]) -> int:
    counts = {}
    for name, column in columns.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(column):
            if np.ndim(leaf) == 0:
                raise DataError(f"In {source}, the {name} is one number, but one entry a step is expected.")
            counts[name + jax.tree_util.keystr(path)] = len(leaf)
    (first, rows), *others = counts.items()
    for name, count in others:
        if count != rows:
            raise DataError(f"In {source}, {name} has {count} rows, but {first} has {rows}; a row a step is expected in each. Is the file cut off?")
    if rows == 0:
        raise DataError(f"{source} is empty: it holds no transition.")
    return rows


def _numbers(source: str, name: str, column) -> np.ndarray:
    array = np.asarray(column)
    if array.dtype.kind not in "biuf":
        raise DataError(f"In {source}, the {name} holds {array.dtype} rather than numbers; rows of different shapes, or text, cannot be learnt from.")
    return array


def _ends(source: str, columns, rows: int, notes: list[str]):
    """terminated and truncated (rows,), the last row always one of them."""

    def flags(name):
        array = np.zeros(rows, bool) if columns.get(name) is None else _numbers(source, name, columns[name]).reshape(rows, -1)
        if array.size != rows or not np.isin(array, (0, 1)).all():
            raise DataError(f"In {source}, {name} must be one flag a step, 0 or 1; name the right column: polopt data convert --columns {name}=NAME.")
        return array.reshape(rows).astype(bool)

    terminated, truncated = flags("terminated"), flags("truncated")
    if columns.get("episode") is not None:
        episode = np.asarray(columns["episode"]).reshape(rows)
        truncated |= np.append(episode[1:] != episode[:-1], True) & ~terminated
    if not (terminated | truncated).any():
        raise DataError(
            f"{source} has no episode ends: neither terminated nor truncated is ever true in {rows} steps. "
            f"Name the column that tells the ends: polopt data convert {source} --columns truncated=NAME (or episode=NAME) --to data.npz."
        )
    if not (terminated[-1] or truncated[-1]):
        truncated[-1] = True
        notes.append("The last episode has no end in the file; it counts as truncated there.")
    return terminated, truncated


def _observation_space(column) -> spaces.Space:
    if isinstance(column, dict):
        return spaces.Dict(tuple((name, _observation_space(inner)) for name, inner in column.items()))
    array = np.asarray(column)
    if array.dtype == np.uint8:
        return spaces.Box(0.0, 255.0, array.shape[1:], "uint8")
    return spaces.Box(-np.inf, np.inf, array.shape[1:])


def _action_space(source: str, column, notes: list[str]) -> spaces.Space:
    array = _numbers(source, "action", column)
    if array.dtype.kind in "biu":
        flat = array.reshape(len(array), -1)
        if flat.shape[1] == 1:
            notes.append(f"The number of actions is not in the file; it is taken to be {int(flat.max()) + 1}, one more than the largest seen.")
            return spaces.Discrete(int(flat.max()) + 1)
        return spaces.MultiDiscrete(tuple(int(x) + 1 for x in flat.max(axis=0)))
    size = float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))
    bound = 1.0 if size <= 1 + ROUNDING else size
    notes.append(f"The bounds of the actions are not in the file; they are taken to be -{bound:g} and {bound:g}. Give the environment to know them.")
    return spaces.Box(-bound, bound, array.shape[1:])


def _fit(where: _Where, name: str, space: spaces.Space, column):
    """A column in the shape and type of its space."""
    if isinstance(space, spaces.Dict):
        if not isinstance(column, dict) or set(column) != {key for key, _ in space.items}:
            given = ", ".join(column) if isinstance(column, dict) else "one array"
            raise DataError(f"In {where.source}, the {name} is {given}, but the space has {', '.join(key for key, _ in space.items)}.")
        return {key: _fit(where, f"{name}.{key}", inner, column[key]) for key, inner in space.items}
    if isinstance(column, dict):
        raise DataError(f"In {where.source}, the {name} is a dict of {', '.join(column)}, but the space is {space}.")
    array = _numbers(where.source, name, column)
    shape = array.shape[1:]
    if shape != space.shape and array[0].size == int(np.prod(space.shape)) and len(shape) <= 1 and len(space.shape) <= 1:
        array = array.reshape(len(array), *space.shape)  # (n,) for (n, 1) and back
    if array.shape[1:] != space.shape:
        raise DataError(f"In {where.source}, the {name} of a step has the shape {shape}, but the space says {space.shape}. Is it of another one?")
    _finite(where, name, array)
    if not isinstance(space, spaces.Box) and array.dtype.kind == "f":
        part = np.flatnonzero((array % 1 != 0).reshape(len(array), -1).any(axis=1))
        if part.size:
            raise DataError(f"{where(part[0])}, the {name} is {array[part[0]]}, but {space} takes whole numbers.")
    return np.ascontiguousarray(array, space.dtype)


def _finite(where: _Where, name: str, array) -> None:
    if array.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if bad.size:
        more = f", and {bad.size - 1} more steps" if bad.size > 1 else ""
        raise DataError(f"{where(bad[0])}, the {name} is not finite{more}; leave that episode out of the file.")


def _inside(where: _Where, space: spaces.Space, action):
    """The actions, checked against their space; what exceeds a bound by rounding alone is brought to it."""
    if isinstance(space, spaces.Box):
        low, high = (np.asarray(bound) for bound in space.bounds())
        with np.errstate(invalid="ignore"):
            slack = np.where(np.isfinite(high - low), ROUNDING * (high - low), 0)
        outside, words = (action < low - slack) | (action > high + slack), f"the box from {low.min():g} to {high.max():g}"
    elif isinstance(space, spaces.Dict):
        raise DataError(f"{where.source} has actions of several parts, which no method takes; make one array of them.")
    else:
        most = {spaces.Discrete: lambda: space.n, spaces.MultiDiscrete: lambda: np.array(space.nvec), spaces.MultiBinary: lambda: 2}[type(space)]()
        outside, words = (action < 0) | (action >= most), f"the whole numbers from 0 to {np.max(most) - 1}"
    bad = np.flatnonzero(outside.reshape(len(action), -1).any(axis=1))
    if bad.size:
        raise DataError(
            f"{where(bad[0])}, the action is {_short(action[bad[0]])}, outside {words} ({bad.size} such steps in all). "
            "Give the environment that the data come from, or bring the actions into its bounds."
        )
    return np.clip(action, low, high) if isinstance(space, spaces.Box) else action


def _short(value) -> str:
    return np.array2string(np.asarray(value), precision=4, threshold=8)
