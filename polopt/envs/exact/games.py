"""Matrix games of two players: values, equilibria, exploitability, and the fields that learning follows.

The row player draws i from x (m,) and earns A[i, j]; the column player draws j from y (n,) and earns B[i, j]. A zero-sum game is A alone, B = -A.

    NashConv        = (max_i (A y)_i - x^T A y) + (max_j (x^T B)_j - x^T B y)          0 exactly at an equilibrium
    exploitability  = NashConv / 2 (zero-sum games: the mean of what two best responses gain)

The equilibria of linear programs run on NumPy and SciPy; the rest is pure JAX. A symmetric game of preferences P, with P + P^T = 1, is the zero-sum
game P - 1/2. Sources: von Neumann (1928); Nash (1951); Taylor and Jonker (1978); McKelvey and Palfrey, Quantal response equilibria (1995).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.envs.exact.bandits import Bandit, gaussian

ROCK_PAPER_SCISSORS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
MATCHING_PENNIES = np.array([[1.0, -1.0], [-1.0, 1.0]])
PRISONERS_DILEMMA = np.array([[3.0, 0.0], [5.0, 1.0]])
"""The row player's payoff; the column player's is the transpose. Action 1 defects."""


def payoffs(A: Array, B: Array | None, x: Array, y: Array) -> tuple[Array, Array]:
    """What both players expect; B = -A by default, here and below."""
    _check(A, B, x, y)
    first = x @ A @ y
    return first, -first if B is None else x @ B @ y


def action_values(A: Array, B: Array | None, x: Array, y: Array) -> tuple[Array, Array]:
    """What each action earns against the other's strategy: (m,) and (n,)."""
    _check(A, B, x, y)
    return A @ y, x @ (-A if B is None else B)


def best_responses(A: Array, B: Array | None, x: Array, y: Array) -> tuple[Array, Array]:
    """The first best action of each player against the other's strategy, as strategies (m,) and (n,)."""
    return tuple(jax.nn.one_hot(jnp.argmax(q), q.shape[0], dtype=q.dtype) for q in action_values(A, B, x, y))


def nash_conv(A: Array, B: Array | None, x: Array, y: Array) -> Array:
    """The sum of what the players would gain by their best responses."""
    first, second = action_values(A, B, x, y)
    return first.max() - x @ first + second.max() - second @ y


def exploitability(A: Array, B: Array | None, x: Array, y: Array) -> Array:
    """NashConv / 2."""
    return nash_conv(A, B, x, y) / 2


def replicator_field(A: Array, B: Array | None, x: Array, y: Array) -> tuple[Array, Array]:
    """x_i' = x_i ((A y)_i - x^T A y), and the same for y: what natural policy gradient follows, on probabilities."""
    first, second = action_values(A, B, x, y)
    return x * (first - x @ first), y * (second - y @ second)


def gradient_field(A: Array, B: Array | None, x_logits: Array, y_logits: Array) -> tuple[Array, Array]:
    """Each player's policy gradient on its own softmax logits. As a function of the probabilities it is the replicator field."""
    return replicator_field(A, B, jax.nn.softmax(x_logits), jax.nn.softmax(y_logits))


def against(A: Array, y: Array) -> Bandit:
    """The row player's problem when the column player's strategy is fixed: a bandit that pays the expected payoffs."""
    return gaussian(A @ y, deviation=0.0)


# -- equilibria --------------------------------------------------------------------------------------------------------


class Equilibrium(NamedTuple):
    """value for the row player, strategies x (m,) and y (n,)."""

    value: float
    x: np.ndarray
    y: np.ndarray


def zero_sum_equilibrium(A: Array) -> Equilibrium:
    """The value of a zero-sum game and a maximin and a minimax strategy, by linear programming."""
    A = np.asarray(A, np.float64)
    if A.ndim != 2:
        raise ValueError(f"The payoff has the shape {A.shape}, but a matrix, rows by columns, is expected.")
    x, y = _maximin(A), _maximin(-A.T)
    return Equilibrium(float(x @ A @ y), x, y)


def _maximin(A: np.ndarray) -> np.ndarray:
    """argmax_x min_j (x^T A)_j."""
    from scipy.optimize import linprog

    m, n = A.shape
    low, span = A.min(), max(np.ptp(A), 1e-300)
    A = (A - low) / span
    solved = linprog(
        np.append(np.zeros(m), -1.0),
        A_ub=np.column_stack([-A.T, np.ones(n)]),
        b_ub=np.zeros(n),
        A_eq=np.append(np.ones(m), 0.0)[None],
        b_eq=[1.0],
        bounds=[*[(0, None)] * m, (None, None)],
    )
    x = np.maximum(solved.x[:m], 0)
    return x / x.sum()


def bimatrix_equilibria(A: Array, B: Array, *, tolerance: float = 1e-9) -> list[tuple[np.ndarray, np.ndarray]]:
    """All equilibria with supports of equal size, by trying every pair of supports: every equilibrium of a nondegenerate game. For a few actions."""
    A, B = np.asarray(A, np.float64), np.asarray(B, np.float64)
    if A.ndim != 2 or A.shape != B.shape:
        raise ValueError(f"The payoffs have the shapes {A.shape} and {B.shape}, but two matrices of one shape are expected.")
    m, n = A.shape
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for size in range(1, min(m, n) + 1):
        for rows, columns in itertools.product(itertools.combinations(range(m), size), itertools.combinations(range(n), size)):
            y = _indifferent(A[np.ix_(rows, columns)], columns, n)
            x = _indifferent(B[np.ix_(rows, columns)].T, rows, m)
            if x is None or y is None or min(x.min(), y.min()) < -tolerance:
                continue
            x, y = np.maximum(x, 0) / np.maximum(x, 0).sum(), np.maximum(y, 0) / np.maximum(y, 0).sum()
            gain = (A @ y).max() - x @ A @ y + (x @ B).max() - x @ B @ y
            known = any(np.allclose(x, u, atol=1e-7) and np.allclose(y, v, atol=1e-7) for u, v in found)
            if gain <= tolerance * (1 + np.abs(A).max() + np.abs(B).max()) and not known:
                found.append((x, y))
    return found


def _indifferent(payoff: np.ndarray, support: tuple[int, ...], count: int) -> np.ndarray | None:
    """The strategy on `support` that makes all rows of `payoff` earn the same, or None."""
    size = len(support)
    system = np.block([[payoff, -np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
    try:
        solution = np.linalg.solve(system, np.append(np.zeros(size), 1.0))
    except np.linalg.LinAlgError:
        return None
    strategy = np.zeros(count)
    strategy[list(support)] = solution[:size]
    return strategy


def quantal_response(
    A: Array, temperature: float | Array, magnets: tuple[Array, Array] | None = None, *, iterations: int = 100_000
) -> tuple[Array, Array]:
    """The only x, y with x proportional to rho_x exp(A y / tau) and y to rho_y exp(-x^T A / tau): the equilibrium of the zero-sum game

        x^T A y - tau KL(x || rho_x) + tau KL(y || rho_y)

    with uniform magnets rho by default. By mirror prox, which converges linearly, until rounding. With A = P - 1/2 for preferences P and
    both magnets the reference policy, x = y is the KL-regularised Nash policy, proportional to rho exp(P x / tau).
    """
    A = jnp.asarray(A)
    m, n = A.shape
    log_x, log_y = (jnp.zeros(m, A.dtype), jnp.zeros(n, A.dtype)) if magnets is None else (jnp.log(magnets[0]), jnp.log(magnets[1]))
    step = 1 / jnp.maximum(jnp.abs(A).max(), jnp.finfo(A.dtype).tiny)

    def towards(center, opponent):
        """argmax of the regularised payoff against `opponent` less KL to the center / step, for both players; on log-probabilities."""
        x, y = (jnp.exp(z) for z in opponent)
        pulls = (log_x * temperature + A @ y, log_y * temperature - x @ A)
        return tuple(jax.nn.log_softmax((c + step * p) / (1 + step * temperature)) for c, p in zip(center, pulls))

    def improve(loop):
        z, _, count = loop
        new = towards(z, towards(z, z))
        change = jnp.maximum(*(jnp.abs(jnp.exp(a) - jnp.exp(b)).max() for a, b in zip(new, z)))
        return new, change > jnp.finfo(A.dtype).eps / 8, count + 1

    first = (jax.nn.log_softmax(log_x), jax.nn.log_softmax(log_y))
    z = jax.lax.while_loop(lambda loop: loop[1] & (loop[2] < iterations), improve, (first, jnp.array(True), 0))[0]
    return jnp.exp(z[0]), jnp.exp(z[1])


def _check(A, B, x, y) -> None:
    if A.ndim != 2 or x.shape != A.shape[:1] or y.shape != A.shape[1:] or (B is not None and B.shape != A.shape):
        given = f"A {A.shape}, {'' if B is None else f'B {B.shape}, '}x {x.shape} and y {y.shape}"
        raise ValueError(f"The game has the shapes {given}, but matrices (m, n) and strategies (m,) and (n,) are expected.")
