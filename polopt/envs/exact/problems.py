"""Markov decision processes by name, and random ones.

The fixed ones are built on NumPy and given as JAX arrays of the default type (float64 inside `jax.enable_x64(True)`); `random_mdp` is pure and
may be vmapped over keys. A reward that depends on where a step leads is paid as its mean over the successors, r(s, a).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.envs.exact.tabular import TabularMDP, as_array


def _mdp(transition, reward, start, discount, *, terminal=None, cost=None, observation=None) -> TabularMDP:
    states = np.shape(transition)[-1]
    first = np.eye(states)[start] if np.ndim(start) == 0 else start
    return TabularMDP(
        as_array(transition),
        as_array(reward),
        as_array(first),
        discount,
        None if terminal is None else jnp.asarray(np.asarray(terminal, bool)),
        None if cost is None else as_array(cost),
        None if observation is None else jnp.asarray(np.asarray(observation, np.int32)),
    )


def random_mdp(
    key: Array,
    states: int,
    actions: int,
    *,
    discount: float = 0.95,
    concentration: float = 0.3,
    reward: str = "normal",
    start: str = "uniform",
    objectives: int = 0,
    costs: int = 0,
    stages: int | None = None,
) -> TabularMDP:
    """Kernels Dirichlet(concentration), independent rewards.

    reward:      "normal": N(0, 1), or "uniform": U[0, 1]; for each objective too. Costs are always U[0, 1].
    start:       "uniform" over states, or "first": state 0.
    objectives:  0 for a scalar reward.
    stages:      how many steps, if transition and reward shall differ from step to step (for `finite`).
    """
    _one_of("reward", reward, ("normal", "uniform"))
    _one_of("start", start, ("uniform", "first"))
    k_transition, k_reward, k_cost = jax.random.split(key, 3)
    table = (*([stages] if stages else []), states, actions)
    transition = jax.random.dirichlet(k_transition, jnp.full(states, concentration, float), table)
    draw = jax.random.normal if reward == "normal" else jax.random.uniform
    first = jnp.full(states, 1 / states, float) if start == "uniform" else jnp.eye(states, dtype=float)[0]
    return TabularMDP(
        transition,
        draw(k_reward, (*table, *([objectives] if objectives else []))),
        first,
        discount,
        cost=jax.random.uniform(k_cost, (states, actions, costs)) if costs else None,
    )


def chain(states: int = 5, *, slip: float = 0.1, small: float = 0.1, large: float = 1.0, discount: float = 0.95) -> TabularMDP:
    """A row of states, start in the first. Action 0 goes back to the first and earns `small`; action 1 goes one on, and earns `large` in the last,
    which it does not leave. With probability `slip` the other action happens. (After the chain of Dearden et al., 1998.)"""
    intended, earned = np.zeros((states, 2, states)), np.zeros((states, 2))
    intended[:, 0, 0] = 1
    intended[np.arange(states), 1, np.minimum(np.arange(states) + 1, states - 1)] = 1
    earned[:, 0], earned[-1, 1] = small, large
    other = [1, 0]
    return _mdp((1 - slip) * intended + slip * intended[:, other], (1 - slip) * earned + slip * earned[:, other], 0, discount)


def permuted_chain(states: int = 8, *, slip: float = 0.1, discount: float = 0.9, seed: int = 0) -> TabularMDP:
    """A row of states with the moves forward, back and reset (to the first), under action names that are shuffled in every state.

    With probability `slip` a uniformly random one of the three moves happens. Start in the first state. There is no reward: utilities of the
    occupancy are meant (catalogue: general_utilities).
    """
    s = np.arange(states)
    moves = np.stack([np.minimum(s + 1, states - 1), np.maximum(s - 1, 0), np.zeros_like(s)], 1)
    rng = np.random.default_rng(seed)
    moves = np.stack([rng.permutation(row) for row in moves])
    P = np.eye(states)[moves]
    return _mdp((1 - slip) * P + slip * P.mean(1, keepdims=True), np.zeros((states, 3)), 0, discount)


def stay_move() -> TabularMDP:
    """Two states; action 0 stays, action 1 moves to the other. Staying earns 1 in state 0 and 2 in state 1, moving nothing. Start (.99, .01),
    discount .95 (catalogue: trpo). The plateau starts at the logits ((3, 0), (-1, 1))."""
    stay, move = np.eye(2), np.eye(2)[::-1]
    return _mdp(np.stack([stay, move], 1), [[1, 0], [2, 0]], [0.99, 0.01], 0.95)


def riverswim(states: int = 6, *, discount: float = 0.99) -> TabularMDP:
    """Action 0 drifts left for sure and earns .005 in the first state; action 1 swims right (inside .35 right, .6 stay, .05 left; first state .6
    right, .4 stay; last state .6 stay, .4 left) and earns 1 in the last. Start in the first. With 6 states the best gain is .42862, the span of
    its bias 6.310. Source: Strehl and Littman (2008)."""
    P, reward = np.zeros((states, 2, states)), np.zeros((states, 2))
    s = np.arange(states)
    P[s, 0, np.maximum(s - 1, 0)] = 1
    P[s[1:-1], 1, s[1:-1] + 1], P[s[1:-1], 1, s[1:-1]], P[s[1:-1], 1, s[1:-1] - 1] = 0.35, 0.6, 0.05
    P[0, 1, :2], P[-1, 1, -2:] = [0.4, 0.6], [0.4, 0.6]
    reward[0, 0], reward[-1, 1] = 0.005, 1
    return _mdp(P, reward, 0, discount)


def two_queues(*, buffer: int = 10, arrival: float = 0.45, discount: float = 0.95) -> TabularMDP:
    """Two queues of at most `buffer` jobs (catalogue: improper_rl).

    Action i serves queue i, which loses one job; then a job arrives at each with probability `arrival`, and is lost if the buffer is full. The
    reward is minus the jobs that wait before the service. Start empty. The state is (buffer + 1) times the first queue plus the second.
    """
    n = buffer + 1
    P, reward = np.zeros((n, n, 2, n, n)), np.zeros((n, n, 2))
    for first, second, action in np.ndindex(n, n, 2):
        left = [first, second]
        left[action] = max(left[action] - 1, 0)
        for more in np.ndindex(2, 2):
            chance = np.prod([arrival if m else 1 - arrival for m in more])
            P[first, second, action, min(left[0] + more[0], buffer), min(left[1] + more[1], buffer)] += chance
        reward[first, second, action] = -(first + second)
    return _mdp(P.reshape(n * n, 2, n * n), reward.reshape(n * n, 2), 0, discount)


def cue(length: int = 5) -> TabularMDP:
    """A bit is shown at the first step, a blank afterwards; at the last of `length` steps the action earns 1 if it equals the bit. Undiscounted.

    States: (step, bit) as 2 * step + bit, and an end. They show 0 or 1 for the bit, 2 for the blank (catalogue: s2pg). Without memory the best J
    is 1/2; see `tabular.with_memory`.
    """
    if length < 2:
        raise ValueError(f"The cue task has length {length}, but at least 2 steps are needed.")
    end = 2 * length
    P, reward = np.zeros((end + 1, 2, end + 1)), np.zeros((end + 1, 2))
    for step, bit in np.ndindex(length, 2):
        P[2 * step + bit, :, 2 * (step + 1) + bit if step + 1 < length else end] = 1
    P[end, :, end] = 1
    reward[end - 2, 0] = reward[end - 1, 1] = 1
    start = np.zeros(end + 1)
    start[:2] = 0.5
    shown = np.full(end + 1, 2)
    shown[:2] = [0, 1]
    return _mdp(P, reward, start, 1.0, terminal=np.arange(end + 1) == end, observation=shown)


MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))
"""(row, column) of the actions up, right, down, left, stay."""


def gridworld(
    rows: Sequence[str] = ("S....", ".##..", "...#.", ".#...", "...#G"),
    *,
    slip: float = 0.0,
    step_reward: float = 0.0,
    goal_reward: float = 1.0,
    pit_reward: float = -1.0,
    discount: float = 0.95,
    stay: bool = False,
) -> TabularMDP:
    """A grid drawn as text: S start, G goal, H pit, # wall, a point for a free cell. The states are the cells without walls, in reading order.

    The actions are up, right, down, left, and, with `stay`, to stay. A move into a wall or off the grid stays. With probability `slip` a uniformly
    random action happens. Entering a goal or a pit earns its reward and ends the episode; every step earns `step_reward`. Several S share the
    start; without one every free cell does.
    """
    cells, index = grid_cells(rows)
    moves = MOVES if stay else MOVES[:4]
    letters = np.array([rows[r][c] for r, c in cells])
    terminal = np.isin(letters, ["G", "H"])
    P = np.zeros((len(cells), len(moves), len(cells)))
    for s, (r, c) in enumerate(cells):
        for a, (down, right) in enumerate(moves):
            P[s, a, s if terminal[s] else index.get((r + down, c + right), s)] = 1
    P = (1 - slip) * P + slip * P.mean(1, keepdims=True)
    reward = step_reward + P @ (goal_reward * (letters == "G") + pit_reward * (letters == "H"))
    reward[terminal] = 0
    start = (letters == "S") if np.any(letters == "S") else (letters == ".")
    return _mdp(P, reward, start / start.sum(), discount, terminal=terminal if terminal.any() else None)


def grid_cells(rows: Sequence[str]) -> tuple[list[tuple[int, int]], dict[tuple[int, int], int]]:
    """The cells (row, column) of a drawn grid that are states, and the state of each."""
    known = set("SGH#.")
    wrong = sorted({letter for row in rows for letter in row} - known)
    if wrong or len({len(row) for row in rows}) != 1:
        what = f"the letters {''.join(wrong)!r}" if wrong else f"rows of the lengths {[len(row) for row in rows]}"
        raise ValueError(f"The grid has {what}; draw rows of equal length from S, G, H, # and points.")
    cells = [(r, c) for r, row in enumerate(rows) for c, letter in enumerate(row) if letter != "#"]
    return cells, {cell: s for s, cell in enumerate(cells)}


def coverage_grid(size: int = 7, *, discount: float = 1.0) -> TabularMDP:
    """An empty grid, five actions (with staying), start in a corner, and no reward: the dynamics for set functions of what is visited (catalogue:
    subpo, which takes 16 steps). `neighbourhood(size)` says what each cell covers."""
    rows = ["." * size] * size
    return gridworld(["S" + rows[0][1:], *rows[1:]], stay=True, discount=discount)


def neighbourhood(size: int = 7) -> Array:
    """(S, S) bool: cell s covers cell s', itself or one of its four neighbours, on a grid of size x size."""
    place = np.stack(np.divmod(np.arange(size * size), size), -1)
    return jnp.asarray(np.abs(place[:, None] - place[None]).sum(-1) <= 1)


def combination_lock(horizon: int = 8, actions: int = 3, *, decoy: float = 0.0, seed: int = 0) -> TabularMDP:
    """Two states, on track (0, the start) and off (1); at every step one random action alone keeps on track. Completing the lock earns 1 at the last
    step; with a decoy, one wrong action of the first step earns that at once. Depends on the step; undiscounted."""
    rng = np.random.default_rng(seed)
    code = rng.integers(actions, size=horizon)
    P, reward = np.zeros((horizon, 2, actions, 2)), np.zeros((horizon, 2, actions))
    P[..., 1] = 1
    P[np.arange(horizon), 0, code] = [1, 0]
    reward[-1, 0, code[-1]] = 1
    reward[0, 0, (code[0] + 1) % actions] += decoy
    return _mdp(P, reward, 0, 1.0)


TREASURES = ((1, 0.7), (2, 8.2), (3, 11.5), (4, 14.0), (4, 15.1), (4, 16.1), (7, 19.6), (7, 20.3), (9, 22.4), (10, 23.7))
"""(row, value) of the treasure in each column of the sea."""


def deep_sea_treasure(*, discount: float = 0.99) -> TabularMDP:
    """A submarine starts at the top left; deeper treasures are worth more and lie further. Two objectives: (treasure found, -1 a step); a treasure
    ends the episode. Actions up, right, down, left; the seabed stops moves. Convex values, after Yang et al. (2019)."""
    cells = [(r, c) for c, (depth, _) in enumerate(TREASURES) for r in range(depth + 1)]
    index = {cell: s for s, cell in enumerate(cells)}
    P, reward = np.zeros((len(cells), 4, len(cells))), np.zeros((len(cells), 4, 2))
    terminal = np.array([r == TREASURES[c][0] for r, c in cells])
    for s, (r, c) in enumerate(cells):
        for a, (down, right) in enumerate(MOVES[:4]):
            to = s if terminal[s] else index.get((r + down, c + right), s)
            P[s, a, to] = 1
            if not terminal[s]:
                reward[s, a] = TREASURES[cells[to][1]][1] if terminal[to] else 0.0, -1.0
    return _mdp(P, reward, index[0, 0], discount, terminal=terminal)


def _one_of(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"{what} is {given!r}, but one of {', '.join(map(repr, known))} is expected.")
