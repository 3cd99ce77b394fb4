"""Values under the worst of many kernels, or under a convex measure of risk.

In place of the expectation sum_s' P(s') V(s') stands a functional `worst(P, V)`, concave in V and below the expectation; it is applied for
every state and action alone (rectangular sets):

    Q(s, a) = r(s, a) + gamma worst(P(.|s, a), V)        V(s) = sum_a pi(a|s) Q(s, a)        or max_a Q(s, a)

The functionals here map P (S, A, S) and V (S,) to (S, A):

    contamination(delta)       (1 - delta) E[V] + delta min V
    total_variation(radius)    min of E'[V] over kernels within this distance, sum |P' - P| / 2 <= radius (an L1 ball of twice the radius)
    kl_ball(radius)            min of E'[V] over KL(P' || P) <= radius: max_beta -beta log E[exp(-V / beta)] - beta radius
    entropic(beta)             -log E[exp(-beta V)] / beta: the least E'[V] + KL(P' || P) / beta

Sources: Iyengar, Robust dynamic programming (2005); Nilim and El Ghaoui (2005); Zhang et al., Regularized robust MDPs and risk-sensitive MDPs (2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from polopt.envs.exact import tabular
from polopt.envs.exact.tabular import TabularMDP, expectation, greedy

Functional = Callable[[Array, Array], Array]


def expected(P: Array, values: Array) -> Array:
    """E[V]: no risk."""
    return P @ values


def contamination(delta: float) -> Functional:
    """With probability delta the worst state of all comes next."""
    return lambda P, values: (1 - delta) * (P @ values) + delta * values.min()


def total_variation(radius: float) -> Functional:
    """Mass up to `radius` moves from the best next states to the worst state of all."""

    def worst(P, values):
        order = jnp.argsort(-values)
        v, p = values[order], P[..., order]
        mass = jnp.minimum(radius, 1 - p[..., -1:])
        moved = jnp.clip(mass - (jnp.cumsum(p, axis=-1) - p), 0, p)
        return p @ v + mass[..., 0] * v[-1] - moved @ v

    return worst


def kl_ball(radius: float, *, halvings: int = 100) -> Functional:
    """The worst kernel is P exp(-lambda V) / Z with lambda such that its KL to P is the radius, or the worst possible state alone."""

    def worst(P, values):
        v = (values - values.min()) / jnp.maximum(jnp.ptp(values), jnp.finfo(values.dtype).tiny)
        log_p = jnp.log(P)

        def tilted(log_tilt):
            return jax.nn.softmax(log_p - jnp.exp(log_tilt)[..., None] * v[None, None, :])

        def divergence(log_tilt):
            q = tilted(log_tilt)
            return jnp.sum(jnp.where(q > 0, q * (jnp.log(jnp.where(q > 0, q, 1)) - jnp.where(q > 0, log_p, 0)), 0), -1)

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) / 2
            far = divergence(middle) > radius
            return jnp.where(far, low, middle), jnp.where(far, middle, high)

        shape = P.shape[:-1]
        wide = 0.5 * jnp.log(jnp.finfo(values.dtype).max)
        low, _ = jax.lax.fori_loop(0, halvings, halve, (jnp.full(shape, -wide), jnp.full(shape, wide)))
        # at the optimum the multiplier's own derivative adds nothing
        return jax.lax.stop_gradient(tilted(low)) @ values

    return worst


def entropic(beta: float) -> Functional:
    """The certainty equivalent of an exponential utility: an adversary pays KL / beta to move the kernel."""

    def worst(P, values):
        least = jax.lax.stop_gradient(values.min())
        return least - jnp.log(P @ jnp.exp(-beta * (values - least))) / beta

    return worst


def lookahead(mdp: TabularMDP, values: Array, worst: Functional) -> Array:
    """Q (S, A) = r + gamma worst(P, V)."""
    tabular._scalar("robust.lookahead", mdp)
    live = tabular.alive(mdp)
    return (mdp.reward + mdp.discount * worst(mdp.transition, values * live)) * live[:, None]


def _fixed_point(step, mdp: TabularMDP, iterations: int) -> Array:
    def more(loop):
        v, _, count = loop
        new = step(v)
        return new, jnp.max(jnp.abs(new - v)) > 2 * jnp.finfo(v.dtype).eps * (1 + jnp.abs(v).max()), count + 1

    start = (jnp.zeros_like(mdp.start), jnp.array(True), 0)
    return jax.lax.while_loop(lambda loop: loop[1] & (loop[2] < iterations), more, start)[0]


def values(mdp: TabularMDP, policy: Array, worst: Functional, *, iterations: int = 20_000) -> Array:
    """V (S,) of a policy, by iteration until rounding. Not differentiable by itself; `nominal` is."""
    fixed = jax.lax.stop_gradient(mdp)
    return _fixed_point(lambda v: expectation(policy, lookahead(fixed, v, worst)), fixed, iterations)


def optimal(mdp: TabularMDP, worst: Functional, *, iterations: int = 20_000) -> tabular.Optimum:
    """V* (S,), Q* (S, A) and a deterministic policy (S, A), by iteration until rounding."""
    fixed = jax.lax.stop_gradient(mdp)
    v = _fixed_point(lambda v: lookahead(fixed, v, worst).max(-1), fixed, iterations)
    q = lookahead(fixed, v, worst)
    return tabular.Optimum(v, q, greedy(q))


def nominal(mdp: TabularMDP, values: Array, worst: Functional) -> TabularMDP:
    """The ordinary process in which the adversary's answer to `values` is fixed: its kernel, and its price as a part of the reward.

    At the values of a policy, this process has the same Q, J and, by the envelope theorem, the same policy gradient; so `tabular.policy_gradient`
    of it is the robust one.
    """
    live = tabular.alive(mdp)
    answer = jax.jacrev(lambda v: worst(mdp.transition, v * live))(values)
    price = worst(mdp.transition, values * live) - answer @ values
    return dataclasses.replace(mdp, transition=answer, reward=mdp.reward + mdp.discount * price)
