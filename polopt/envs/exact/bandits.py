"""Bandits with known means, with contexts or without.

Symbols: C contexts with chances rho(c), K arms, means m(c, k), policy pi(c, k).

    J(pi) = sum_c rho(c) sum_k pi(k|c) m(c, k)        dJ / dlogits(c, k) = rho(c) pi(k|c) [m(c, k) - sum_j pi(j|c) m(c, j)]

Tables are always (C, K); a bandit without contexts has C = 1. Means may carry a last axis of objectives.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.envs.exact.finite import cumulative, draw
from polopt.envs.exact.problems import _one_of
from polopt.envs.exact.tabular import TabularMDP, as_array, expectation, greedy, times


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bandit:
    """means (C, K) or (C, K, objectives); contexts (C,), their chances; deviation: of Gaussian rewards; None for Bernoulli rewards."""

    means: Array
    contexts: Array
    deviation: float | Array | None = None

    @property
    def arms(self) -> int:
        return self.means.shape[1]

    @property
    def objectives(self) -> int:
        return self.means.shape[2] if self.means.ndim == 3 else 0


def bernoulli(means: Array, contexts: Array | None = None) -> Bandit:
    """Rewards 1 with the chances `means`, (K,) or (C, K), else 0; contexts are uniform by default."""
    return _bandit(means, contexts, None)


def gaussian(means: Array, contexts: Array | None = None, *, deviation: float = 1.0) -> Bandit:
    """Rewards N(means, deviation^2), means (K,) or (C, K); contexts are uniform by default."""
    return _bandit(means, contexts, deviation)


def _bandit(means, contexts, deviation) -> Bandit:
    means = as_array(means)
    means = means[None] if means.ndim == 1 else means
    count = means.shape[0]
    contexts = as_array(np.full(count, 1 / count) if contexts is None else contexts)
    if means.ndim not in (2, 3) or contexts.shape != (count,):
        given = f"means {means.shape} and contexts {contexts.shape}"
        raise ValueError(f"The bandit has the shapes {given}, but (contexts, arms) and (contexts,) are expected.")
    return Bandit(means, contexts, deviation)


def random_bandit(key: Array, arms: int, contexts: int = 1, *, reward: str = "bernoulli", deviation: float = 1.0) -> Bandit:
    """Uniform contexts; "bernoulli": means U[0, 1], or "gaussian": means N(0, 1) with the given deviation."""
    _one_of("reward", reward, ("bernoulli", "gaussian"))
    shape = (contexts, arms)
    if reward == "bernoulli":
        return bernoulli(jax.random.uniform(key, shape))
    return gaussian(jax.random.normal(key, shape), deviation=deviation)


def value(bandit: Bandit, policy: Array) -> Array:
    """J of a policy (C, K): a number, or (objectives,)."""
    if policy.shape != bandit.means.shape[:2]:
        raise ValueError(f"The policy has the shape {policy.shape}, but {bandit.means.shape[:2]}, contexts by arms, is expected.")
    return bandit.contexts @ expectation(policy, bandit.means)


def optimal_value(bandit: Bandit) -> Array:
    """J of the best arm in every context."""
    return bandit.contexts @ bandit.means.max(1)


def optimal_policy(bandit: Bandit) -> Array:
    """(C, K): the first best arm in every context."""
    return greedy(bandit.means)


def regret(bandit: Bandit, policy: Array) -> Array:
    """The optimal value less J: the expected loss of one pull."""
    return optimal_value(bandit) - value(bandit, policy)


def advantages(bandit: Bandit, policy: Array) -> Array:
    """(C, K): m(c, k) less its mean under the policy."""
    return bandit.means - expectation(policy, bandit.means)[:, None]


def policy_gradient(bandit: Bandit, logits: Array) -> Array:
    """dJ / dlogits (C, K) of the softmax policy; (C, K, objectives) with objectives."""
    policy = jax.nn.softmax(logits)
    return times(bandit.contexts[:, None] * policy, advantages(bandit, policy))


def draw_context(bandit: Bandit, key: Array) -> Array:
    """A context, int32."""
    return draw(cumulative(bandit.contexts), jax.random.uniform(key))


def draw_reward(bandit: Bandit, key: Array, context: Array, arm: Array) -> Array:
    """A reward for an arm: a number, or (objectives,)."""
    mean = bandit.means[context, arm]
    if bandit.deviation is None:
        return jax.random.bernoulli(key, mean).astype(mean.dtype)
    return mean + bandit.deviation * jax.random.normal(key, mean.shape, mean.dtype)


def as_mdp(bandit: Bandit) -> TabularMDP:
    """The same as a process of one step: the contexts, and an end."""
    count, end = bandit.contexts.shape[0], bandit.contexts.shape[0]
    states = jnp.arange(count + 1)
    pad = lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])])  # noqa: E731
    transition = jnp.broadcast_to(jnp.eye(count + 1, dtype=bandit.means.dtype)[end], (count + 1, bandit.arms, count + 1))
    return TabularMDP(transition, pad(bandit.means), pad(bandit.contexts), 1.0, terminal=states == end)


def scaled(bandit: Bandit, factor: float) -> Bandit:
    """Gaussian rewards multiplied by `factor`."""
    if bandit.deviation is None:
        raise ValueError("Bernoulli rewards are 0 and 1 and cannot be scaled; make a Gaussian bandit of the same means.")
    return dataclasses.replace(bandit, means=factor * bandit.means, deviation=factor * bandit.deviation)
