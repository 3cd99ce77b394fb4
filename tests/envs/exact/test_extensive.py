"""Games in extensive form: Kuhn poker's known numbers, and everything against playing out the tree."""

import functools

import jax
import numpy as np
import pytest

from polopt.envs.exact import extensive, games, tabular
from tests.envs.exact.helpers import compiled, together

pytestmark = pytest.mark.usefixtures("x64")

close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
ext, gam, tab = compiled(extensive), compiled(games), compiled(tabular)


@functools.cache
def kuhn():
    with jax.enable_x64(True):
        return extensive.kuhn_poker()


def uniform(game):
    return tuple(game.mask(p) / game.mask(p).sum(1, keepdims=True) for p in range(2))


def random_policies(game, seed=0):
    rng = np.random.default_rng(seed)
    weights = [np.exp(rng.normal(size=game.mask(p).shape)) * game.mask(p) for p in range(2)]
    return tuple(w / w.sum(1, keepdims=True) for w in weights)


def played(policies, cards, moves=""):
    """The payoff of player 0 in Kuhn poker, told a second time: by its rules."""
    if moves in ("pp", "bb", "pbb", "bp", "pbp"):
        higher = 1 if cards[0] > cards[1] else -1
        return {"pp": higher, "bb": 2 * higher, "pbb": 2 * higher, "bp": 1, "pbp": -1}[moves]
    player = len(moves) % 2
    row = policies[player][kuhn().known[player].index((cards[player], moves))]
    return row[0] * played(policies, cards, moves + "p") + row[1] * played(policies, cards, moves + "b")


def expected_payoff(policies):
    return np.mean([played(policies, (i, j)) for i in range(3) for j in range(3) if i != j])


def test_kuhn_poker():
    """Catalogue, lspo oracle 1: value -1/18; the uniform policy is worth .125 and exploitable by .45833."""
    game = kuhn()
    assert [len(known) for known in game.known] == [6, 6]
    value, policies = extensive.equilibrium(game)
    policies = tuple(np.asarray(p) for p in policies)
    known = together(extensive.values, extensive.exploitability)
    close(value, -1 / 18)
    for found, wanted in zip(known(game, policies), ([-1 / 18, 1 / 18], 0)):
        close(found, wanted)
    for found, wanted in zip(known(game, uniform(game)), ([0.125, -0.125], 11 / 24)):
        close(found, wanted)
    # player 0 bluffs with the lowest card at most a third of the time, and bets the highest three times as often
    bet = {known: policies[0][i, 1] for i, known in enumerate(game.known[0])}
    assert -1e-9 <= bet[0, ""] <= 1 / 3 + 1e-9 and bet[2, ""] == pytest.approx(3 * bet[0, ""], abs=1e-7) and bet[1, ""] == pytest.approx(0, abs=1e-9)


def test_the_tree_played_out():
    game, policies = kuhn(), random_policies(kuhn())
    close(ext.values(game, policies)[0], expected_payoff(policies))
    for player, sign in enumerate((1, -1)):
        value, best = ext.best_response(game, policies, player)
        replies = list(policies)
        replies[player] = best
        close(sign * expected_payoff(replies), value)
        every = []
        for choice in np.ndindex(*(2,) * 6):
            replies[player] = np.eye(2)[list(choice)]
            every.append(sign * expected_payoff(replies))
        close(value, max(every))


@pytest.mark.parametrize("player", [0, 1])
def test_derivatives_are_counterfactual_values(player):
    """d(value) / d(policy at I) = own reach x counterfactual value."""
    game, policies = kuhn(), random_policies(kuhn())

    def everything(game, policies):
        value = lambda own: extensive.values(game, (own, policies[1]) if player == 0 else (policies[0], own))[player]  # noqa: E731
        x = extensive.plan(game, player, policies[player])
        return (
            jax.grad(value)(policies[player]),
            extensive.counterfactual_values(game, policies, player),
            x,
            extensive.behaviour(game, player, x),
            extensive.action_values(game, policies, player),
            extensive.opponent_reach(game, policies, player),
        )

    gradient, counterfactual, x, again, q, reach = compiled(everything)(game, policies)
    close(gradient, x[list(game.parents[player])][:, None] * counterfactual)
    close(again, policies[player])
    close(q * reach[:, None], counterfactual)


def test_one_step_of_magnetic_mirror_descent():
    """Catalogue, update_equivalence claim C: exploitability .458 to .242 from the uniform blueprint, with alpha .05, eta 1."""
    game, policies = kuhn(), uniform(kuhn())
    logits = tuple((np.log(policies[p]) + ext.action_values(game, policies, p)) / (1 + 0.05) for p in range(2))
    np.testing.assert_allclose(ext.exploitability(game, ext.softmax(game, logits)), 0.242, atol=5e-4)


@pytest.mark.parametrize("player", [0, 1])
def test_a_fixed_opponent_makes_a_process(player):
    game, policies = kuhn(), random_policies(kuhn(), 1)
    mdp = ext.against(game, player, policies[1 - player])
    tabular.check(mdp)
    own = np.concatenate([policies[player], np.full((1, 2), 0.5)])
    close(tab.objective(mdp, own), ext.values(game, policies)[player])
    close(tab.optimal(mdp).values @ mdp.start, ext.best_response(game, policies, player)[0])
    close(tab.state_action_values(mdp, own)[:-1], ext.action_values(game, policies, player))


def test_matrix_games():
    A, B = np.random.default_rng(0).normal(size=(2, 2, 3))
    close(extensive.equilibrium(extensive.matrix_game(A)).value, games.zero_sum_equilibrium(A).value, atol=1e-8)
    game = extensive.matrix_game(A, B)
    x, y = random_policies(game)
    close(ext.values(game, (x, y)), gam.payoffs(A, B, x[0], y[0]))
    close(ext.nash_conv(game, (x, y)), gam.nash_conv(A, B, x[0], y[0]))
    with pytest.raises(ValueError, match="payoffs of this game do not cancel"):
        extensive.equilibrium(game)


def test_tiny_hanabi():
    """Both players earn the same: game C of the catalogue (update_equivalence), by hand."""
    payoff = np.array([[[[3, 0], [0, 3]], [[2, 0], [3, 3]]], [[[2, 2], [3, 0]], [[0, 1], [0, 2]]]], float)
    game = extensive.tiny_hanabi(payoff)
    assert [len(known) for known in game.known] == [2, 4]
    first, second = random_policies(game)
    rows = {known: second[i] for i, known in enumerate(game.known[1])}
    by_hand = sum(payoff[c, d, a, b] * first[game.known[0].index((c,)), a] * rows[d, a][b] / 4 for c, d, a, b in np.ndindex(2, 2, 2, 2))
    close(ext.values(game, (first, second)), [by_hand, by_hand])


def test_uneven_actions_and_ends_before_a_move():
    """A player without a move, an information set with fewer actions than another, two own moves in a row."""

    def node(history):
        if history == ():
            return extensive.Chance(((0.5, ("quiet",)), (0.5, ("loud",))))
        if history == ("quiet",):
            return extensive.End((4.0, -4.0))
        if history == ("loud",):
            return extensive.Decision(0, "first", (("loud", 0), ("loud", 1)))
        if history == ("loud", 1):
            return extensive.Decision(0, "second", tuple(("loud", 1, a) for a in range(3)))
        payoff = 1.0 if history == ("loud", 0) else (-1.0, 0.0, 2.0)[history[-1]]
        return extensive.End((payoff, -payoff))

    game = extensive.compile_game((), node)
    policies = uniform(game)
    close(ext.uniform(game)[0], [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    close(ext.values(game, policies)[0], 2 + 0.5 * (0.5 * 1 + 0.5 * (1 / 3)))
    value, best = ext.best_response(game, policies, 0)
    close(value, 2 + 0.5 * 2)
    close(best, [[0, 1, 0], [0, 0, 1]])
    close(extensive.equilibrium(game).value, 3)
    mdp = ext.against(game, 0, policies[1])
    tabular.check(mdp)
    close(mdp.start @ tab.optimal(mdp).values, 1)


def test_forgetting_is_refused():
    def node(history):
        return extensive.End((0.0, 0.0)) if len(history) == 2 else extensive.Decision(0, "I forgot", ((*history, 0), (*history, 1)))

    with pytest.raises(ValueError, match="has forgotten its own moves at 'I forgot'"):
        extensive.compile_game((), node)
    with pytest.raises(ValueError, match=r"policy of player 0 has the shape \(2, 2\), but \(6, 2\)"):
        extensive.plan(kuhn(), 0, np.ones((2, 2)))
