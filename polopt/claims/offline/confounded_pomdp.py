"""Confounded POMDPs: bridges of a proxy give the gradient and the best policy where what is seen beside the action misleads."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core import spaces
from polopt.data.dataset import Dataset, DataTask
from polopt.methods.offline.confounded_pomdp import BridgeAscent, State, bridge_matrices, bridged_value
from polopt.policies.history_tables import Sizes

EPISODES, ASCENTS = 20_000, 200
START = (0.2, -0.3)  # logits of action 1 after each observation, where gradients are measured
SIGN, ERROR = "sign of the first coordinate is right", "relative error of the first coordinate"
SHORTFALL = "value below the best policy"


class Confounded(NamedTuple):
    """A hidden state with two values. proxy, observe (S, O); behaviour (S, A); reward (S, A); transition (S, A, S)."""

    proxy: jax.Array
    observe: jax.Array
    behaviour: jax.Array
    reward: jax.Array
    transition: jax.Array


def two_sided(p):
    """(..., 2) from the probability of 1."""
    p = jnp.asarray(p)
    return jnp.stack([1 - p, p], axis=-1)


PROBLEM = Confounded(
    two_sided([0.2, 0.75]),
    two_sided([0.3, 0.8]),
    two_sided([0.2, 0.9]),
    jnp.array([[1.0, 0.0], [0.0, 2.0]]),
    two_sided([[0.1, 0.2], [0.8, 0.9]]),
)


@functools.partial(jax.jit, static_argnums=(1, 2))
def logged(problem: Confounded, decisions: int, episodes: int, key) -> Dataset:
    """A log of the behaviour, which sees the state: a row for the proxy, then those of the decisions."""
    keys = jax.random.split(key, 2 + decisions)
    draw = lambda key, table: jax.random.categorical(key, jnp.log(table))  # noqa: E731
    state = jax.random.bernoulli(keys[0], shape=(episodes,)).astype(jnp.int32)
    rows = [(draw(keys[1], problem.proxy[state]), jnp.zeros_like(state), jnp.zeros(episodes))]
    for key in keys[2:]:
        k_observe, k_act, k_move = jax.random.split(key, 3)
        seen, taken = draw(k_observe, problem.observe[state]), draw(k_act, problem.behaviour[state])
        rows.append((seen, taken, problem.reward[state, taken]))
        state = draw(k_move, problem.transition[state, taken])
    seen, taken, paid = (jnp.stack(column, axis=1) for column in zip(*rows))
    after = jnp.concatenate([seen[:, 1:], seen[:, -1:]], axis=1)
    ends = jnp.broadcast_to(jnp.arange(decisions + 1) == decisions, seen.shape)
    columns = (x.ravel() for x in (seen, taken, paid, after, ends, jnp.zeros_like(ends)))
    return Dataset(*columns, spaces.Discrete(2), spaces.Discrete(2), "confounded")


def reached(problem: Confounded, weight):
    """(H, S, O): the weight (H, S) of history and state, spread over what is seen."""
    return weight[:, :, None] * problem.observe[None]


def exact_value(problem: Confounded, tables):
    """V of the policy with logits (H_t, O, A) for each decision."""
    weight, value = jnp.full((1, 2), 0.5), 0.0
    for logits in tables:
        taken = reached(problem, weight)[..., None] * jax.nn.softmax(logits)[:, None]
        value += jnp.einsum("hsoa,sa->", taken, problem.reward)
        weight = jnp.einsum("hsoa,sat->hoat", taken, problem.transition).reshape(-1, 2)
    return value


def best_value(problem: Confounded, decisions: int) -> float:
    """That of the best policy of histories."""

    def onwards(weight, left: int):
        seen = reached(problem, weight)
        q = jnp.einsum("hso,sa->hoa", seen, problem.reward)
        if left > 1:
            moved = jnp.einsum("hso,sat->hoat", seen, problem.transition)
            q += onwards(moved.reshape(-1, 2), left - 1).reshape(q.shape)
        return q.max(-1).sum(-1)

    return float(onwards(jnp.full((1, 2), 0.5), decisions).sum())


def start_tables():
    """The logits at which gradients are measured, for one decision."""
    return (jnp.stack([jnp.zeros(2), jnp.asarray(START)], axis=-1)[None],)


def first_coordinate(method: BridgeAscent, log):
    """The estimated derivative of V in the logit of action 1 after observation 0."""
    tables = start_tables()
    matrices, _ = bridge_matrices(log, Sizes(2, 2), method.ridge, method.critic_ridge)
    return jax.grad(bridged_value)(tables, log, matrices)[0][0, 0, 1]


@functools.partial(jax.jit, static_argnums=1)
def learnt(method: BridgeAscent, naive: bool, key):
    """(first coordinate of the gradient, value after the ascent) from a log of the key. Naive: what is seen takes the place of the proxy."""
    task = DataTask(logged(PROBLEM, method.decisions, EPISODES, jax.random.fold_in(key, 0xDA7A)), ASCENTS)
    log = method.log(task.dataset)
    log = log._replace(proxy=log.observation) if naive else log
    state: State = method.init(task, key)
    state = jax.lax.fori_loop(0, ASCENTS // method.updates, lambda _, s: method.ascend(log, s)[0], state)
    coordinate = first_coordinate(method, log) if method.decisions == 1 else jnp.nan
    return coordinate, exact_value(PROBLEM, state.tables)


def run(seeds: list[int]) -> dict[str, Side]:
    exact = float(jax.grad(lambda tables: exact_value(PROBLEM, tables))(start_tables())[0][0, 0, 1])
    keys, sides = jnp.stack([jax.random.key(seed) for seed in seeds]), {}
    for decisions, naive in itertools.product((1, 2), (False, True)):
        method = BridgeAscent(decisions=decisions)
        coordinate, value = (np.asarray(x, np.float64) for x in jax.lax.map(lambda key, m=method, n=naive: learnt(m, n, key), keys))
        numbers = {SHORTFALL: best_value(PROBLEM, decisions) - value}
        if decisions == 1:
            numbers |= {SIGN: (np.sign(coordinate) == np.sign(exact)).astype(float), ERROR: np.abs(coordinate / exact - 1)}
        name = f"{'regression on what is seen' if naive else 'bridges'}, T = {decisions}"
        sides[name] = Side({**configuration(method), "episodes": EPISODES, "steps of the ascent": ASCENTS}, numbers)
    return sides


CLAIM = Claim(
    method="confounded_pomdp",
    statement="On a log whose behaviour saw the hidden state, the gradient through bridges of a proxy is right, also in sign, and its ascent comes "
    "to the best policy of what is observed; regression on what is seen has a wrong sign and comes to a worse policy.",
    baseline="the same ascent with the observation in the place of the proxy: regression of the reward on observation, action and history",
    task="two hidden states, one that is coin-tossed at first; proxy, observation and behaviour depend on it; one decision, and two with slow moves "
    f"of the state; {EPISODES} episodes, a log of its own for each seed; {ASCENTS} steps of .5; values are exact",
    run=run,
    checks=(
        Check(SIGN, "bridges, T = 1", above=0.85, statistic="mean"),
        Check(SIGN, "regression on what is seen, T = 1", below=0.15, statistic="mean"),
        Check(ERROR, "bridges, T = 1", below=0.15),
        Check(ERROR, "regression on what is seen, T = 1", above=0.3),
        Check(SHORTFALL, "bridges, T = 1", below=0.03),
        Check(SHORTFALL, "bridges, T = 2", over="regression on what is seen, T = 2", below=-0.1),
    ),
    seconds=10,
    analysis="The one check that is open is whether the error of the first coordinate is below .15. That coordinate is .037 beside .159 of the "
    "other, and 20000 episodes through a weak proxy give it to about a tenth, on single logs to a fifth. All ten have its sign, and the ascent, "
    "which needs little more, comes as near to the best policy as 200 steps of a softmax can.",
)
