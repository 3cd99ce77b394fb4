"""Samplers of the language loop: which prompts, how many completions of each, and who writes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.language import Batch, informative
from polopt.policies.language.sampling import Sampling, generate


class Order(NamedTuple):
    """A shuffled order of the prompts, and how far it has been read."""

    rows: jax.Array  # (n,)
    position: jax.Array


def shuffled(count: int, key) -> Order:
    return Order(jax.random.permutation(key, count).astype(jnp.int32), jnp.zeros((), jnp.int32))


def draw_prompts(order: Order, count: int, key) -> tuple[jax.Array, Order]:
    """The next `count` different prompts, and the order behind them; it is shuffled anew when too few are left in it."""
    total = order.rows.shape[0]
    spent = order.position + count > total
    rows = jnp.where(spent, jax.random.permutation(key, total).astype(jnp.int32), order.rows)
    position = jnp.where(spent, 0, order.position)
    return jax.lax.dynamic_slice(rows, (position,), (count,)), Order(rows, position + count)


def written(task: LanguageTask, policy, prompts, key, sampling: Sampling, *, repeats: int = 1) -> Batch:
    """`repeats` completions of each prompt (B,) by the policy, graded: a batch of B groups."""
    given = task.prompts
    policy = jax.lax.stop_gradient(policy)
    made = generate(
        policy, given.tokens[prompts], given.mask[prompts], key, length=task.length, stop=task.stop, sampling=sampling, repeats=repeats
    )
    index = jnp.repeat(prompts, repeats)
    graded = task.verifier(given, index, made.tokens, made.mask)
    count = index.shape[0]
    return Batch(
        index=index,
        group=jnp.repeat(jnp.arange(prompts.shape[0], dtype=jnp.int32), repeats),
        tokens=made.tokens,
        mask=made.mask,
        reward=jnp.where(graded.valid, graded.reward, 0.0),
        valid=graded.valid,
        finished=made.finished,
        sampled_log_prob=made.log_prob,
        demonstration=jnp.zeros((count,), bool),
        baseline=jnp.zeros((count,), graded.reward.dtype),
    )


def demonstrated(task: LanguageTask, prompts) -> Batch:
    """The demonstrations of prompts (B,), as a batch of groups of one."""
    tokens, mask = task.prompts.demonstration[prompts], task.prompts.demonstration_mask[prompts]
    count = prompts.shape[0]
    ones = jnp.ones((count,), bool)
    return Batch(
        index=prompts,
        group=jnp.arange(count, dtype=jnp.int32),
        tokens=tokens,
        mask=mask,
        reward=jnp.ones((count,)),
        valid=ones,
        finished=ones,
        sampled_log_prob=jnp.zeros(tokens.shape),
        demonstration=ones,
        baseline=jnp.zeros((count,)),
    )


def too_many(task: LanguageTask, prompts: int) -> str | None:
    """Why an iteration cannot take so many different prompts."""
    if prompts > len(task.prompts):
        return f"takes {prompts} prompts an iteration, but {task.name} has {len(task.prompts)}. Set fewer prompts"
    return None


def no_verifier(task: LanguageTask) -> str | None:
    if task.verifier is None:
        return f"learns from rewards, but {task.name} has no verifier. Give one with --verifier FILE.py:FUNCTION"
    return None


@part
class Grouped:
    """`prompts` prompts in shuffled order, and `completions` completions of each."""

    prompts: int = hyper(8, at_least=1)  # different prompts an iteration
    completions: int = hyper(8, at_least=1)  # of each prompt
    sampling: Sampling = Sampling()

    @property
    def groups(self) -> int:
        return self.prompts

    @property
    def size(self) -> int:
        return self.prompts * self.completions

    @property
    def temperature(self):
        return self.sampling.temperature

    def refuse(self, task):
        return no_verifier(task) or too_many(task, self.prompts)

    def init(self, task, key) -> Order:
        return shuffled(len(task.prompts), key)

    def gather(self, state: Order, task, policy, key):
        k_order, k_write = jax.random.split(key)
        prompts, state = draw_prompts(state, self.prompts, k_order)
        return written(task, policy, prompts, k_write, self.sampling, repeats=self.completions), state

    def tell(self, state, task, policy, batch):
        return state


@part
class Informative:
    """Groups whose rewards differ: further prompts are tried until enough such groups are there, at most `tries` times `prompts`.

    Places that stay empty teach nothing. With enough = 1 it is DAPO's dynamic sampling.
    """

    prompts: int = hyper(8, at_least=1)  # groups an iteration
    completions: int = hyper(8, at_least=2)  # of each prompt
    enough: float = hyper(1.0, at_least=0, at_most=1)  # share of informative groups at which no more prompts are tried
    tries: int = hyper(4, at_least=1)  # times that `prompts` prompts are tried, at most
    sampling: Sampling = Sampling()

    groups = Grouped.groups
    size = Grouped.size
    temperature = Grouped.temperature
    refuse = Grouped.refuse
    init = Grouped.init
    tell = Grouped.tell

    def gather(self, state: Order, task, policy, key):
        def attempt(order, key):
            k_order, k_write = jax.random.split(key)
            prompts, order = draw_prompts(order, self.prompts, k_order)
            batch = written(task, policy, prompts, k_write, self.sampling, repeats=self.completions)
            return order, batch, informative(batch.reward, batch.valid, batch.group, self.prompts)

        shape = jax.eval_shape(attempt, state, key)[1]
        empty = jax.tree.map(lambda x: jnp.zeros((self.prompts, self.completions, *x.shape[1:]), x.dtype), shape)

        def going(carry):
            _, _, filled, tried = carry
            return (tried < self.tries) & ((tried == 0) | (filled < self.enough * self.prompts))

        def more(carry):
            order, kept, filled, tried = carry
            order, batch, good = attempt(order, jax.random.fold_in(key, tried))
            place = jnp.where(good, filled + jnp.cumsum(good, axis=0) - 1, self.prompts)  # beyond the end: dropped
            groups = jax.tree.map(lambda x: x.reshape(self.prompts, self.completions, *x.shape[1:]), batch)
            kept = jax.tree.map(lambda old, new: old.at[place].set(new, mode="drop"), kept, groups)
            return order, kept, jnp.minimum(filled + jnp.sum(good), self.prompts), tried + 1

        zero = jnp.zeros((), jnp.int32)
        order, kept, _, _ = jax.lax.while_loop(going, more, (state, empty, zero, zero))
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)
        return batch._replace(group=jnp.repeat(jnp.arange(self.prompts, dtype=jnp.int32), self.completions)), order


@part
class Demonstrated:
    """`prompts` prompts in shuffled order with their demonstrations; nothing is generated."""

    prompts: int = hyper(64, at_least=1)  # demonstrations an iteration

    completions = 1
    temperature = 1.0
    imitates = True

    @property
    def groups(self) -> int:
        return self.prompts

    size = groups

    def refuse(self, task):
        if task.prompts.demonstration is None:
            return f"learns from demonstrations, but {task.name} has none. Give data with a completion for each prompt"
        return too_many(task, self.prompts)

    init = Grouped.init
    tell = Grouped.tell

    def gather(self, state: Order, task, policy, key):
        prompts, state = draw_prompts(state, self.prompts, key)
        return demonstrated(task, prompts), state


def joined(parts: list[Batch]) -> Batch:
    """Batches one after another; groups keep the numbers that they have."""
    length = max(part.tokens.shape[1] for part in parts)

    def wide(x: Any):
        return x if x.ndim == 1 else jnp.pad(x, ((0, 0), (0, length - x.shape[1])))

    return jax.tree.map(lambda *leaves: jnp.concatenate([wide(x) for x in leaves]), *parts)


def surveyed(task: LanguageTask, policy, key, sampling: Sampling, repeats: int, *, at_once: int = 64) -> tuple[jax.Array, jax.Array]:
    """(reward, valid), each (n, repeats): how `repeats` completions of every prompt are graded; `at_once` prompts are written for together."""
    total = len(task.prompts)
    at_once = min(at_once, total)
    turns = -(-total // at_once)
    rows = jnp.arange(turns * at_once, dtype=jnp.int32) % total

    def turn(given):
        batch = written(task, policy, *given, sampling, repeats=repeats)
        return batch.reward, batch.valid

    graded = jax.lax.map(turn, (rows.reshape(turns, at_once), jax.random.split(key, turns)))
    reward, valid = (x.reshape(-1, repeats)[:total] for x in graded)
    return reward, valid


@part
class Accompanied:
    """`prompts` prompts in shuffled order, `own` completions of each by the policy and, behind them in the group, its demonstration."""

    prompts: int = hyper(8, at_least=1)  # different prompts an iteration
    own: int = hyper(8, at_least=1)  # completions of each by the policy
    sampling: Sampling = Sampling()

    groups = Grouped.groups
    size = Grouped.size
    temperature = Grouped.temperature
    init = Grouped.init
    tell = Grouped.tell

    @property
    def completions(self) -> int:
        return self.own + 1

    def refuse(self, task):
        return no_verifier(task) or Demonstrated.refuse(self, task)

    def gather(self, state: Order, task, policy, key):
        k_order, k_write = jax.random.split(key)
        prompts, state = draw_prompts(state, self.prompts, k_order)
        own = written(task, policy, prompts, k_write, self.sampling, repeats=self.own)
        batch = joined([own, demonstrated(task, prompts)])
        order = jnp.argsort(batch.group, stable=True)  # each demonstration behind its group
        return jax.tree.map(lambda x: x[order], batch), state
