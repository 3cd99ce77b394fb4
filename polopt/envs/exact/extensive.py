"""Small games of two players in extensive form, exactly: values, best responses, exploitability, equilibria.

A game is told as a function from histories to nodes (`Chance`, `Decision`, `End`), and compiled once to its sequence form. A sequence of a player is
what it has done on the way to a point: nothing, or an action a at an information set I. With realisation plans x, y, where

    x(nothing) = 1        x(I, a) = x(sequence that leads to I) pi(a | I)

the players expect x^T U1 y and x^T U2 y, bilinear in the plans. Players are assumed to forget nothing (perfect recall). A policy is a table
(information sets, actions) for each player. Sources: von Stengel, Efficient computation of behavior strategies (1996); Koller, Megiddo and von
Stengel (1996); Kuhn, A simplified two-person poker (1950); Zinkevich et al., Regret minimization in games with incomplete information (2007).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.envs.exact.tabular import TabularMDP, as_array


class Chance(NamedTuple):
    """Nature moves: pairs of probability and next history."""

    branches: tuple[tuple[float, Hashable], ...]


class Decision(NamedTuple):
    """A player, 0 or 1, moves: what it knows (its information set), and the next history of each action."""

    player: int
    known: Hashable
    branches: tuple[Hashable, ...]


class End(NamedTuple):
    """The game is over: what each player earns."""

    payoffs: tuple[float, float]


Policies = tuple[Array, Array]
"""One table (information sets, actions) for each player; an action that an information set lacks has probability 0."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Game:
    """A game in sequence form. Player p has I_p information sets, A_p actions at most, and N_p = 1 + I_p A_p sequences: 0 for nothing, 1 + I A_p + a.

    payoffs:   for each player what it earns, (N_0, N_1): chance times payoff, summed over the ends that two sequences reach.
    reach:     for each player (I_p, N_other): the chance to be in an information set, given that the other does a sequence and it plays to get there.
    known:     for each player the information sets, in the order of the tables; an earlier one never follows on a later one.
    parents:   for each player the sequence that leads to each information set.
    legal:     for each player how many actions each information set has.
    """

    payoffs: tuple[Array, Array]
    reach: tuple[Array, Array]
    known: tuple[tuple[Hashable, ...], ...] = field(metadata=dict(static=True))
    parents: tuple[tuple[int, ...], ...] = field(metadata=dict(static=True))
    legal: tuple[tuple[int, ...], ...] = field(metadata=dict(static=True))

    def actions(self, player: int) -> int:
        return max(self.legal[player], default=1)

    def mask(self, player: int) -> np.ndarray:
        """(I_p, A_p) bool: the actions that exist."""
        return np.arange(self.actions(player)) < np.array(self.legal[player])[:, None]

    def levels(self, player: int) -> list[np.ndarray]:
        """The information sets by the number of own ones before them."""
        depth: list[int] = []
        for parent in self.parents[player]:
            depth.append(0 if parent == 0 else 1 + depth[(parent - 1) // self.actions(player)])
        return [np.flatnonzero(np.array(depth) == level) for level in range(max(depth, default=-1) + 1)]


def compile_game(first: Hashable, node: Callable[[Hashable], Chance | Decision | End]) -> Game:
    """The sequence form of the game that starts at the history `first` and of which `node` tells what each history is."""
    known: tuple[dict, dict] = ({}, {})  # information set -> (its number, parent as (number, action) or None, legal actions)
    ends, visits = [], []

    def visit(history, chance, paths):
        here = node(history)
        if isinstance(here, End):
            ends.append((chance, paths, here.payoffs))
        elif isinstance(here, Chance):
            for probability, following in here.branches:
                visit(following, chance * probability, paths)
        else:
            player, sets = here.player, known[here.player]
            number, parent, legal = sets.setdefault(here.known, (len(sets), paths[player], len(here.branches)))
            if parent != paths[player] or legal != len(here.branches):
                raise ValueError(f"Player {player} has forgotten its own moves at {here.known!r}; make them a part of what it knows.")
            visits.append((player, number, chance, paths[1 - player]))
            for action, following in enumerate(here.branches):
                moved = (number, action)
                visit(following, chance, (moved, paths[1]) if player == 0 else (paths[0], moved))

    visit(first, 1.0, (None, None))
    legal = tuple(tuple(entry[2] for entry in sets.values()) for sets in known)
    width = [max(counts, default=1) for counts in legal]
    sizes = [1 + len(sets) * w for sets, w in zip(known, width)]

    def sequence(player, move):
        return 0 if move is None else 1 + move[0] * width[player] + move[1]

    payoffs = np.zeros((2, *sizes))
    for chance, paths, earned in ends:
        payoffs[:, sequence(0, paths[0]), sequence(1, paths[1])] += chance * np.asarray(earned, np.float64)
    reach = [np.zeros((len(known[p]), sizes[1 - p])) for p in range(2)]
    for player, number, chance, other in visits:
        reach[player][number, sequence(1 - player, other)] += chance
    return Game(
        tuple(as_array(u) for u in payoffs),
        tuple(as_array(r) for r in reach),
        tuple(tuple(sets) for sets in known),
        tuple(tuple(sequence(p, entry[1]) for entry in known[p].values()) for p in range(2)),
        legal,
    )


# -- evaluation --------------------------------------------------------------------------------------------------------


def uniform(game: Game) -> Policies:
    """Every legal action alike."""
    return tuple(jnp.asarray(game.mask(p) / game.mask(p).sum(1, keepdims=True), game.payoffs[p].dtype) for p in range(2))


def softmax(game: Game, logits: Policies) -> Policies:
    """Softmax over the legal actions of logits of the tables' shapes."""
    return tuple(jax.nn.softmax(jnp.where(game.mask(p), logits[p], -jnp.inf)) for p in range(2))


def plan(game: Game, player: int, policy: Array) -> Array:
    """The realisation plan (N_p,) of a policy (I_p, A_p)."""
    if policy.shape != game.mask(player).shape:
        raise ValueError(f"The policy of player {player} has the shape {policy.shape}, but {game.mask(player).shape} is expected.")
    parents = np.array(game.parents[player], int)
    x = jnp.zeros(1 + policy.size, policy.dtype).at[0].set(1)
    for sets in game.levels(player):
        x = x.at[_sequences(game, player, sets)].set(x[parents[sets]][:, None] * policy[sets])
    return x


def behaviour(game: Game, player: int, plan: Array) -> Array:
    """The policy (I_p, A_p) of a realisation plan (N_p,); uniform where the plan never comes. Of a NumPy array, a NumPy array."""
    xp, mask = np if isinstance(plan, np.ndarray) else jnp, game.mask(player)
    table = xp.where(mask, plan[1:].reshape(mask.shape), 0)
    total = table.sum(1, keepdims=True)
    return xp.where(total > 0, table / xp.where(total > 0, total, 1), mask / mask.sum(1, keepdims=True)).astype(plan.dtype)


def values(game: Game, policies: Policies) -> Array:
    """(2,): what the players expect."""
    x, y = (plan(game, p, policies[p]) for p in range(2))
    return jnp.stack([x @ payoff @ y for payoff in game.payoffs])


def opponent_reach(game: Game, policies: Policies, player: int) -> Array:
    """(I_p,): the probability to be in an information set, over chance and the other player, if this one plays to get there."""
    return game.reach[player] @ plan(game, 1 - player, policies[1 - player])


def counterfactual_values(game: Game, policies: Policies, player: int) -> Array:
    """(I_p, A_p): what an action earns, weighted by `opponent_reach`, all going on by `policies`; 0 where an action does not exist."""
    choose = policies[player]
    return _backward(game, policies, player, lambda sets, q: jnp.sum(choose[sets] * q, -1))[1]


def action_values(game: Game, policies: Policies, player: int) -> Array:
    """q (I_p, A_p): the expected payoff given the information set and an action, everybody going on by `policies`; 0 where it is never reached."""
    reach = opponent_reach(game, policies, player)[:, None]
    return jnp.where(reach > 0, counterfactual_values(game, policies, player) / jnp.where(reach > 0, reach, 1), 0)


def best_response(game: Game, policies: Policies, player: int) -> tuple[Array, Array]:
    """The best value against the other's policy, and a deterministic policy (I_p, A_p) that attains it."""
    mask = game.mask(player)
    best = lambda sets, q: jnp.where(mask[sets], q, -jnp.inf).max(-1)  # noqa: E731
    value, q = _backward(game, policies, player, best)
    choice = jnp.argmax(jnp.where(mask, q, -jnp.inf), -1)
    return value, jax.nn.one_hot(choice, mask.shape[1], dtype=q.dtype)


def nash_conv(game: Game, policies: Policies) -> Array:
    """The sum of what the players would gain by their best responses."""
    now = values(game, policies)
    return sum(best_response(game, policies, p)[0] - now[p] for p in range(2))


def exploitability(game: Game, policies: Policies) -> Array:
    """NashConv / 2."""
    return nash_conv(game, policies) / 2


def _sequences(game: Game, player: int, sets: np.ndarray) -> np.ndarray:
    width = game.actions(player)
    return 1 + sets[:, None] * width + np.arange(width)[None, :]


def _backward(game: Game, policies: Policies, player: int, choose) -> tuple[Array, Array]:
    """The value of the game and the counterfactual values (I_p, A_p) when `choose(sets, their values)` sums up each information set."""
    opponent = plan(game, 1 - player, policies[1 - player])
    total = game.payoffs[0] @ opponent if player == 0 else opponent @ game.payoffs[1]
    parents = np.array(game.parents[player], int)
    for sets in reversed(game.levels(player)):
        total = total.at[parents[sets]].add(choose(sets, total[_sequences(game, player, sets)]))
    return total[0], jnp.where(game.mask(player), total[1:].reshape(game.mask(player).shape), 0)


# -- solution ----------------------------------------------------------------------------------------------------------


class Equilibrium(NamedTuple):
    """value for player 0, and both policies."""

    value: float
    policies: Policies


def equilibrium(game: Game) -> Equilibrium:
    """The value of a zero-sum game and an equilibrium, by the linear program of the sequence form."""
    payoff, other = (np.asarray(u, np.float64) for u in game.payoffs)
    if not np.allclose(payoff, -other, atol=1e-6):
        raise ValueError("The linear program solves zero-sum games, but the payoffs of this game do not cancel.")
    plans = [_maximin(game, 0, payoff), _maximin(game, 1, -payoff.T)]
    policies = tuple(as_array(behaviour(game, p, plans[p])) for p in range(2))
    return Equilibrium(float(plans[0] @ payoff @ plans[1]), policies)


def _maximin(game: Game, player: int, payoff: np.ndarray) -> np.ndarray:
    """The plan x that maximises min_y x^T payoff y: maximise v_0 with E^T v <= payoff^T x for the other's plan constraints E y = e."""
    from scipy.optimize import linprog

    own, others = _constraints(game, player), _constraints(game, 1 - player)
    n, k = payoff.shape[0], others.shape[0]
    objective = np.zeros(n + k)
    objective[n] = -1
    legal = np.append(True, game.mask(player).ravel())
    solved = linprog(
        objective,
        A_ub=np.hstack([-payoff.T, others.T]),
        b_ub=np.zeros(payoff.shape[1]),
        A_eq=np.hstack([own, np.zeros((own.shape[0], k))]),
        b_eq=np.eye(own.shape[0])[0],
        bounds=[*((0, None if ok else 0) for ok in legal), *[(None, None)] * k],
    )
    return np.maximum(solved.x[:n], 0)


def _constraints(game: Game, player: int) -> np.ndarray:
    """E (1 + I_p, N_p): the plan is 1 for nothing, and what enters an information set leaves it."""
    mask, parents = game.mask(player), game.parents[player]
    E = np.zeros((1 + len(parents), 1 + mask.size))
    E[0, 0] = 1
    for number, parent in enumerate(parents):
        E[1 + number, parent] -= 1
        E[1 + number, 1 + number * mask.shape[1] + np.arange(mask.shape[1])] += mask[number]
    return E


def against(game: Game, player: int, opponent: Array) -> TabularMDP:
    """The player's problem when the other's policy is fixed: a process over its information sets, and an end. Undiscounted.

    A reward is the mean payoff of the ends that come before the player's next move, so that J is the expected payoff, less what the game pays
    when the player never moves. An action that does not exist does what action 0 does.
    """
    y = plan(game, 1 - player, opponent)
    earned = game.payoffs[0] @ y if player == 0 else y @ game.payoffs[1]
    reach = game.reach[player] @ y
    mask, parents = game.mask(player), np.array(game.parents[player], int)
    I, A = mask.shape
    share = jnp.where(reach > 0, 1 / jnp.where(reach > 0, reach, 1), 0)
    meant = np.arange(I)[:, None], np.where(mask, np.arange(A), 0)
    reward = (earned[1:].reshape(I, A) * share[:, None])[meant]
    # the next information set is reached with the ratio of the two reaches
    leads = np.zeros((1 + I * A, I))
    leads[parents, np.arange(I)] = 1
    P = jnp.asarray(leads[1:].reshape(I, A, I), earned.dtype) * share[:, None, None] * reach[None, None, :]
    P = P[meant]
    P = jnp.concatenate([P, 1 - P.sum(-1, keepdims=True)], -1)
    end = jnp.broadcast_to(jnp.eye(I + 1, dtype=P.dtype)[I], (1, A, I + 1))
    start = jnp.asarray(leads[0], P.dtype) * reach
    return TabularMDP(
        jnp.clip(jnp.concatenate([P, end]), 0, 1),
        jnp.concatenate([reward, jnp.zeros((1, A), P.dtype)]),
        jnp.append(start, jnp.maximum(1 - start.sum(), 0)),
        1.0,
        terminal=jnp.arange(I + 1) == I,
    )


# -- games -------------------------------------------------------------------------------------------------------------


def kuhn_poker() -> Game:
    """Three cards, one each, an ante of 1, one bet of 1. Actions: 0 passes (or folds), 1 bets (or calls). The value is -1/18 for player 0.

    An information set is (the own card 0, 1 or 2, the moves so far as a word of p and b).
    """

    def node(history):
        if history is None:
            return Chance(tuple((1 / 6, ((i, j), "")) for i in range(3) for j in range(3) if i != j))
        cards, moves = history
        if moves in ("pp", "pbp", "pbb", "bp", "bb"):
            if moves.endswith("bp"):  # the one who bet wins the ante
                won = 1 if moves == "bp" else -1
            else:
                won = (2 if moves.endswith("bb") else 1) * (1 if cards[0] > cards[1] else -1)
            return End((won, -won))
        player = len(moves) % 2
        return Decision(player, (cards[player], moves), ((cards, moves + "p"), (cards, moves + "b")))

    return compile_game(None, node)


def tiny_hanabi(payoff) -> Game:
    """A game of common payoff[card 0, card 1, action 0, action 1]: each player holds a uniform card; player 0 moves first, seen by player 1.

    Source: Foerster et al., Bayesian action decoder (2019).
    """
    payoff = np.asarray(payoff, np.float64)
    if payoff.ndim != 4:
        raise ValueError(f"The payoff has the shape {payoff.shape}, but (cards, cards, actions, actions) is expected.")
    cards, _, first, second = payoff.shape
    chance = 1 / (cards * payoff.shape[1])

    def node(history):
        if len(history) == 0:
            return Chance(tuple((chance, deal) for deal in np.ndindex(payoff.shape[:2])))
        if len(history) == 2:
            return Decision(0, (history[0],), tuple((*history, a) for a in range(first)))
        if len(history) == 3:
            return Decision(1, history[1:], tuple((*history, a) for a in range(second)))
        return End((payoff[history], payoff[history]))

    return compile_game((), node)


def matrix_game(A, B=None) -> Game:
    """A matrix game in extensive form: player 1 does not see what player 0 chose."""
    A = np.asarray(A, np.float64)
    B = -A if B is None else np.asarray(B, np.float64)

    def node(history):
        if len(history) == 2:
            return End((A[history], B[history]))
        return Decision(len(history), (), tuple((*history, a) for a in range(A.shape[len(history)])))

    return compile_game((), node)
