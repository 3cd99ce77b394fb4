"""Games of preferences against closed forms and the catalogue's numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.envs.exact import preferences

CYCLE = preferences.rock_paper_scissors(0.9)


def random_game(seed: int, size: int = 6):
    A = jax.random.normal(jax.random.key(seed), (size, size))
    return preferences.from_scores(jax.random.normal(jax.random.key(seed + 1), (size,)), A - A.T)


def test_rock_paper_scissors():
    """The minimax winner is uniform and cannot be exploited; a certain choice loses the win probability - 1/2. Dominated ones get nothing."""
    uniform = np.full(3, 1 / 3)
    np.testing.assert_allclose(preferences.minimax_winner(CYCLE), uniform, atol=1e-9)
    assert preferences.exploitability(CYCLE, uniform) == pytest.approx(0, abs=1e-6)
    assert preferences.exploitability(CYCLE, jnp.eye(3)[1]) == pytest.approx(0.4)
    np.testing.assert_allclose(preferences.win_rates(CYCLE, jnp.eye(3)[0]), [0.5, 0.9, 0.1], rtol=1e-6)
    larger = preferences.rock_paper_scissors(0.95, dominated=7, loss=0.8)
    np.testing.assert_allclose(larger + larger.T, 1)
    np.testing.assert_allclose(preferences.minimax_winner(larger), [*uniform, *[0] * 7], atol=1e-9)
    assert larger[0, 5] == pytest.approx(0.8)


def test_the_winner_of_a_random_game():
    """Self-play's oracle 5: no response beats it."""
    P = np.asarray(random_game(0), np.float64)
    P = (P + 1 - P.T) / 2
    assert (P @ preferences.minimax_winner(P)).max() <= 0.5 + 1e-6


def test_the_regularised_nash_policy():
    """nash_md, oracles 1 and 2: a sigmoid for two responses, the fixed point, and the numbers of a cycle."""
    two = jnp.array([[0.5, 0.8], [0.2, 0.5]])
    assert preferences.regularised_nash(two, jnp.array([0.5, 0.5]), 0.3)[0] == pytest.approx(0.731059, abs=1e-5)
    mu = jnp.array([0.7, 0.2, 0.1])
    cycle = jnp.asarray(CYCLE.T, jnp.float32)  # the first beats the second
    pi = preferences.regularised_nash(cycle, mu, 0.1)
    np.testing.assert_allclose(pi, [0.446578, 0.187854, 0.365568], atol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(jnp.log(mu) + cycle @ pi / 0.1), pi, atol=1e-5)
    np.testing.assert_allclose(preferences.regularised_nash(cycle, mu, 1e4), mu, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_duality_gap(seed):
    """0 at the Nash policy, positive elsewhere, and what the best response gains; the value of the game is 1/2 (nash_md, oracle 5)."""
    P, tau = random_game(seed), 0.2
    mu, pi = (jax.nn.softmax(jax.random.normal(jax.random.key(10 * seed + i), (6,))) for i in (1, 2))
    log_mu = jnp.log(mu)
    nash = preferences.regularised_nash(P, mu, tau)
    assert preferences.duality_gap(P, jnp.log(nash), log_mu, tau) == pytest.approx(0, abs=1e-5)
    gap = preferences.duality_gap(P, jnp.log(pi), log_mu, tau)
    best = jax.nn.softmax(log_mu + P @ pi / tau)
    assert gap > 0
    np.testing.assert_allclose(gap, preferences.regularised_payoff(P, best, pi, mu, tau) - 0.5, atol=1e-5)
    assert preferences.regularised_payoff(P, nash, nash, mu, tau) == pytest.approx(0.5, abs=1e-6)


def test_policies_along_a_first_axis():
    many = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (4, 3)))
    P, log_mu = jnp.asarray(CYCLE, jnp.float32), jnp.log(jnp.array([0.7, 0.2, 0.1]))
    gaps = preferences.duality_gap(P, many, log_mu, 0.1)
    np.testing.assert_allclose(gaps, [preferences.duality_gap(P, one, log_mu, 0.1) for one in many], rtol=1e-4)
    np.testing.assert_allclose(preferences.exploitability(P, jnp.exp(many)), [preferences.exploitability(P, jnp.exp(one)) for one in many], rtol=1e-5)


def test_what_is_no_table_of_preferences():
    with pytest.raises(ValueError, match=r"P \+ P\^T = 1 are expected"):
        preferences.minimax_winner(np.full((2, 2), 0.6))
