"""Bandits and matrix games."""

import functools

import jax
import numpy as np
import pytest

from polopt.envs.exact import bandits, games, tabular
from tests.envs.exact.helpers import compiled

pytestmark = pytest.mark.usefixtures("x64")

close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11)
ban, gam, tab = compiled(bandits), compiled(games), compiled(tabular)

# -- bandits -----------------------------------------------------------------------------------------------------------


def test_softmax_bandit():
    """Catalogue, polyak_pg oracle 4: logits (0, 0), rewards (1, 0): J = .5, gradient (.25, -.25)."""
    bandit, half = bandits.bernoulli(np.array([1.0, 0.0])), np.full((1, 2), 0.5)
    close(ban.value(bandit, half), 0.5)
    close(ban.policy_gradient(bandit, np.zeros((1, 2))), [[0.25, -0.25]])
    close(ban.regret(bandit, half), 0.5)


def test_contextual_bandit():
    """Gradient = automatic differentiation; the same numbers as a process of one step."""
    rng = np.random.default_rng(0)
    bandit = bandits.gaussian(rng.normal(size=(3, 4)), np.array([0.2, 0.3, 0.5]))
    logits = rng.normal(size=(3, 4))

    def j(x, bandit):
        return bandits.value(bandit, jax.nn.softmax(x))

    gradient = ban.policy_gradient(bandit, logits)
    close(gradient, compiled(jax.grad(j))(logits, bandit))
    mdp = ban.as_mdp(bandit)
    tabular.check(mdp)
    padded = np.concatenate([logits, np.zeros((1, 4))])
    value, of_process = compiled(jax.value_and_grad(lambda x, mdp: tabular.softmax_objective(mdp, x)))(padded, mdp)
    close(value, compiled(j)(logits, bandit))
    close(of_process[:3], gradient)
    best = ban.optimal_policy(bandit)
    close(ban.value(bandit, best), ban.optimal_value(bandit))
    close(ban.optimal_value(bandit), mdp.start @ tab.optimal(mdp).values)
    close(ban.regret(bandit, best), 0)
    close(ban.optimal_value(bandits.scaled(bandit, 100.0)), 100 * ban.optimal_value(bandit))


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_draws_have_their_means(kind):
    count = 4000

    def draws(key):
        bandit = bandits.random_bandit(key, 3, 2, reward=kind)
        return bandit, jax.vmap(lambda k: bandits.draw_reward(bandit, k, 1, 2))(jax.random.split(key, count))

    bandit, rewards = compiled(draws)(jax.random.key(2))
    assert bandit.means.shape == (2, 3)
    assert abs(rewards.mean() - bandit.means[1, 2]) < 4 * rewards.std() / count**0.5
    assert kind == "gaussian" or set(np.unique(rewards)) == {0.0, 1.0}


def test_bandits_of_other_shapes_are_refused():
    bandit = bandits.bernoulli(np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="Bernoulli rewards are 0 and 1"):
        bandits.scaled(bandit, 2.0)
    with pytest.raises(ValueError, match=r"policy has the shape \(2,\), but \(1, 2\), contexts by arms"):
        bandits.value(bandit, np.full(2, 0.5))
    with pytest.raises(ValueError, match="reward is 'uniform', but one of"):
        bandits.random_bandit(jax.random.key(0), 2, reward="uniform")
    with pytest.raises(ValueError, match=r"means \(2, 2\) and contexts \(3,\)"):
        bandits.bernoulli(np.ones((2, 2)), np.ones(3) / 3)


# -- matrix games ------------------------------------------------------------------------------------------------------

RPS = games.ROCK_PAPER_SCISSORS


def test_rock_paper_scissors():
    value, x, y = games.zero_sum_equilibrium(RPS)
    close([value, *x, *y], [0, *[1 / 3] * 6])
    pure = np.array([1.0, 0.0, 0.0])
    close(gam.exploitability(RPS, None, x, y), 0)
    close(gam.nash_conv(RPS, None, pure, y), 1)
    close(gam.best_responses(RPS, None, pure, pure), [[0, 1, 0], [0, 1, 0]])


def test_preferences():
    """Catalogue, self_play_spo oracles 1 and 5: a triple that beats in a circle, with any win probability, is the minimax winner."""
    P = np.full((5, 5), 0.5)
    for i in range(3):
        P[i, (i + 1) % 3], P[(i + 1) % 3, i] = 0.9, 0.1
        P[i, 3:], P[3:, i] = 0.8, 0.2
    value, x, _ = games.zero_sum_equilibrium(P - 0.5)
    close(value, 0)
    close(x, [1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert np.all(P @ x <= 0.5 + 1e-9)
    close((P @ np.eye(5)[0]).max() - 0.5, 0.4)


def test_zero_sum_games_have_a_value():
    rng = np.random.default_rng(0)
    for shape in ((2, 2), (3, 5), (4, 2)):
        A = rng.normal(size=shape) * 10
        value, x, y = games.zero_sum_equilibrium(A)
        assert (x @ A).min() == pytest.approx(value, abs=1e-7) and (A @ y).max() == pytest.approx(value, abs=1e-7)
    close(games.zero_sum_equilibrium(np.full((2, 3), 7.0)).value, 7)
    # a 2 x 2 game without a saddle point: (ad - bc) / (a + d - b - c)
    close(games.zero_sum_equilibrium([[3.0, -1.0], [-2.0, 4.0]]).value, 1.0)


def test_equilibria_of_bimatrix_games():
    sexes = games.bimatrix_equilibria([[3, 0], [0, 2]], [[2, 0], [0, 3]])
    assert len(sexes) == 3
    close(sexes[-1][0], [0.6, 0.4])
    close(sexes[-1][1], [0.4, 0.6])
    dilemma = games.PRISONERS_DILEMMA
    ((x, y),) = games.bimatrix_equilibria(dilemma, dilemma.T)
    close([x, y], [[0, 1], [0, 1]])
    A, B = np.random.default_rng(1).normal(size=(2, 3, 3))
    found = games.bimatrix_equilibria(A, B)
    assert len(found) % 2 == 1  # nondegenerate games have an odd number
    for x, y in found:
        assert gam.nash_conv(A, B, x, y) < 1e-9


def test_learning_fields():
    rng = np.random.default_rng(2)
    A, B = rng.normal(size=(2, 3, 4))
    logits = rng.normal(size=3), rng.normal(size=4)

    def both(A, B, logits):
        payoff = lambda a, b, p: games.payoffs(A, B, jax.nn.softmax(a), jax.nn.softmax(b))[p]  # noqa: E731
        return games.gradient_field(A, B, *logits), (jax.grad(payoff, 0)(*logits, 0), jax.grad(payoff, 1)(*logits, 1))

    for field, gradient in zip(*compiled(both)(A, B, logits)):
        close(field, gradient)
    third = np.full(3, 1 / 3)
    close(gam.replicator_field(RPS, None, third, third), np.zeros((2, 3)))
    # rock, paper, scissors turns around: the product of the probabilities is constant along the flow
    x, y = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    dx, dy = gam.replicator_field(RPS, None, x, y)
    close((dx / x).sum() + (dy / y).sum(), 0)
    close(ban.value(gam.against(RPS, y), x[None]), gam.payoffs(RPS, None, x, y)[0])


def test_quantal_response():
    """Catalogue, update_equivalence claim B: published values of the perturbed game, scaled to [0, 1]."""
    A = np.array([[0, -3, 3], [3, 0, -1], [-3, 1, 0.0]]) / 6 + 0.5
    softmax = lambda z: np.exp(z) / np.exp(z).sum()  # noqa: E731
    for tau, known in ((0.2, (0.223645, 0.477988, 0.298367)), (0.1, (0.173478, 0.486303, 0.340219))):
        x, y = gam.quantal_response(A, tau)
        np.testing.assert_allclose(x, known, atol=1e-6)
        close(x, softmax(A @ y / tau))
        close(y, softmax(-x @ A / tau))
    magnet = np.array([0.7, 0.2, 0.1])
    x, y = gam.quantal_response(RPS, 0.5, (magnet, magnet))
    close(x, y)
    close(x, softmax(np.log(magnet) + RPS @ x / 0.5))


def test_shapes_of_games():
    with pytest.raises(ValueError, match=r"matrices \(m, n\) and strategies"):
        games.nash_conv(RPS, None, np.ones(2) / 2, np.ones(3) / 3)
    with pytest.raises(ValueError, match="two matrices of one shape"):
        games.bimatrix_equilibria(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"payoff has the shape \(3,\), but a matrix"):
        games.zero_sum_equilibrium(np.ones(3))
