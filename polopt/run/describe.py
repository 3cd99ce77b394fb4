"""What a dataset holds, in a picture and in words, and what in it looks wrong."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from polopt.core import spaces
from polopt.data.dataset import Dataset

MANY_CLIPPED = 0.01  # share of transitions with an action on a bound from which on it is worth a word
SAME_PLACE = 1e-4  # how far the next row may lie from a step's successor, in parts of what is seen, and still be it


def warnings(dataset: Dataset) -> list[str]:
    """A sentence for each thing that a reader should know before learning from the data."""
    return [*dataset.notes, *_clipped(dataset), *_unflagged(dataset), *_time_limits(dataset), *_constant(dataset)]


def _clipped(dataset: Dataset) -> list[str]:
    space = dataset.action_space
    if not isinstance(space, spaces.Box):
        return []
    low, high = (np.asarray(bound) for bound in space.bounds())
    action = np.asarray(dataset.action)
    share = float(np.mean(((action <= low) | (action >= high)).reshape(len(action), -1).any(axis=1)))
    if share < MANY_CLIPPED:
        return []
    return [f"{share:.1%} of the transitions have an action on a bound: it may have been clipped, and is then not what the policy drew."]


def _unflagged(dataset: Dataset) -> list[str]:
    """Steps whose successor is not where the next row begins, although no end is flagged."""
    after, following = (np.asarray(dataset.vectors(tree)) for tree in (dataset.next_observation, dataset.observation))
    if len(dataset) < 2 or not following.shape[1]:
        return []
    scale = np.maximum(np.ptp(following, axis=0), 1e-12)
    jump = (np.abs(after[:-1] - following[1:]) > SAME_PLACE * scale).any(axis=1) & ~np.asarray(dataset.ended)[:-1]
    rows = np.flatnonzero(jump)
    if not rows.size:
        return []
    episodes = dataset.episodes()
    episode = int(np.searchsorted(episodes.end, rows[0], side="right"))
    return [
        f"At {rows.size} {'step' if rows.size == 1 else 'steps'} the successor is not where the next row begins (first in episode {episode}, step "
        f"{rows[0] - episodes.start[episode]}): ends of episodes are not flagged, perhaps truncation. Name the column that tells them."
    ]


def _time_limits(dataset: Dataset) -> list[str]:
    """Terminations that are all after equally many steps."""
    episodes = dataset.episodes()
    lengths = episodes.lengths[np.asarray(dataset.terminated)[episodes.end - 1]]
    longest = int(episodes.lengths.max())
    same = int(np.sum(lengths == longest))
    if np.asarray(dataset.truncated)[episodes.end[:-1] - 1].any() or same < 3 or longest == 1:
        return []
    return [f"{same} episodes terminate after exactly {longest} steps, the most there are, and none is truncated: is that a time limit?"]


def _constant(dataset: Dataset) -> list[str]:
    found = []
    for what, columns in (("observation", dataset.vectors()), ("action", _columns(dataset.action)), ("reward", _columns(dataset.reward))):
        columns = np.asarray(columns)
        still = np.flatnonzero(np.ptp(columns, axis=0) == 0) if columns.shape[1] else np.array([])
        if still.size:
            which = "" if what == "reward" else f" {'number' if still.size == 1 else 'numbers'} {', '.join(map(str, still[:8]))}"
            more = f" and {still.size - 8} more" if still.size > 8 else ""
            found.append(f"The {what}{which}{more} never {'change' if still.size > 1 else 'changes'} in {len(dataset):,} steps.")
    return found


def _columns(tree) -> np.ndarray:
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(len(x), -1).astype(np.float64) for x in leaves], axis=1)


def summary(dataset: Dataset) -> list[str]:
    """The numbers, a line each."""
    episodes = dataset.episodes()
    terminated = int(np.sum(np.asarray(dataset.terminated)[episodes.end - 1]))
    size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(dataset)) / 1e6
    lines = [
        f"{dataset.name}: {len(dataset):,} transitions in {len(episodes.end):,} episodes ({size:.1f} MB)",
        f"observations  {dataset.observation_space}",
        f"actions       {dataset.action_space}",
        f"ends          {terminated:,} terminated, {len(episodes.end) - terminated:,} truncated",
        f"returns       {_spread(episodes.returns)}",
        f"lengths       {_spread(episodes.lengths)}",
        f"rewards       {_spread(np.asarray(dataset.reward))}",
    ]
    if dataset.reference is not None:
        low, high = dataset.reference
        score = float(np.mean(dataset.score(episodes.returns)))
        lines.append(f"reference     random {low:.4g}, expert {high:.4g}; normalised score of the data {score:.1f}")
    return lines


def _spread(x: np.ndarray) -> str:
    low, middle, high = np.quantile(x, (0.25, 0.5, 0.75))
    return f"mean {np.mean(x):.4g}, from {np.min(x):.4g} to {np.max(x):.4g}, quartiles {low:.4g}, {middle:.4g}, {high:.4g}"


def picture(dataset: Dataset, path: Path) -> Path:
    """A PNG: the return of every episode in order, the spread of returns, where the states lie, and the actions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    (order, spread), (states, actions) = figure.subplots(2, 2)
    episodes, rows = dataset.episodes(), np.linspace(0, len(dataset) - 1, min(len(dataset), 20_000)).astype(int)
    order.plot(episodes.returns, ".", ms=4, color="#0072b2")
    order.set(title="return of each episode, in the order of the data", xlabel="episode", ylabel="return")
    spread.hist(episodes.returns, bins=min(40, max(5, len(episodes.returns))), color="#0072b2")
    spread.set(title="returns", xlabel="return", ylabel="episodes")
    vector = np.asarray(dataset.vectors())
    if vector.shape[1]:
        plane, names = _plane(vector)
        drawn = states.scatter(*plane[rows].T, c=np.asarray(dataset.reward)[rows], s=3, cmap="viridis", linewidths=0)
        figure.colorbar(drawn, ax=states, label="reward")
        states.set(title="states", xlabel=names[0], ylabel=names[1])
    columns = _columns(dataset.action)
    if isinstance(dataset.action_space, spaces.Box):
        for i, column in enumerate(columns.T[:8]):
            actions.hist(column, bins=50, histtype="step", label=f"number {i}")
        if columns.shape[1] > 1:
            actions.legend(frameon=False, fontsize=8)
    else:
        values, counts = np.unique(columns, axis=0, return_counts=True)
        actions.bar([", ".join(f"{x:g}" for x in value) for value in values[:30]], counts[:30], color="#0072b2")
    actions.set(title="actions", xlabel="action", ylabel="transitions")
    for axes in (order, spread, states, actions):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(fontsize=11, ha="left", x=0)
    figure.savefig(path, format="png", dpi=130)
    return path


def _plane(vector: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Two numbers a state: the observation's where it has at most two, else its two main directions."""
    if vector.shape[1] <= 2:
        return np.column_stack([vector, np.zeros(len(vector))])[:, :2], ("number 0", "number 1")
    centred = (vector - vector.mean(0)) / np.maximum(vector.std(0), 1e-8)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return centred @ directions[:, [-1, -2]], ("first main direction", "second main direction")
