"""Markov decision processes with a finite horizon, and their trajectories: all of them, or some.

Over steps t = 0 ... H-1 and with V_H = 0,

    Q_t(s, a) = r_t(s, a) + gamma sum_s' P_t(s'|s, a) V_t+1(s')        J = sum_s mu(s) V_0(s)

`policy` is (H, S, A), a table a step, or (S, A), the same at every step; transition and reward may depend on the step too. The discount is the
process's own: set it to 1 for undiscounted returns. Rewards may carry a last axis of objectives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.envs.exact.tabular import TabularMDP, _scalar, alive, dynamics, greedy, times


def stages(mdp: TabularMDP, horizon: int) -> tuple[Array, Array]:
    """Transition (H, S, A, S) and reward (H, S, A[, M]) of every step, with nothing after the end."""
    P, reward = dynamics(mdp)
    if not mdp.staged:
        return jnp.broadcast_to(P, (horizon, *P.shape)), jnp.broadcast_to(reward, (horizon, *reward.shape))
    if P.shape[0] != horizon:
        raise ValueError(f"The horizon is {horizon}, but the process describes {P.shape[0]} steps; give that as the horizon.")
    return P, reward


def _policies(mdp: TabularMDP, policy: Array, horizon: int) -> Array:
    table = (mdp.states, mdp.actions)
    if policy.shape not in (table, (horizon, *table)):
        raise ValueError(f"The policy has the shape {policy.shape}, but {table} or {(horizon, *table)}, steps by states by actions, is expected.")
    return jnp.broadcast_to(policy, (horizon, *table))


def _evaluate(mdp: TabularMDP, horizon: int, act) -> tuple[Array, Array]:
    """V (H+1, S) and Q (H, S, A), where `act(t, Q_t)` is the policy of step t."""
    P, reward = stages(mdp, horizon)

    def back(v, step):
        t, P, r = step
        q = r + mdp.discount * jnp.einsum("sap,p...->sa...", P, v)
        v = jnp.einsum("sa,sa...->s...", act(t, q), q)
        return v, (v, q)

    last = jnp.zeros_like(reward[0, :, 0])
    _, (v, q) = jax.lax.scan(back, last, (jnp.arange(horizon), P, reward), reverse=True)
    return jnp.concatenate([v, last[None]]), q


def values(mdp: TabularMDP, policy: Array, horizon: int) -> Array:
    """V (H+1, S): V[t, s] is what remains from state s at step t; V[H] = 0."""
    policies = _policies(mdp, policy, horizon)
    return _evaluate(mdp, horizon, lambda t, q: policies[t])[0]


def state_action_values(mdp: TabularMDP, policy: Array, horizon: int) -> Array:
    """Q (H, S, A)."""
    policies = _policies(mdp, policy, horizon)
    return _evaluate(mdp, horizon, lambda t, q: policies[t])[1]


def advantages(mdp: TabularMDP, policy: Array, horizon: int) -> Array:
    """A (H, S, A) = Q - V."""
    policies = _policies(mdp, policy, horizon)
    v, q = _evaluate(mdp, horizon, lambda t, q: policies[t])
    return q - v[:-1, :, None]


def objective(mdp: TabularMDP, policy: Array, horizon: int) -> Array:
    """J: a number, or (M,) with objectives."""
    return mdp.start @ values(mdp, policy, horizon)[0]


def occupancy(mdp: TabularMDP, policy: Array, horizon: int, *, discounted: bool) -> Array:
    """d (H, S, A): the probability of being in s at step t and taking a, times gamma^t if discounted. J = sum of discounted d times r."""
    P, _ = stages(mdp, horizon)
    policies = _policies(mdp, policy, horizon)
    factor = mdp.discount if discounted else 1.0

    def forward(d, step):
        P, policy = step
        both = d[:, None] * policy
        return factor * jnp.einsum("sa,sap->p", both, P), both

    return jax.lax.scan(forward, mdp.start * alive(mdp), (P, policies))[1]


def policy_gradient(mdp: TabularMDP, logits: Array, horizon: int) -> Array:
    """dJ / dlogits for the softmax policy of logits (H, S, A) or (S, A): gamma^t d_t(s) pi(a|s) A_t(s, a), summed over steps for the latter."""
    policy = jax.nn.softmax(logits)
    gradient = times(occupancy(mdp, policy, horizon, discounted=True), advantages(mdp, policy, horizon))
    return gradient if logits.ndim == 3 else gradient.sum(0)


class Optimum(NamedTuple):
    """V* (H+1, S), Q* (H, S, A) and a deterministic policy (H, S, A) that attains them."""

    values: Array
    action_values: Array
    policy: Array


def optimal(mdp: TabularMDP, horizon: int) -> Optimum:
    """The optimum by one backward pass."""
    _scalar("finite.optimal", mdp)
    v, q = _evaluate(mdp, horizon, lambda t, q: greedy(q))
    return Optimum(v, q, greedy(q))


# -- trajectories ------------------------------------------------------------------------------------------------------


class Trajectories(NamedTuple):
    """All N = S (A S)^H trajectories, in no order that matters. Behind a terminal state they stand still and are paid nothing.

    states (N, H+1), actions (N, H), rewards (N, H[, M]); chance (N,) is what the process contributes to the probability: mu times the P's.
    """

    states: Array
    actions: Array
    rewards: Array
    chance: Array


LARGEST = 2_000_000  # trajectories


def enumerate_trajectories(mdp: TabularMDP, horizon: int) -> Trajectories:
    """Every trajectory, so that the expectation of any estimator is a sum: E[f] = sum_i trajectory_probabilities[i] f(trajectory i)."""
    S, A = mdp.states, mdp.actions
    count = S * (A * S) ** horizon
    if count > LARGEST:
        raise ValueError(f"There are {count} trajectories, more than {LARGEST}; take a smaller process or a shorter horizon than {horizon}.")
    digits = np.stack(np.unravel_index(np.arange(count), (S, *((A, S) * horizon))), -1)
    states, actions = jnp.asarray(digits[:, ::2]), jnp.asarray(digits[:, 1::2])
    _, reward = stages(mdp, horizon)
    P = jnp.broadcast_to(_absorbing(mdp), (horizon, S, A, S))
    t = jnp.broadcast_to(jnp.arange(horizon), (count, horizon))
    chance = mdp.start[states[:, 0]] * jnp.prod(P[t, states[:, :-1], actions, states[:, 1:]], -1)
    return Trajectories(states, actions, reward[t, states[:, :-1], actions], chance)


def trajectory_probabilities(trajectories: Trajectories, policy: Array) -> Array:
    """(N,): the probability of each trajectory under a policy (S, A) or (H, S, A); differentiable in the policy."""
    _, actions, _, chance = trajectories
    states = trajectories.states[:, :-1]
    t = jnp.broadcast_to(jnp.arange(actions.shape[1]), actions.shape)
    taken = policy[states, actions] if policy.ndim == 2 else policy[t, states, actions]
    return chance * jnp.prod(taken, -1)


def _absorbing(mdp: TabularMDP) -> Array:
    """The transition in which a terminal state is never left."""
    if mdp.terminal is None:
        return mdp.transition
    stay = jnp.eye(mdp.states, dtype=mdp.transition.dtype)[:, None, :]
    where = mdp.terminal[:, None, None]
    if mdp.staged:
        stay, where = stay[None], where[None]
    return jnp.where(where, stay, mdp.transition)


class Rollout(NamedTuple):
    """One sampled trajectory: states (H+1,), actions (H,), rewards (H,[, M]), and alive (H,): whether the step was made before the end."""

    states: Array
    actions: Array
    rewards: Array
    alive: Array


def rollout(mdp: TabularMDP, policy: Array, key: Array, horizon: int) -> Rollout:
    """One trajectory of `horizon` steps under a policy (S, A) or (H, S, A), paid the mean rewards. Batches by `vmap` over keys, or over processes."""
    policies = cumulative(_policies(mdp, policy, horizon))
    P, (_, reward) = cumulative(_absorbing(mdp)), stages(mdp, horizon)
    live = alive(mdp) > 0
    k_start, k_steps = jax.random.split(key)

    def step(state, inputs):
        t, uniform = inputs
        action = draw(policies[t, state], uniform[0])
        following = draw(P[t, state, action] if mdp.staged else P[state, action], uniform[1])
        return following, (state, action, reward[t, state, action], live[state])

    first = draw(cumulative(mdp.start), jax.random.uniform(k_start))
    uniforms = jax.random.uniform(k_steps, (horizon, 2))
    last, (states, actions, rewards, lives) = jax.lax.scan(step, first, (jnp.arange(horizon), uniforms))
    return Rollout(jnp.append(states, last), actions, rewards, lives)


def discounted_return(mdp: TabularMDP, rewards: Array) -> Array:
    """sum_t gamma^t r_t of rewards (H,) or (H, M)."""
    weights = jnp.power(jnp.asarray(mdp.discount, rewards.dtype), jnp.arange(rewards.shape[0]))
    return weights @ rewards


def cumulative(probabilities: Array) -> Array:
    """Running sums over the last axis for `draw`: exactly 1 from the last possible entry on, so that no impossible one is ever drawn.

    Of a NumPy array, a NumPy array.
    """
    xp = np if isinstance(probabilities, np.ndarray) else jnp
    c = xp.cumsum(probabilities, axis=-1)
    behind = xp.flip(xp.cumsum(xp.flip(probabilities, -1), axis=-1), -1) - probabilities
    return xp.where(behind > 0, c / c[..., -1:], xp.ones_like(c))


def draw(cumulative: Array, uniform: Array) -> Array:
    """The entry, int32, that a uniform number in [0, 1) picks."""
    return jnp.sum(cumulative <= uniform, dtype=jnp.int32)


def steps_for(discount: float, tolerance: float) -> int:
    """The least H with gamma^H <= tolerance: how far a truncated sum must go."""
    return max(1, math.ceil(math.log(tolerance) / math.log(discount))) if 0 < discount < 1 else 1
