"""Datasets that are made: by a random policy, or by what a run has learnt, and mixtures of them."""

from __future__ import annotations

import dataclasses
import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import spaces
from polopt.core.actions import from_unit
from polopt.data.dataset import DataError, Dataset, concatenated
from polopt.envs.host import clear_errors
from polopt.envs.make import make
from polopt.policies.random import RandomPolicy
from polopt.run import records
from polopt.run.evaluate import episode_returns
from polopt.run.run import Run, load

COPIES = 8  # environments that act at once
BLOCK = 1000  # steps of each copy in one call, at least, so that few episodes are cut
EPISODES = 64  # that a reference return is the mean of
EPSILON = 0.2  # share of random actions of the noisy expert
KINDS = {
    "random": "uniform actions",
    "medium": "the policy of the run when its evaluation first came halfway from random to best; training is repeated up to there",
    "expert": "the run's best policy",
    "noisy": f"the best policy with {EPSILON:.0%} random actions",
    "replay": "the transitions that an off-policy run kept while it learnt",
}


def collect(
    source: str | os.PathLike | Run | object = "random",
    env=None,
    *,
    steps: int = 100_000,
    mix: dict[str, float] | str | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """A dataset of `steps` transitions, whole episodes but for the last of each kind, which counts as truncated where it is cut.

    source: "random", a run or its folder (of its seeds the best one's policies), or a policy.
    env:    the environment, or its name; by default the run's.
    mix:    shares of transitions by kind, such as {"medium": 0.5, "expert": 0.5} or "medium:0.5,expert:0.5". Kinds: random, medium,
            expert (the default with a run), noisy, replay.
    seed:   another number, other data; equal numbers give equal data.

    From a run the dataset carries the mean returns of a random policy and of the best one, for normalised scores.
    """
    if isinstance(steps, bool) or not isinstance(steps, (int, float)) or steps < 1 or steps % 1:
        raise DataError(f"steps is {steps!r}, but a whole number of at least 1 is expected.")
    run = source if isinstance(source, Run) else load(source) if isinstance(source, (str, os.PathLike)) and source != "random" else None
    if run is None and env is None:
        raise DataError("An environment is needed to collect in; give one, for example with --env Pendulum-v1.")
    environment = run.environment(env) if run else make(env) if isinstance(env, str) else env
    policy = source if run is None and source != "random" else None
    shares = _shares(mix, "expert" if run else "policy" if policy is not None else "random")
    if policy is None and run is None and set(shares) != {"random"}:
        raise DataError(f"{', '.join(k for k in shares if k != 'random')} data need a run that has learnt; give its folder instead of random.")
    counts = _counts(shares, int(steps))
    keys = dict(zip(counts, jax.random.split(jax.random.fold_in(jax.random.key(seed), 0xDA7A), len(counts))))
    makers = {"random": lambda: RandomPolicy(environment.observation_space, environment.action_space), "policy": lambda: policy}
    pieces = []
    learnt = _Learnt(run) if run else None
    for kind, count in counts.items():
        if kind == "replay":
            pieces.append(learnt.replay(environment, count))
        else:
            acting = makers[kind]() if kind in makers else learnt.policy(kind)
            pieces.append(record(acting, environment, count, keys[kind], epsilon=EPSILON if kind == "noisy" else 0.0))
    words = "-".join(k if share == 1 else f"{k}{share:g}" for k, share in shares.items())
    dataset = concatenated(pieces, name or f"{environment.name}-{words}")
    return dataclasses.replace(dataset, reference=learnt.reference(environment, seed)) if run else dataset


def record(policy, env, steps: int, key, *, epsilon: float = 0.0, stochastic: bool = True) -> Dataset:
    """`steps` transitions of a policy, in which each action is random with probability `epsilon`."""
    length = max(math.ceil(steps / COPIES) + 1, min(BLOCK, steps))
    pieces, found = [], 0
    while found < steps:
        key, k_block = jax.random.split(key)
        with clear_errors():
            columns = jax.tree.map(np.asarray, _block(policy, env, k_block, jnp.float32(epsilon), length=length, stochastic=stochastic))
        for copy in range(COPIES):
            mine = jax.tree.map(lambda x, c=copy: x[:, c], columns)
            whole = np.flatnonzero(mine[4] | mine[5])
            end = whole[-1] + 1 if whole.size else length
            *made, truncated = jax.tree.map(lambda x, e=end: x[:e].copy(), mine)
            truncated[-1] |= not made[-1][-1]
            pieces.append(Dataset(*made, truncated, env.observation_space, env.action_space))
            found += end
    return concatenated(pieces, "recorded").take(slice(0, steps))


@functools.partial(jax.jit, static_argnames=("length", "stochastic"))
def _block(policy, env, key, epsilon, *, length: int, stochastic: bool):
    """The columns of a dataset, time-major (length, copies, ...)."""
    k_reset, k_run = jax.random.split(key)
    state, observation = env.reset(k_reset, COPIES)
    initial = jax.tree.map(lambda x: jnp.broadcast_to(x, (COPIES, *x.shape)), policy.initial_carry())

    def act(loop, key):
        state, observation, carry = loop
        k_act, k_random, k_choose, k_env = jax.random.split(key, 4)
        carry, action = jax.vmap(policy.act)(carry, observation, *([jax.random.split(k_act, COPIES)] if stochastic else []))
        other = jax.vmap(lambda k: spaces.sample(env.action_space, k))(jax.random.split(k_random, COPIES))
        chance = jax.random.uniform(k_choose, (COPIES,)) < epsilon
        action = jax.tree.map(lambda a, b: jnp.where(_rows(chance, a), b, a), action, other)
        state, after = env.step(state, action, k_env)
        ended = after.terminated | after.truncated
        carry = jax.tree.map(lambda new, start: jnp.where(_rows(ended, new), start, new), carry, initial)
        columns = (observation, action, after.reward, after.final_observation, after.terminated, after.truncated & ~after.terminated)
        return (state, after.observation, carry), columns

    return jax.lax.scan(act, (state, observation, initial), jax.random.split(k_run, length))[1]


def _rows(flag, like):
    return flag.reshape(flag.shape + (1,) * (like.ndim - 1))


class _Learnt:
    """The policies of the seed of a run whose best policy scored highest."""

    def __init__(self, run: Run):
        self.run, self.training = run, run._restored()
        self.index = int(np.argmax(self.training.best["score"]))

    def policy(self, kind: str):
        if kind == "medium":
            return self._medium()
        return self.training.seeds.pick(self.training.best["policy"], self.index)

    def _medium(self):
        training, method, task = self.training, self.training.method, self.training.task
        made = [e for e in records.read_record(self.run.directory).evaluations if e.policy == "last" and not e.final]
        scores = np.array([e.scores[self.index] for e in made])
        low = self.reference(task.env, 0)[0]
        reached = np.flatnonzero(scores >= (low + np.nanmax(scores)) / 2)
        iterations = made[int(reached[0])].step // method.steps_per_iteration
        key = training.keys[self.index]
        again = jax.jit(lambda t, k, n: method.policy(jax.lax.fori_loop(0, n, lambda _, s: method.step(t, s)[0], method.init(t, k))))
        with clear_errors():
            return again(task, key, iterations)

    def reference(self, env, seed: int) -> tuple[float, float]:
        """Mean returns of a random policy and of the best one."""
        key = jax.random.fold_in(jax.random.key(seed), 0x5C0E)
        random = RandomPolicy(env.observation_space, env.action_space)
        with clear_errors():
            means = [
                float(np.mean(episode_returns(policy, env, key, episodes=EPISODES, stochastic=stochastic)[0]))
                for policy, stochastic in ((random, True), (self.policy("expert"), False))
            ]
        return means[0], means[1]

    def replay(self, env, steps: int) -> Dataset:
        """The newest transitions in an off-policy run's replay, copy after copy of its environment."""
        ring = getattr(self.training.state, "ring", None)
        if ring is None:
            raise DataError(f"{self.run.directory} has no replay, as its method keeps none; take a run of sac, td3 or dqn for replay data.")
        ring = jax.tree.map(lambda x: np.asarray(x[self.index]), ring)
        method, task = self.training.method, self.training.task
        kept = method.without_notes(task, ring.steps) if hasattr(method, "without_notes") else ring.steps
        rows = (int(ring.position) - int(ring.filled) + np.arange(int(ring.filled))) % ring.steps.reward.shape[0]
        copies = ring.steps.reward.shape[1]
        if len(rows) * copies < steps:
            raise DataError(f"The replay of {self.run.directory} holds {len(rows) * copies} transitions, but {steps} are asked for; take fewer.")
        rows = rows[-math.ceil(steps / copies) :]
        steps_ = jax.tree.map(lambda x: np.concatenate([x[rows, copy] for copy in range(copies)]), kept)
        last = np.arange(1, copies + 1) * len(rows) - 1
        truncated = steps_.ended & ~steps_.terminated
        truncated[last] |= ~steps_.terminated[last]
        space = env.action_space
        action = np.asarray(jax.vmap(lambda unit: from_unit(space, unit))(steps_.action)) if isinstance(space, spaces.Box) else steps_.action
        columns = (steps_.observation, action, steps_.reward, steps_.next_observation, steps_.terminated, truncated)
        return Dataset(*columns, env.observation_space, space).take(slice(0, steps))


def _shares(mix, default: str) -> dict[str, float]:
    """Shares by kind, which sum to 1."""
    if mix is None:
        return {default: 1.0}
    if isinstance(mix, str):
        try:
            pairs = [word.strip().partition(":") for word in mix.split(",")]
            mix = {kind: float(share) if colon else 1.0 for kind, colon, share in pairs}
        except ValueError:
            raise DataError(f"The mix is {mix!r}, but kinds with their shares are expected, such as medium:0.5,expert:0.5.") from None
    unknown = [kind for kind in mix if kind not in KINDS]
    if unknown:
        raise DataError(f"There is no kind of data {unknown[0]!r}; known are {', '.join(KINDS)}.")
    if not mix or min(mix.values()) <= 0 or abs(sum(mix.values()) - 1) > 1e-6:
        raise DataError(f"The shares of the mix are {', '.join(f'{k}:{v:g}' for k, v in mix.items())}, but they must be above 0 and sum to 1.")
    return dict(mix)


def _counts(shares: dict[str, float], steps: int) -> dict[str, int]:
    """Transitions by kind, which sum to `steps`."""
    ends = np.round(np.cumsum(list(shares.values())) * steps).astype(int)
    counts = dict(zip(shares, np.diff(ends, prepend=0).tolist()))
    empty = [kind for kind, count in counts.items() if count < 1]
    if empty:
        raise DataError(f"Of {steps} transitions none would be {empty[0]}; collect more, or leave that kind out.")
    return counts
