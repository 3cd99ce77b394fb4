"""The offline loop of methods that see the log as a sequence: minibatches of windows, each step labelled with what the episode earned from there on.

The sum of an episode's rewards ends with it, however it ends; only a rule that takes values of later states asks whether the end was terminal.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import to_unit
from polopt.core.parts import hyper, part
from polopt.data.dataset import Dataset
from polopt.loops.offline import FromLog
from polopt.policies.actor import Normaliser


class Windows(NamedTuple):
    """The last K steps up to a drawn one, (n, K, ...); what lies before the start of the episode is masked, and holds anything.

    inputs, next_inputs: (vectors, pictures) as networks take them.
    action:   as learners see it; reward: the logged one; terminated: whether the next state is terminal.
    to_go:    the sum of the rewards from the step to the end of the episode; left: how many these are.
    step:     of the episode, from 0; mask: 1 inside the episode.
    """

    inputs: Any
    next_inputs: Any
    action: jax.Array
    reward: jax.Array
    to_go: jax.Array
    left: jax.Array
    step: jax.Array
    mask: jax.Array
    terminated: jax.Array


class SequenceRule(Protocol):
    """What is learnt from windows. The learner is one pytree. One that takes values of later states has `critic = True`."""

    context: int  # K

    def refuse(self, data) -> str | None:
        """Why it cannot learn from a dataset; None when it can."""
        ...

    def init(self, data: Dataset, key) -> Any: ...

    def update(self, learner, batch: Windows, progress, key) -> tuple[Any, dict[str, jax.Array]]: ...

    def policy(self, learner, normaliser: Normaliser) -> Any: ...


def vectors_only(data) -> str | None:
    """Why a model of sequences of vectors cannot learn from a dataset; None when it can."""
    if spaces.images(data.observation_space):
        return f"takes vectors, but {data.name} has pictures. Take bc or rvs"
    return None


def uneven(width: int, heads: int) -> str | None:
    """Why tokens cannot be shared out among heads of attention, each with sines and cosines; None when they can."""
    if width % (2 * heads):
        return f"has tokens of width {width}, but {heads} heads need a multiple of {2 * heads}. Set another width"
    return None


def outcomes(reward, ended):
    """(sum of the rewards from each step to the end of its episode, how many these are), each (n,), from rewards and ends in the order of time."""
    going = 1.0 - jnp.asarray(ended, jnp.float32)[:, None]
    earned = jnp.stack([jnp.asarray(reward, jnp.float32), jnp.ones(going.shape[:1])], axis=1)

    def join(later, now):
        return now[0] * later[0], now[1] + now[0] * later[1]

    total = jax.lax.associative_scan(join, (going, earned), reverse=True)[1]
    return total[:, 0], total[:, 1]


def first_rows(ended):
    """(n,) the row at which the episode of each row begins."""
    index = jnp.arange(ended.shape[0])
    begins = jnp.concatenate([jnp.ones((1,), bool), ended[:-1]])
    return jax.lax.cummax(jnp.where(begins, index, 0))


def episode_outcomes(data: Dataset):
    """Of each row the return of its episode and the episode's length, (n,) each; for statistics over a log."""
    to_go, left = outcomes(data.reward, data.ended)
    first = first_rows(jnp.asarray(data.ended))
    return to_go[first], left[first]


@part
class OfflineWindows(FromLog):
    """A method that learns from windows of a log."""

    rule: SequenceRule
    updates: int = hyper(100, at_least=1)  # updates in an iteration
    batch_size: int = hyper(64, at_least=1)  # windows an update learns from
    normalise_observations: bool = True  # by the mean and the deviation of the dataset

    @property
    def critic(self) -> bool:
        """Whether the rule takes values of later states."""
        return getattr(self.rule, "critic", False)

    def minibatches(self, data: Dataset, normaliser: Normaliser):
        rows = self.rows(data)
        return lambda key: self.sample(data, rows, normaliser, key)

    def rows(self, data: Dataset):
        """(return to go, steps left, first row of the episode) of each row."""
        return *outcomes(data.reward, data.ended), first_rows(jnp.asarray(data.ended))

    def sample(self, data: Dataset, rows, normaliser: Normaliser, key) -> Windows:
        to_go, left, first = rows
        last = jax.random.randint(key, (self.batch_size,), 0, len(data))
        row = last[:, None] + jnp.arange(1 - self.rule.context, 1)[None]
        inside = row >= first[last][:, None]
        row = jnp.maximum(row, 0)
        seen = jax.tree.map(lambda x: jnp.asarray(x)[row], (data.observation, data.next_observation))
        inputs, after = (jax.vmap(jax.vmap(normaliser))(o) for o in seen)
        action, space = jnp.asarray(data.action)[row], data.action_space
        action = jax.vmap(jax.vmap(lambda a: to_unit(space, a)))(action) if isinstance(space, spaces.Box) else action
        step = jnp.where(inside, row - first[last][:, None], 0)
        paid, ends = (jnp.asarray(x)[row] for x in (data.reward, data.terminated))
        return Windows(inputs, after, action, paid, to_go[row], left[row], step, inside.astype(jnp.float32), ends)
