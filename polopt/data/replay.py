"""Replay: the last transitions of every copy of an environment, as part of the state."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part


class Steps(NamedTuple):
    """What is stored of each step, time-major (steps, envs, ...). `ended` where the episode terminated or was cut after it."""

    observation: Any
    action: Any
    reward: jax.Array
    next_observation: Any  # the true successor, also at an end
    terminated: jax.Array
    ended: jax.Array
    cost: jax.Array | None = None  # (steps, envs, costs), where steps bear any


class Transitions(NamedTuple):
    """A minibatch (n, ...) of transitions over up to n_step steps.

    reward:   sum of gamma^k r_k until n steps are made or the episode ends.
    discount: gamma to the number of those steps, what multiplies the value of `next_observation`; 0 where the episode terminated.
    weight:   of each transition in the loss; 1 where drawn uniformly.
    index:    where it lies in the ring, (n, 2) as (time, env).
    cost:     (n, costs) summed as the reward, None where steps bear none.
    """

    observation: Any
    action: Any
    reward: jax.Array
    discount: jax.Array
    next_observation: Any
    weight: jax.Array
    index: jax.Array
    cost: jax.Array | None = None


class Ring(eqx.Module):
    """The stored steps (length, envs, ...), where the next one goes, how many rows are filled, and what they are drawn by."""

    steps: Steps
    position: jax.Array
    filled: jax.Array
    priority: jax.Array | None


@part
class Replay:
    """Transitions drawn uniformly from the last `capacity`, or in proportion to a power of their last error.

    Prioritised replay is that of Schaul et al. (arXiv:1511.05952): P(i) = p_i^alpha / sum p^alpha with p = |error| + 1e-6, a new
    transition has the largest priority so far, and the loss is weighted by (N P(i))^-beta, divided by the largest weight of the batch.
    """

    capacity: int = hyper(1_000_000, at_least=1)  # transitions kept, all copies counted; no more than the run has are allocated
    n_step: int = hyper(1, at_least=1)  # steps of reward before the value of the next state is taken
    prioritised: bool = False  # draw by the size of the last error
    alpha: float = hyper(0.6, at_least=0)  # power of a priority, where prioritised
    beta: float = hyper(0.4, at_least=0, at_most=1)  # power of the importance weight, where prioritised

    def start(self, example: Steps, limit: int) -> Ring:
        """An empty ring for blocks like `example` (block, envs, ...), with at most `limit` transitions or one block more."""
        block, envs = example.reward.shape
        blocks = -(-min(self.capacity, limit) // (block * envs))
        length = block * max(blocks, -(-self.n_step // block))
        steps = jax.tree.map(lambda x: jnp.zeros((length, *x.shape[1:]), x.dtype), example)
        priority = jnp.zeros((length, envs)) if self.prioritised else None
        return Ring(steps, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), priority)

    def add(self, ring: Ring, block: Steps) -> Ring:
        """Write a block over the oldest rows. Blocks always have the length of the example, so they never wrap."""
        write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), ring.position, 0)  # noqa: E731
        length, size = ring.steps.reward.shape[0], block.reward.shape[0]
        priority = ring.priority
        if priority is not None:
            largest = jnp.where(ring.filled == 0, 1.0, priority.max())
            priority = write(priority, jnp.full(block.reward.shape, largest))
        return Ring(jax.tree.map(write, ring.steps, block), (ring.position + size) % length, jnp.minimum(ring.filled + size, length), priority)

    def cut(self, ring: Ring) -> Ring:
        """The ring with its newest row marked as an end, so that no return over several steps runs into what is added next."""
        return eqx.tree_at(lambda r: r.steps.ended, ring, ring.steps.ended.at[ring.position - 1].set(True))

    def sample(self, ring: Ring, key, n: int, discount) -> Transitions:
        """`n` transitions with replacement. Rows too new to have n steps after them are not drawn."""
        length, envs = ring.steps.reward.shape
        usable = jnp.maximum(ring.filled - (self.n_step - 1), 1)
        oldest = ring.position - ring.filled
        if self.prioritised:
            age = (jnp.arange(length) - oldest) % length
            p = jnp.where((age < usable)[:, None], ring.priority**self.alpha, 0.0).ravel()
            total = jnp.cumsum(p)
            draw = jnp.searchsorted(total, jax.random.uniform(key, (n,)) * total[-1], side="right")
            draw = jnp.minimum(draw, p.size - 1)
            time, env = draw // envs, draw % envs
            weight = (usable * envs * p[draw] / total[-1]) ** -self.beta
            weight = weight / weight.max()
        else:
            draw = jax.random.randint(key, (n,), 0, usable * envs)
            time, env = (oldest + draw // envs) % length, draw % envs
            weight = jnp.ones((n,))
        return self._transitions(ring, time, env, weight, discount)

    def _transitions(self, ring: Ring, time, env, weight, discount) -> Transitions:
        length = ring.steps.reward.shape[0]
        take = lambda x, t: x[t % length, env]  # noqa: E731
        earned, going, last = (ring.steps.reward[..., None], ring.steps.cost), jnp.ones(time.shape), time
        sums = jax.tree.map(lambda x: jnp.zeros((*time.shape, x.shape[-1])), earned)
        for k in range(self.n_step):
            sums = jax.tree.map(lambda total, x: total + (going * discount**k)[:, None] * take(x, time + k), sums, earned)  # noqa: B023
            last = jnp.where(going > 0, time + k, last)
            going = going * (1 - take(ring.steps.ended, time + k))
        steps = last - time + 1
        return Transitions(
            observation=jax.tree.map(lambda x: take(x, time), ring.steps.observation),
            action=jax.tree.map(lambda x: take(x, time), ring.steps.action),
            reward=sums[0][:, 0],
            discount=discount**steps * (1 - take(ring.steps.terminated, last)),
            next_observation=jax.tree.map(lambda x: take(x, last), ring.steps.next_observation),
            weight=weight,
            index=jnp.stack([time, env], axis=1),
            cost=sums[1],
        )

    def judged(self, ring: Ring, index, error) -> Ring:
        """The ring with the priorities of drawn transitions set by their errors (n,)."""
        if ring.priority is None:
            return ring
        priority = ring.priority.at[index[:, 0], index[:, 1]].set(jnp.abs(error) + 1e-6)
        return Ring(ring.steps, ring.position, ring.filled, priority)
