"""Games of preferences: P (K, K) with P[i, j] the probability that response i is preferred to j, P + P^T = 1. Cycles are allowed.

    P(pi > pi') = pi^T P pi'          exploitability(pi) = max_i P(i > pi) - 1/2          0 exactly for a minimax winner

Regularised towards a reference mu, with P_tau(pi > pi') = P(pi > pi') - tau KL(pi || mu) + tau KL(pi' || mu), the equilibrium is one policy,

    pi* = mu exp(P pi* / tau) / Z          gap(pi) = max_pi' P_tau(pi' > pi) - 1/2 = tau log sum_y mu exp(P(y > pi) / tau) - 1/2 + tau KL(pi || mu)

The value of either game is 1/2. Equilibria are those of `polopt.envs.exact.games`, for the zero-sum game P - 1/2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.envs.exact import games
from polopt.envs.exact.sequences import kl


def from_scores(scores: Array, cycles: Array | None = None) -> Array:
    """sigmoid(u_i - u_j + C_ij): Bradley-Terry for scores u (K,), and with an antisymmetric C (K, K) whatever cycles it holds."""
    difference = scores[:, None] - scores[None, :]
    return jax.nn.sigmoid(difference if cycles is None else difference + cycles)


def rock_paper_scissors(win: float = 0.9, dominated: int = 0, loss: float = 0.9) -> np.ndarray:
    """A cycle of three that wins with probability `win`, and `dominated` responses that lose to each of the three with probability `loss`."""
    P = np.full((3 + dominated, 3 + dominated), 0.5)
    P[:3, :3] += (win - 0.5) * games.ROCK_PAPER_SCISSORS
    P[:3, 3:], P[3:, :3] = loss, 1 - loss
    return P


def win_rates(P: Array, pi: Array) -> Array:
    """(..., K): the probability of each response to be preferred to one of pi (..., K)."""
    return jnp.einsum("ij,...j->...i", P, pi)


def exploitability(P: Array, pi: Array) -> Array:
    """What the best response wins beyond 1/2, (...,)."""
    return win_rates(P, pi).max(-1) - 0.5


def minimax_winner(P: Array) -> np.ndarray:
    """(K,): a policy to which no other is preferred, by linear programming."""
    P = checked(P)
    return games.zero_sum_equilibrium(P - 0.5).x


def regularised_nash(P: Array, mu: Array, tau: float | Array) -> Array:
    """(K,): the only pi = mu exp(P pi / tau) / Z, to rounding."""
    return games.quantal_response(jnp.asarray(P) - 0.5, tau, (mu, mu))[0]


def regularised_payoff(P: Array, pi: Array, other: Array, mu: Array, tau: float | Array) -> Array:
    """P_tau(pi > other)."""
    log = jnp.log
    return pi @ P @ other - tau * kl(log(pi), log(mu)) + tau * kl(log(other), log(mu))


def duality_gap(P: Array, log_pi: Array, log_mu: Array, tau: float | Array) -> Array:
    """What the best response gains in the regularised game, (...,), from log pi (..., K) and log mu (K,): 0 exactly at its equilibrium."""
    log_mu = jnp.broadcast_to(log_mu, log_pi.shape)
    best = tau * jax.nn.logsumexp(log_mu + win_rates(P, jnp.exp(log_pi)) / tau, axis=-1)
    return best - 0.5 + tau * kl(log_pi, log_mu)


def checked(P: Array) -> np.ndarray:
    """P as NumPy. ValueError when it is no table of preferences."""
    P = np.asarray(P, np.float64)
    if P.ndim != 2 or P.shape[0] != P.shape[1] or not np.allclose(P + P.T, 1, atol=1e-5) or P.min() < 0:
        raise ValueError(f"The preferences have the shape {P.shape}, but probabilities (K, K) with P + P^T = 1 are expected.")
    return P
