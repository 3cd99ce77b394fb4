"""Linear systems with quadratic costs.

    x' = A x + B u + w,  w ~ N(0, W)        cost x^T Q x + u^T R u        u = -K x + e,  e ~ N(0, E)        gamma discount

With F = A - B K, the cost of a gain K, and its derivatives (with n states, m inputs and K of shape (m, n)):

    P_K = Q + K^T R K + gamma F^T P_K F                                    V(x) = x^T P_K x + constant
    S_K = S_0 + gamma / (1 - gamma) (W + B E B^T) + gamma F S_K F^T        discounted sum of E[x x^T], S_0 = E[x_0 x_0^T]
    C(K) = tr(P_K S_0) + gamma / (1 - gamma) tr(P_K W) + tr((R + gamma B^T P_K B) E) / (1 - gamma)
    dC/dK = 2 [(R + gamma B^T P_K B) K - gamma B^T P_K A] S_K

Everything here is a cost, to be minimised. With discount 1 there is no noise, or the average cost is meant (`average_cost`). Source: Fazel et al.,
Global convergence of policy gradient methods for the linear quadratic regulator (2018); Anderson and Moore, Optimal Control (1990).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.envs.exact.tabular import as_array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LQR:
    """A (n, n), B (n, m), Q (n, n), R (m, m), both symmetric; W (n, n) the covariance of the noise, start (n, n) the second moment E[x_0 x_0^T]."""

    A: Array
    B: Array
    Q: Array
    R: Array
    W: Array
    start: Array
    discount: float | Array = 0.99


def lqr(A, B, Q, R, *, noise=0.0, start=1.0, discount: float = 0.99) -> LQR:
    """A system from plain numbers or arrays; numbers for Q, R, noise and start mean that multiple of the identity (noise: a variance)."""
    A, B = as_array(A), as_array(B)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or B.ndim != 2 or B.shape[0] != A.shape[0]:
        raise ValueError(f"A has the shape {A.shape} and B {B.shape}, but (states, states) and (states, inputs) are expected.")
    n, m = B.shape

    def square(what, x, size):
        x = as_array(x * np.eye(size) if np.ndim(x) == 0 else x)
        if x.shape != (size, size):
            raise ValueError(f"{what} has the shape {x.shape}, but ({size}, {size}), or a number, is expected.")
        return x

    return LQR(A, B, square("Q", Q, n), square("R", R, m), square("noise", noise, n), square("start", start, n), discount)


def double_integrator(
    dt: float = 0.1, *, state_cost: tuple[float, float] = (1.0, 0.1), action_cost: float = 0.1, noise: float = 0.0, discount: float = 0.99
) -> LQR:
    """A mass pushed by a force: position and velocity, x_1' = x_1 + dt x_2, x_2' = x_2 + dt u."""
    return lqr([[1, dt], [0, 1]], [[0], [dt]], np.diag(state_cost), action_cost, noise=noise, discount=discount)


def random_lqr(key: Array, states: int, inputs: int, *, radius: float = 0.9, noise: float = 0.0, discount: float = 0.95) -> LQR:
    """Gaussian A scaled to the spectral radius, Gaussian B, identity costs. Pure: may be vmapped over keys."""
    k_a, k_b = jax.random.split(key)
    A = jax.random.normal(k_a, (states, states))
    return lqr(A * radius / spectral_radius(A), jax.random.normal(k_b, (states, inputs)), 1.0, 1.0, noise=noise, discount=discount)


def with_constant(system: LQR, cost: Array) -> LQR:
    """The system on (x, 1), whose cost is (x, 1)^T cost (x, 1), with cost (n+1, n+1): set points and other affine problems. Needs a discount below 1.

    The gain then has a last column, the constant part of an affine policy. The start has mean 0.
    """
    n = system.A.shape[0]
    pad = lambda x, corner: jnp.zeros((n + 1, n + 1), x.dtype).at[:n, :n].set(x).at[n, n].set(corner)  # noqa: E731
    if cost.shape != (n + 1, n + 1):
        raise ValueError(f"The cost has the shape {cost.shape}, but ({n + 1}, {n + 1}), states and a constant, is expected.")
    B = jnp.concatenate([system.B, jnp.zeros_like(system.B[:1])])
    return dataclasses.replace(system, A=pad(system.A, 1), B=B, Q=cost, W=pad(system.W, 0), start=pad(system.start, 1))


# -- a given gain ------------------------------------------------------------------------------------------------------


def closed_loop(system: LQR, gain: Array) -> Array:
    """F (n, n) = A - B K."""
    if gain.shape != system.B.shape[::-1]:
        raise ValueError(f"The gain has the shape {gain.shape}, but {system.B.shape[::-1]}, inputs by states, is expected.")
    return system.A - system.B @ gain


def spectral_radius(F: Array) -> Array:
    """The greatest absolute value of an eigenvalue."""
    return jnp.abs(jnp.linalg.eigvals(F)).max()


def stable(system: LQR, gain: Array) -> Array:
    """Whether the discounted cost of a gain is finite: sqrt(gamma) times the closed loop's spectral radius is below 1. Check it before `cost`, which
    gives a number for unstable gains too."""
    return jnp.sqrt(jnp.asarray(system.discount)) * spectral_radius(closed_loop(system, gain)) < 1


def lyapunov(F: Array, M: Array) -> Array:
    """The solution X (n, n) of X = M + F^T X F, by one linear solve of size n^2."""
    n = F.shape[0]
    X = jnp.linalg.solve(jnp.eye(n * n, dtype=F.dtype) - jnp.kron(F.T, F.T), M.reshape(-1)).reshape(n, n)
    return (X + X.T) / 2


def value_matrix(system: LQR, gain: Array) -> Array:
    """P_K (n, n), with V(x) = x^T P_K x + `value_constant`."""
    F = jnp.sqrt(jnp.asarray(system.discount, gain.dtype)) * closed_loop(system, gain)
    return lyapunov(F, system.Q + gain.T @ system.R @ gain)


def value_constant(system: LQR, gain: Array, exploration: Array | None = None) -> Array:
    """What noise adds to V(x): [gamma tr(P_K W) + tr((R + gamma B^T P_K B) E)] / (1 - gamma), and 0 without noise."""
    P = value_matrix(system, gain)
    per_step = system.discount * jnp.trace(P @ system.W)
    if exploration is not None:
        per_step += jnp.trace((system.R + system.discount * system.B.T @ P @ system.B) @ exploration)
    return jnp.where(per_step == 0, 0, per_step / (1 - jnp.asarray(system.discount, gain.dtype)))


def cost(system: LQR, gain: Array, exploration: Array | None = None) -> Array:
    """C(K), the expected discounted sum of costs of u = -K x + e, e ~ N(0, exploration (m, m))."""
    return jnp.trace(value_matrix(system, gain) @ system.start) + value_constant(system, gain, exploration)


def state_moments(system: LQR, gain: Array, exploration: Array | None = None) -> Array:
    """S_K (n, n) = sum_t gamma^t E[x_t x_t^T]."""
    discount = jnp.asarray(system.discount, gain.dtype)
    disturbance = system.W if exploration is None else system.W + system.B @ exploration @ system.B.T
    added = jnp.where(disturbance == 0, 0, disturbance * discount / (1 - discount))
    return lyapunov(jnp.sqrt(discount) * closed_loop(system, gain).T, system.start + added)


def action_value_matrix(system: LQR, gain: Array) -> Array:
    """H (n+m, n+m) with Q(x, u) = (x, u)^T H (x, u) + constant, when the gain is followed after u. dQ/du at u is 2 (H_ux x + H_uu u)."""
    P, both = value_matrix(system, gain), jnp.concatenate([system.A, system.B], 1)
    n = system.A.shape[0]
    H = system.discount * both.T @ P @ both
    return H.at[:n, :n].add(system.Q).at[n:, n:].add(system.R)


def natural_gradient(system: LQR, gain: Array) -> Array:
    """2 [(R + gamma B^T P_K B) K - gamma B^T P_K A], (m, n): dC/dK S_K^-1, and 0 exactly at the best gain.

    For a Gaussian policy of fixed covariance E the natural gradient (occupancy unnormalised) is E times this.
    """
    n = system.A.shape[0]
    H = action_value_matrix(system, gain)
    return 2 * (H[n:, n:] @ gain - H[n:, :n])


def cost_gradient(system: LQR, gain: Array, exploration: Array | None = None) -> Array:
    """dC/dK (m, n) in closed form."""
    return natural_gradient(system, gain) @ state_moments(system, gain, exploration)


def improved(system: LQR, gain: Array) -> Array:
    """The greedy gain for the value of `gain`: gamma (R + gamma B^T P_K B)^-1 B^T P_K A. One step of policy iteration (Kleinman, 1968)."""
    n = system.A.shape[0]
    H = action_value_matrix(system, gain)
    return jnp.linalg.solve(H[n:, n:], H[n:, :n])


def average_cost(system: LQR, gain: Array, exploration: Array | None = None) -> Array:
    """The long-run cost a step, without discount: tr(P_K W) + tr((R + B^T P_K B) E), for gains that are stable with discount 1."""
    undiscounted = dataclasses.replace(system, discount=1.0)
    P = value_matrix(undiscounted, gain)
    average = jnp.trace(P @ system.W)
    return average if exploration is None else average + jnp.trace((system.R + system.B.T @ P @ system.B) @ exploration)


# -- the best gain -----------------------------------------------------------------------------------------------------


class Solution(NamedTuple):
    """P (n, n), with V*(x) = x^T P x + constant, and the best gain K (m, n), u = -K x. With a horizon: P (H+1, n, n), K (H, m, n)."""

    values: Array
    gain: Array


def riccati(system: LQR, *, iterations: int = 60) -> Solution:
    """The solution of P = Q + gamma A^T P A - gamma^2 A^T P B (R + gamma B^T P B)^-1 B^T P A, by doubling: k rounds look 2^k steps ahead.

    For R positive definite and a system that can be stabilised. One step of policy iteration at the end removes what rounding left.
    """
    root = jnp.sqrt(jnp.asarray(system.discount, system.A.dtype))
    A, B = root * system.A, root * system.B
    identity = jnp.eye(A.shape[0], dtype=A.dtype)

    def double(loop):
        A, G, P, _, count = loop
        inner = jnp.linalg.solve(identity + G @ P, jnp.concatenate([A, G], 1))
        A_inner, G_inner = jnp.split(inner, 2, axis=1)
        new = P + A.T @ P @ A_inner
        more = jnp.any(jnp.abs(new - P) > jnp.finfo(P.dtype).eps * jnp.abs(new).max())
        return A @ A_inner, G + A @ G_inner @ A.T, (new + new.T) / 2, more, count + 1

    start = (A, B @ jnp.linalg.solve(system.R, B.T), system.Q, jnp.array(True), 0)
    P = jax.lax.while_loop(lambda loop: loop[3] & (loop[4] < iterations), double, start)[2]
    K = jnp.linalg.solve(system.R + B.T @ P @ B, B.T @ P @ A)
    K = improved(system, K)
    return Solution(value_matrix(system, K), K)


def finite_riccati(system: LQR, horizon: int, final: Array | None = None) -> Solution:
    """The backward recursion over `horizon` steps from the final cost x^T final x, by default Q."""
    discount = system.discount

    def back(P, _):
        S = system.R + discount * system.B.T @ P @ system.B
        K = jnp.linalg.solve(S, discount * system.B.T @ P @ system.A)
        F = closed_loop(system, K)
        new = system.Q + K.T @ system.R @ K + discount * F.T @ P @ F
        return (new + new.T) / 2, (new, K)

    last = system.Q if final is None else final
    _, (P, K) = jax.lax.scan(back, last, None, length=horizon, reverse=True)
    return Solution(jnp.concatenate([P, last[None]]), K)


class Saddle(NamedTuple):
    """P (n, n), the control u = -K x and the worst disturbance w = L x."""

    values: Array
    gain: Array
    disturbance: Array


def saddle(system: LQR, channel: Array, price: float | Array, *, iterations: int = 100_000) -> Saddle:
    """The saddle point of x' = A x + B u + D w with cost x^T Q x + u^T R u - price w^T w, D = channel (n, k), by value iteration from 0.

    The price is a squared attenuation level; below the best attainable level there is no saddle point, and the values do not converge. The gradient
    flows through none of it. Source: Basar and Bernhard, H-infinity Optimal Control (1995).
    """
    m, k = system.B.shape[1], channel.shape[1]
    both = jnp.concatenate([system.B, channel], 1)
    weights = jnp.zeros((m + k, m + k), both.dtype).at[:m, :m].set(system.R).at[m:, m:].set(-price * jnp.eye(k, dtype=both.dtype))

    def gains(P):
        return jnp.linalg.solve(weights + system.discount * both.T @ P @ both, system.discount * both.T @ P @ system.A)

    def step(loop):
        P, _, count = loop
        new = system.Q + system.discount * system.A.T @ P @ (system.A - both @ gains(P))
        new = (new + new.T) / 2
        return new, jnp.any(jnp.abs(new - P) > jnp.finfo(P.dtype).eps * jnp.abs(new).max()), count + 1

    start = (jnp.zeros_like(system.Q), jnp.array(True), 0)
    P = jax.lax.while_loop(lambda loop: loop[1] & (loop[2] < iterations), step, start)[0]
    K = gains(P)
    return Saddle(P, K[:m], -K[m:])
