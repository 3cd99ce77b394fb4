"""Rewards for what a whole trajectory has visited: a set function around any environment, and coverage of drawn grids.

A set function F gives a number to the set of elements visited so far, tau_{0:j} = {s_0, ..., s_j}. `SetRewards` keeps that set in the
environment's state, begins it anew with every episode, s_0 included, and pays one of

    marginal   F(tau_{0:j+1}) - F(tau_{0:j})            the return is F(tau) - F({s_0})
    modular    F({s_{j+1}})                              each element for itself, however often it was visited before
    final      F(tau) at the episode's last step, else 0
    prefix     F(tau_{0:j+1})                            not a reward to be summed: F of the prefixes, for what reads it step by step

Such rewards depend on the history: a Markov policy that knows the time does not see all of it. `observe` says what is shown:

    state      what the environment shows
    clock      that and the number of steps made
    table      both as one number, of which a network without hidden layers makes a table; for environments that show a number
    history    every element of the trajectory so far, in order, 0 where none is yet and 1 + the element elsewhere
    visited    the clock, and for each element whether it was visited: all that F depends on

`make("coverage:grid")` is the coverage of a 7 x 7 grid in 16 steps, `coverage:two-rooms` that of two rooms in 40; modes and observations follow
behind colons, as in `coverage:grid:history` or `coverage:two-rooms:visited:final`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from polopt.core.spaces import Dict, Discrete, MultiBinary, MultiDiscrete, Space
from polopt.envs.exact.dynamics import TabularDynamics
from polopt.envs.exact.problems import grid_cells, gridworld
from polopt.envs.jax_env import Dynamics, JaxEnvironment

MODES = ("marginal", "modular", "final", "prefix")
OBSERVATIONS = ("clock", "table", "history", "visited", "state")


@dataclass(frozen=True)
class SetRewards:
    """Dynamics whose rewards are those of a set function; the rewards of the environment inside are not read.

    inner:    the environment, see `polopt.envs.jax_env.Dynamics`.
    value:    F: from (size,) bool, which elements are in the set, to a number. Hashable, so that equal ones share what is compiled.
    size:     how many elements there are.
    horizon:  steps after which the episode is over.
    element:  from an observation to the element visited, 0 ... size-1; None where the observation is that number.
    """

    inner: Dynamics
    value: Callable[[Any], Any]
    size: int
    horizon: int
    element: Callable[[Any], Any] | None = None
    mode: str = "marginal"
    observe: str = "clock"

    def __post_init__(self):
        for what, given, known in (("mode", self.mode, MODES), ("observe", self.observe, OBSERVATIONS)):
            if given not in known:
                raise ValueError(f"{what} is {given!r}, but one of {', '.join(known)} is expected.")
        discrete = isinstance(self.inner.observation_space, Discrete)
        if self.element is None and not (discrete and self.inner.observation_space.n <= self.size):
            raise ValueError(
                f"The environment shows {self.inner.observation_space}, which is no number below {self.size}; give element, a function from an"
                " observation to the number of what it visits."
            )
        if self.observe == "table" and not discrete:
            raise ValueError(f"observe='table' needs an environment that shows a number, but it shows {self.inner.observation_space}; take 'clock'.")
        if self.horizon < 1:
            raise ValueError(f"The horizon is {self.horizon}, but at least 1 step is expected.")

    objectives = 0

    @property
    def costs(self) -> int:
        return self.inner.costs

    @property
    def action_space(self) -> Space:
        return self.inner.action_space

    @property
    def observation_space(self) -> Space:
        shown, clock = self.inner.observation_space, Discrete(self.horizon + 1)
        if self.observe == "table":
            return Discrete(shown.n * clock.n)
        if self.observe == "history":
            return MultiDiscrete((self.size + 1,) * clock.n)
        named = {"state": shown, "clock": Dict((("observation", shown), ("time", clock)))}
        return named.get(self.observe, Dict((("observation", shown), ("time", clock), ("visited", MultiBinary(self.size)))))

    def reset(self, key):
        inner, observation = self.inner.reset(key)
        state = inner, jnp.zeros((), jnp.int32), jnp.zeros(self.size, bool), self._empty()
        return self._visit(state, observation)

    def step(self, state, action, key):
        inner, time, visited, history = state
        inner, observation, _, cost, terminated, truncated = self.inner.step(inner, action, key)
        after, shown = self._visit((inner, time + 1, visited, history), observation)
        terminated = terminated | (time + 1 >= self.horizon)
        reward = jnp.asarray(self._reward(visited, after[2], observation, terminated | truncated), jnp.float32)
        return after, shown, reward, cost, terminated, truncated & ~terminated

    def _element(self, observation):
        return jnp.asarray(observation if self.element is None else self.element(observation), jnp.int32)

    def _empty(self):
        return jnp.zeros(self.horizon + 1 if self.observe == "history" else 0, jnp.int32)

    def _visit(self, state, observation):
        """The state with the observation's element in the set, and what is shown of it."""
        inner, time, visited, history = state
        element = self._element(observation)
        visited = visited.at[element].set(True)
        if self.observe == "history":
            history = history.at[time].set(element + 1)
        return (inner, time, visited, history), self._show(observation, time, visited, history)

    def _show(self, observation, time, visited, history):
        if self.observe == "state":
            return observation
        if self.observe == "table":
            return time * self.inner.observation_space.n + observation
        if self.observe == "history":
            return history
        shown = {"observation": observation, "time": time}
        return shown if self.observe == "clock" else {**shown, "visited": visited.astype(jnp.int32)}

    def _reward(self, before, after, observation, ended):
        if self.mode == "modular":
            return self.value(jnp.zeros_like(after).at[self._element(observation)].set(True))
        value = self.value(after)
        if self.mode == "marginal":
            return value - self.value(before)
        return jnp.where(ended, value, 0.0) if self.mode == "final" else value


def with_mode(env, mode: str):
    """The same environment with rewards of another mode; one without a set function is given back as it is."""
    if not isinstance(getattr(env, "dynamics", None), SetRewards):
        return env
    return JaxEnvironment(env.name, dataclasses.replace(env.dynamics, mode=mode))


class Coverage:
    """F(X) = the weight of everything that some element of X covers: monotone and submodular.

    covers:  (elements, things) bool.
    weights: (things,), at least 0; ones if left out.
    """

    def __init__(self, covers, weights=None):
        self.covers = np.asarray(covers, bool)
        self.weights = np.ones(self.covers.shape[1], np.float32) if weights is None else np.asarray(weights, np.float32)
        if (self.weights < 0).any():
            raise ValueError("A weight of the coverage is below 0, so that it is not monotone; give weights of at least 0.")
        self.key = self.covers.shape, self.covers.tobytes(), self.weights.tobytes()

    def __eq__(self, other):
        return isinstance(other, Coverage) and other.key == self.key

    def __hash__(self):
        return hash(self.key)

    def __call__(self, visited):
        covered = jnp.any(jnp.asarray(self.covers) & visited[:, None], axis=0)
        return jnp.sum(jnp.where(covered, jnp.asarray(self.weights), 0.0))


GRIDS = {
    "grid": (("S......", *("." * 7,) * 6), 16),
    # Two rooms of 7 rows and 14 columns in all; the wall has one door. Where the paper has its door it does not say.
    "two-rooms": (("S......#......", *(".......#......",) * 2, "..............", *(".......#......",) * 3), 40),
}
"""Drawn grids and how many steps there are to cover them."""


def covered_grid(rows, horizon: int, *, slip: float = 0.0, **options) -> SetRewards:
    """The coverage of a drawn grid, five actions: a cell covers itself and its four neighbours. Options as in `SetRewards`."""
    cells, _ = grid_cells(rows)
    place = np.array(cells)
    near = np.abs(place[:, None] - place[None]).sum(-1) <= 1
    return SetRewards(TabularDynamics(gridworld(rows, stay=True, slip=slip, discount=1.0)), Coverage(near), len(cells), horizon, **options)


def named(name: str, **options) -> SetRewards | None:
    """What `coverage:NAME` means; None for a grid that nothing has."""
    grid, *words = name.split(":")
    if grid not in GRIDS:
        return None
    for word in words:
        field = "mode" if word in MODES else "observe"
        if word not in MODES + OBSERVATIONS:
            raise ValueError(f"coverage:{name} has {word!r} behind the grid, but one of {', '.join(MODES + OBSERVATIONS)} is expected")
        if field in options:
            raise ValueError(f"coverage:{name} names {field} twice; leave one out")
        options[field] = word
    rows, horizon = GRIDS[grid]
    return covered_grid(rows, **{"horizon": horizon, **options})
