"""IQL: on random moves an upper expectile plans over many steps, where the mean plans one and cloning none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.envs.exact import tabular
from polopt.envs.exact.empirical import behaviour, empirical, uniform_log
from polopt.envs.exact.problems import gridworld
from polopt.methods.offline.iql import advantage_weight

GRID = ("S...#...", "........", "....#...", "....#...", "....#...", "....#...", "........", "....#..G")
TRANSITIONS, BETA, CLIP = 3000, 100.0, 100.0
RETURN, START = "exact return from the start", "V at the start"


def expectile_of(values, weights, tau):
    """The tau-expectile of values (..., n) with weights (..., n), which minimises the mean of |tau - 1[u < 0]| u^2."""

    def reweighted(_, v):
        side = weights * jnp.where(values > v[..., None], tau, 1 - tau)
        return (side * values).sum(-1) / side.sum(-1)

    return jax.lax.fori_loop(0, 50, reweighted, (weights * values).sum(-1))


def implicit_values(mdp, mu, tau):
    """V and Q at the fixed point: V the expectile of Q over the logged actions, Q = r + gamma E V."""

    def sweep(_, v):
        return expectile_of(tabular.lookahead(mdp, v), mu, tau)

    v = jax.lax.fori_loop(0, 400, sweep, jnp.zeros(mdp.states))
    return v, tabular.lookahead(mdp, v)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0))
def measured(tau: float | None, key):
    """(exact return of the extracted policy, V at the start) from a log of the key; without tau of the cloned one."""
    mdp = gridworld(GRID, discount=0.95)
    counts = uniform_log(mdp, key, TRANSITIONS)
    mu = behaviour(counts)
    if tau is None:
        return tabular.objective(mdp, mu), jnp.nan
    v, q = implicit_values(empirical(mdp, counts), mu, tau)
    weight = mu * advantage_weight(q - v[:, None], BETA, CLIP)
    return tabular.objective(mdp, weight / weight.sum(-1, keepdims=True)), mdp.start @ v


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    settings = {"transitions": TRANSITIONS, "beta": BETA, "clip": CLIP, "grid": "/".join(GRID)}
    sides = {}
    for tau in (0.5, 0.7, 0.9, 0.99, None):
        earned, start = (np.asarray(x, np.float64) for x in measured(tau, keys))
        name = "BC" if tau is None else f"tau = {tau:g}"
        sides[name] = Side({**settings, "tau": tau}, {RETURN: earned} if tau is None else {RETURN: earned, START: start})
    return sides


CLAIM = Claim(
    method="iql",
    statement="On a log of uniformly random moves, an upper expectile of the logged values does dynamic programming over many steps and comes near "
    "to the optimum, which neither the mean (one step of improvement) nor cloning does.",
    baseline="the same with tau = .5, and behavioural cloning",
    task="8x8 grid split by a wall with two gaps, corner to corner, discount .95, no slips; 3000 transitions of uniform states and actions, "
    "tabular fixed points, policy extracted with beta = 100",
    run=run,
    checks=(
        Check(RETURN, "tau = 0.9", above=0.45),
        Check(RETURN, "tau = 0.5", below=0.30),
        Check(RETURN, "BC", below=0.02),
        Check(START, "tau = 0.7", over="tau = 0.5", above=0.0),
        Check(START, "tau = 0.9", over="tau = 0.7", above=0.0),
        Check(START, "tau = 0.99", over="tau = 0.9", above=0.0),
    ),
    seconds=5,
)
