"""Values and optimum with an entropy bonus, or with a KL penalty to a prior policy.

With temperature tau > 0 and prior rho(a|s) (1 everywhere for the entropy bonus, then the regulariser is tau times the policy's entropy):

    V(s)   = sum_a pi(a|s) [Q(s, a) - tau log(pi(a|s) / rho(a|s))]          Q = r + gamma P V
    V*(s)  = tau log sum_a rho(a|s) exp(Q*(s, a) / tau)                     pi*(a|s) = rho(a|s) exp((Q*(s, a) - V*(s)) / tau)

Source: Ziebart, Modeling purposeful adaptive behavior (2010); Geist et al., A theory of regularized Markov decision processes (2019).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polopt.envs.exact import tabular
from polopt.envs.exact.tabular import TabularMDP, alive, lookahead


def regulariser(policy: Array, prior: Array | None = None) -> Array:
    """sum_a pi log(pi / rho) (S,): the KL to the prior, or the negative entropy without one. An action of probability 0 counts 0."""
    taken = policy > 0
    safe = jnp.where(taken, policy, 1)
    log = jnp.log(safe) if prior is None else jnp.log(safe) - jnp.log(jnp.where(taken, prior, 1))
    return jnp.sum(policy * log, -1)


def values(mdp: TabularMDP, policy: Array, temperature: float | Array, prior: Array | None = None) -> Array:
    """V (S,) of a policy (S, A), its regulariser counted in every step that is made."""
    tabular._scalar("soft.values", mdp)
    penalty = temperature * regulariser(policy, prior)
    return tabular.values(mdp.with_reward(mdp.reward - penalty[:, None]), policy)


def state_action_values(mdp: TabularMDP, policy: Array, temperature: float | Array, prior: Array | None = None) -> Array:
    """Q (S, A) = r + gamma P V: the regulariser of the first step is not in it."""
    return lookahead(mdp, values(mdp, policy, temperature, prior))


def objective(mdp: TabularMDP, policy: Array, temperature: float | Array, prior: Array | None = None) -> Array:
    """J = sum_s mu(s) V(s); differentiable in the policy."""
    return (mdp.start * alive(mdp)) @ values(mdp, policy, temperature, prior)


class Optimum(NamedTuple):
    """V* (S,), Q* (S, A) and the only policy (S, A) that attains them."""

    values: Array
    action_values: Array
    policy: Array


def optimal(mdp: TabularMDP, temperature: float | Array, prior: Array | None = None, *, iterations: int = 200) -> Optimum:
    """The regularised optimum by soft policy iteration, which converges quadratically; exact up to rounding, differentiable once."""
    log_prior = 0.0 if prior is None else jnp.log(prior)
    fixed = jax.lax.stop_gradient((mdp, temperature, log_prior, prior))

    def best(mdp, v, temperature, log_prior):
        return jax.nn.softmax(lookahead(mdp, v) / temperature + log_prior)

    def improve(loop):
        v, _, count = loop
        process, tau, log, rho = fixed
        new = values(process, best(process, v, tau, log), tau, rho)
        return new, jnp.any(new - v > 8 * jnp.finfo(v.dtype).eps * (1 + jnp.abs(v).max())), count + 1

    v = values(fixed[0], jnp.full_like(mdp.reward, 1 / mdp.actions) if prior is None else fixed[3], fixed[1], fixed[3])
    v = jax.lax.while_loop(lambda loop: loop[1] & (loop[2] < iterations), improve, (v, jnp.array(True), 0))[0]
    # the policy is best, so that its own derivative adds nothing to that of the values
    policy = best(fixed[0], v, fixed[1], fixed[2])
    q = lookahead(mdp, values(mdp, policy, temperature, prior))
    policy = jax.nn.softmax(q / temperature + log_prior)
    return Optimum(temperature * jax.nn.logsumexp(q / temperature + log_prior, axis=-1) * alive(mdp), q, policy)
