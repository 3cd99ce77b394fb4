"""Markov decision processes judged by the average reward: gain, bias, stationary distribution.

For a policy under which one class of states recurs (unichain), with stationary distribution d = d P_pi,

    g = sum_s d(s) r_pi(s)        h = r_pi - g + P_pi h,  sum_s d(s) h(s) = 0        Q = r - g + P h        grad g = d(s) pi(a|s) A(s, a)

A process without an end is expected. The discount is not used. Source: Puterman, Markov Decision Processes (1994), chapter 8.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polopt.envs.exact import tabular
from polopt.envs.exact.tabular import TabularMDP, expectation, policy_kernel, times


def _kernel(mdp: TabularMDP, policy: Array) -> Array:
    if mdp.terminal is not None:
        raise ValueError("A process with terminal states has no average reward; let its ends lead back to the start.")
    return policy_kernel(mdp, policy)


def stationary(mdp: TabularMDP, policy: Array) -> Array:
    """d (S,): the long-run share of time in each state, d = d P_pi. It solves d (I - P_pi + 1 1^T) = 1^T."""
    kernel = _kernel(mdp, policy)
    return jnp.linalg.solve((jnp.eye(mdp.states, dtype=kernel.dtype) - kernel + 1).T, jnp.ones_like(mdp.start))


def gain(mdp: TabularMDP, policy: Array) -> Array:
    """g: the average reward a step; (M,) with objectives."""
    return stationary(mdp, policy) @ expectation(policy, mdp.reward)


def bias(mdp: TabularMDP, policy: Array) -> Array:
    """h (S,): how much more than g a step is earned in total when starting in s; its mean under the stationary distribution is 0."""
    kernel, d = _kernel(mdp, policy), stationary(mdp, policy)
    reward = expectation(policy, mdp.reward)
    fundamental = jnp.eye(mdp.states, dtype=kernel.dtype) - kernel + d[None, :]
    return jnp.linalg.solve(fundamental, reward - jnp.broadcast_to(d @ reward, reward.shape))


def state_action_values(mdp: TabularMDP, policy: Array) -> Array:
    """Q (S, A) = r - g + P h, the differential action values; their mean under the policy is h."""
    average = jnp.broadcast_to(gain(mdp, policy), mdp.reward.shape)
    return mdp.reward - average + jnp.einsum("sap,p...->sa...", mdp.transition, bias(mdp, policy))


def advantages(mdp: TabularMDP, policy: Array) -> Array:
    """A (S, A) = Q - h."""
    q = state_action_values(mdp, policy)
    return q - expectation(policy, q)[:, None]


def policy_gradient(mdp: TabularMDP, logits: Array) -> Array:
    """dg / dlogits (S, A) = d(s) pi(a|s) A(s, a) for softmax logits."""
    policy = jax.nn.softmax(logits)
    return times(stationary(mdp, policy)[:, None] * policy, advantages(mdp, policy))


class Optimum(NamedTuple):
    """The greatest gain, the bias (S,) and the differential action values (S, A) of a policy (S, A) that attains it."""

    gain: Array
    bias: Array
    action_values: Array
    policy: Array


def optimal(mdp: TabularMDP, *, iterations: int = 100) -> Optimum:
    """The optimum by policy iteration, exact up to rounding. For processes in which every policy is unichain."""
    tabular._scalar("average.optimal", mdp)
    fixed = jax.lax.stop_gradient(mdp)
    uniform = jnp.full_like(fixed.reward, 1 / mdp.actions)
    policy = tabular.policy_iteration(lambda p: state_action_values(fixed, p), uniform, iterations, rising=False)
    q = state_action_values(mdp, policy)
    policy = jax.lax.stop_gradient(tabular.greedy(q))
    return Optimum(gain(mdp, policy), bias(mdp, policy), state_action_values(mdp, policy), policy)
