"""Exact problems as environments, so that every sampled method runs where the answer is known. `make("exact:chain")` makes one by name.

An environment's return is the plain sum of its rewards; a learner whose discount is the problem's own approaches the problem's optimum.
Problems are kept as NumPy arrays, compared and hashed by their bytes, so that equal ones share what was compiled.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core.spaces import Box, Discrete, MultiDiscrete, Space
from polopt.envs.exact import bandits, lqr, problems, tabular
from polopt.envs.exact.finite import cumulative, draw
from polopt.envs.exact.problems import _one_of


class _Problem:
    """What the wrappers share: equality by content."""

    key: tuple

    def __eq__(self, other):
        return type(other) is type(self) and other.key == self.key

    def __hash__(self):
        return hash((type(self).__name__, self.key))


def _keep(problem, *settings) -> tuple[Any, tuple]:
    """The problem on NumPy, and what identifies it together with the settings."""
    kept = jax.tree.map(np.asarray, problem)
    leaves, structure = jax.tree.flatten(kept)
    return kept, (str(structure), *((x.shape, str(x.dtype), x.tobytes()) for x in leaves), *settings)


class TabularDynamics(_Problem):
    """A tabular process, acted in one step at a time.

    mdp:      the process; stage-dependent ones last as many steps as they describe.
    horizon:  steps after which an episode is cut; None for no limit.
    observe:  "integer": the state's number, or what it shows if the process has observations; "one-hot": the same as a vector;
              "clock": (that number, steps made), for policies that depend on the time; "features": the state's row of `features`.
    features: (S, d) numbers that describe each state, for "features".
    ends:     what the horizon is: "truncated", a time limit beyond which states have value, or "terminated", the problem's own end.
    noise:    "none": the mean reward; "bernoulli": 1 with the mean as its chance, else 0; a number: Gaussian of that standard deviation.
    """

    def __init__(
        self,
        mdp: tabular.TabularMDP,
        horizon: int | None = None,
        *,
        observe="integer",
        ends="truncated",
        noise: float | str = "none",
        features=None,
    ):
        tabular.check(mdp)
        _one_of("observe", observe, ("integer", "one-hot", "clock", "features"))
        if (observe == "features") != (features is not None):
            raise ValueError(f"observe is {observe!r} and features are {'not ' if features is None else ''}given; give both, or neither.")
        _one_of("ends", ends, ("truncated", "terminated"))
        if isinstance(noise, str):
            _one_of("noise", noise, ("none", "bernoulli"))
        if mdp.staged and horizon not in (None, mdp.transition.shape[0]):
            raise ValueError(f"The horizon is {horizon}, but the process describes {mdp.transition.shape[0]} steps; leave it out.")
        horizon = mdp.transition.shape[0] if mdp.staged else horizon
        if horizon is None and (ends == "terminated" or observe == "clock"):
            raise ValueError(f"{'ends' if ends == 'terminated' else 'observe'} speaks of a horizon, but there is none; give one.")
        if horizon is not None and horizon < 1:
            raise ValueError(f"The horizon is {horizon}, but at least 1 step is expected.")
        self.features = None if features is None else np.asarray(features, np.float32)
        self.mdp, self.key = _keep(mdp, horizon, observe, ends, noise, None if features is None else self.features.tobytes())
        self.horizon, self.observe, self.ends, self.noise = horizon, observe, ends, noise
        self.objectives = mdp.objectives
        self.costs = 0 if mdp.cost is None else mdp.cost.shape[-1]
        self.shown = np.arange(mdp.states) if mdp.observation is None else np.asarray(mdp.observation)
        kinds = int(self.shown.max()) + 1
        spaces: dict[str, Space] = {"integer": Discrete(kinds), "one-hot": Box(0.0, 1.0, (kinds,))}
        if features is not None:
            spaces["features"] = Box.of(self.features.min(0), self.features.max(0), self.features.shape[1:])
        self.observation_space = MultiDiscrete((kinds, horizon + 1)) if observe == "clock" else spaces[observe]
        self.action_space = Discrete(mdp.actions)
        # mass is summed in the process's own precision, then rounded
        self._first, self._next = (cumulative(x).astype(np.float32) for x in (self.mdp.start, self.mdp.transition))
        self._reward = self.mdp.reward.astype(np.float32)
        self._cost = np.zeros((mdp.states, mdp.actions, 0), np.float32) if mdp.cost is None else self.mdp.cost.astype(np.float32)
        self._terminal = np.zeros(mdp.states, bool) if mdp.terminal is None else np.asarray(mdp.terminal)

    def reset(self, key):
        state = draw(jnp.asarray(self._first), jax.random.uniform(key, dtype=jnp.float32)), jnp.zeros((), jnp.int32)
        return state, self._show(*state)

    def step(self, state, action, key):
        s, t = state
        k_next, k_reward = jax.random.split(key)
        at = (t, s, action) if self.mdp.staged else (s, action)
        after = draw(jnp.asarray(self._next)[at], jax.random.uniform(k_next, dtype=jnp.float32))
        reward = self._noisy(jnp.asarray(self._reward)[at], k_reward)
        over = jnp.zeros((), bool) if self.horizon is None else t + 1 >= self.horizon
        ended = jnp.asarray(self._terminal)[after]
        terminated = ended | over if self.ends == "terminated" else ended
        return (after, t + 1), self._show(after, t + 1), reward, jnp.asarray(self._cost)[s, action], terminated, over & ~terminated

    def _noisy(self, mean, key):
        if self.noise == "none":
            return mean
        if self.noise == "bernoulli":
            return jax.random.bernoulli(key, mean).astype(jnp.float32)
        return mean + self.noise * jax.random.normal(key, mean.shape, jnp.float32)

    def _show(self, s, t):
        if self.observe == "features":
            return jnp.asarray(self.features)[s]
        shown = jnp.asarray(self.shown, jnp.int32)[s]
        if self.observe == "one-hot":
            return jax.nn.one_hot(shown, self.observation_space.shape[0], dtype=jnp.float32)
        return jnp.stack([shown, t]) if self.observe == "clock" else shown


class BanditDynamics(_Problem):
    """A bandit as episodes of one step. The observation is the number of the context."""

    costs = 0

    def __init__(self, bandit: bandits.Bandit):
        self.bandit, self.key = _keep(bandit)
        self.objectives = bandit.objectives
        self.observation_space = Discrete(bandit.contexts.shape[0])
        self.action_space = Discrete(bandit.arms)

    def _arrays(self) -> bandits.Bandit:
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self.bandit)

    def reset(self, key):
        context = bandits.draw_context(self._arrays(), key)
        return context, context

    def step(self, state, action, key):
        reward = bandits.draw_reward(self._arrays(), key, state, action).astype(jnp.float32)
        return state, state, reward, jnp.zeros((0,)), jnp.array(True), jnp.array(False)


class LQRDynamics(_Problem):
    """A linear system with quadratic costs; the reward is minus the cost, the noise Gaussian.

    system:   see `polopt.envs.exact.lqr`. The first state is N(0, start).
    horizon:  steps after which an episode is truncated; None for no limit.
    first:    (n,) a fixed first state in place of a random one; the system's start is then to be its outer product. Systems made by
              `lqr.with_constant` need it, with 1 as the last number.
    limit:    inputs are clipped to this; with a limit the closed forms hold only while it is not reached. None for no limit.
    """

    objectives = 0
    costs = 0

    def __init__(self, system: lqr.LQR, horizon: int | None = 100, *, first=None, limit: float | None = None):
        first = None if first is None else tuple(float(x) for x in np.ravel(first))
        self.system, self.key = _keep(system, horizon, first, limit)
        self.horizon, self.first, self.limit = horizon, first, limit
        n, m = system.B.shape
        if first is not None and len(first) != n:
            raise ValueError(f"The first state has {len(first)} numbers, but the system has {n} states.")
        self.observation_space = Box(-np.inf, np.inf, (n,))
        self.action_space = Box(-np.inf, np.inf, (m,)) if limit is None else Box(-float(limit), float(limit), (m,))
        self._start, self._noise = (_root(np.asarray(x, np.float64)) for x in (system.start, system.W))

    def reset(self, key):
        n = self.system.A.shape[0]
        x = self._start @ jax.random.normal(key, (n,), jnp.float32) if self.first is None else jnp.asarray(self.first, jnp.float32)
        return (x, jnp.zeros((), jnp.int32)), x

    def step(self, state, action, key):
        x, t = state
        A, B, Q, R = (jnp.asarray(a, jnp.float32) for a in (self.system.A, self.system.B, self.system.Q, self.system.R))
        u = action if self.limit is None else jnp.clip(action, -self.limit, self.limit)
        reward = -(x @ Q @ x + u @ R @ u)
        after = A @ x + B @ u + self._noise @ jax.random.normal(key, x.shape, jnp.float32)
        over = jnp.zeros((), bool) if self.horizon is None else t + 1 >= self.horizon
        return (after, t + 1), after, reward, jnp.zeros((0,)), jnp.array(False), over


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix L with L L^T = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)


# -- by name -----------------------------------------------------------------------------------------------------------


def _named(problem, horizon: int | None, **defaults):
    """A maker whose options are split between the environment and the problem."""

    def make(**options):
        ours = {k: options.pop(k) for k in ("horizon", "observe", "ends", "noise") if k in options}
        return TabularDynamics(problem(**options), **{"horizon": horizon, **defaults, **ours})

    return make


def _random_mdp(seed: int):
    def problem(states: int = 10, actions: int = 4, **options):
        return problems.random_mdp(jax.random.key(seed), states, actions, **options)

    return problem


def _bandit(contexts: int = 1, arms: int = 10, reward: str = "bernoulli", seed: int = 0):
    return BanditDynamics(bandits.random_bandit(jax.random.key(seed), arms, contexts, reward=reward))


def _queue_lengths(horizon: int = 100, *, buffer: int = 10, ends: str = "truncated", **options):
    lengths = np.stack(np.divmod(np.arange((buffer + 1) ** 2), buffer + 1), -1) / buffer
    return TabularDynamics(problems.two_queues(buffer=buffer, **options), horizon, observe="features", ends=ends, features=lengths)


def _lqr(horizon: int = 100, limit: float | None = None, **options):
    return LQRDynamics(lqr.double_integrator(**options), horizon, limit=limit)


EXACT = {
    "bandit": _bandit,
    "chain": _named(problems.chain, 50),
    "combination-lock": _named(problems.combination_lock, None, observe="clock", ends="terminated"),
    "contextual-bandit": lambda contexts=8, **options: _bandit(contexts, **options),
    "coverage-grid": _named(problems.coverage_grid, 16, observe="clock", ends="terminated"),
    "cue": _named(problems.cue, None),
    "deep-sea-treasure": _named(problems.deep_sea_treasure, 100),
    "gridworld": _named(problems.gridworld, 100),
    "lqr": _lqr,
    "permuted-chain": _named(problems.permuted_chain, 20),
    "random-mdp-0": _named(_random_mdp(0), 100),
    "riverswim": _named(problems.riverswim, 100),
    "stay-move": _named(problems.stay_move, 100),
    "two-queue-lengths": _queue_lengths,
    "two-queues": _named(problems.two_queues, 100),
}
"""Makers of environments by name; `random-mdp-` may end in any seed."""


def named(name: str, **options):
    """The dynamics that `exact:name` means, or None for a name that nothing has."""
    prefix, _, seed = name.rpartition("-")
    if prefix == "random-mdp" and seed.isdecimal():
        return _named(_random_mdp(int(seed)), 100)(**options)
    return EXACT[name](**options) if name in EXACT else None
