"""Polyak steps: no tuning and no scale, where every constant step that suits one scale of rewards fails at another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from polopt.claims.claim import Check, Claim, Side
from polopt.envs.exact import tabular
from polopt.envs.exact.problems import random_mdp
from polopt.optim.polyak import scale_by_polyak, twin_target

SCALES, RATES = (0.1, 1.0, 100.0), (0.1, 1.0, 10.0, 100.0)
LIMIT = 20_000  # iterations; a run that has not arrived counts with so many
CAP, FACTOR = 1e3, 2.0  # the method's defaults
KNOWN, TWINS = "iterations to 0.1 % of J*", "iterations to 1 % of J*"
SLOWEST, SPREAD = "most of any scale, ", "most less fewest of the scales, "


def problem(key, scale):
    """A random MDP whose rewards are multiplied by `scale`, its J as a function of logits (8, 4), and J*."""
    mdp = random_mdp(key, 8, 4, discount=0.9, reward="uniform")
    mdp = mdp.with_reward(scale * mdp.reward)
    return (lambda logits: tabular.softmax_objective(mdp, logits)), mdp.start @ tabular.optimal(mdp).values


def iterations(step, state, arrived):
    """How many steps until a state has arrived."""
    return jax.lax.while_loop(lambda x: ~arrived(x[0]) & (x[1] < LIMIT), lambda x: (step(x[0]), x[1] + 1), (state, 0))[1]


@functools.partial(jax.jit, static_argnames="polyak")
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def single(key, scale, rate, polyak: bool):
    """From uniform logits, by Polyak steps towards J*, or by constant ones."""
    objective, best = problem(key, scale)
    rule = scale_by_polyak(CAP)

    def step(state):
        logits, polyak_state = state
        value, gradient = jax.value_and_grad(objective)(logits)
        if not polyak:
            return logits + rate * gradient, polyak_state
        move, polyak_state = rule.update(gradient, polyak_state, value=value, target=best)
        return optax.apply_updates(logits, move), polyak_state

    start = jnp.zeros((8, 4))
    return iterations(step, (start, rule.init(start)), lambda state: best - objective(state[0]) < 1e-3 * best)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def twins(key, scale):
    """From two independent starts, by steps towards the twins' target, until the better one arrives."""
    objective, best = problem(key, scale)
    rule = scale_by_polyak(CAP)

    def step(state):
        logits, polyak, seen, _ = state
        values, gradients = jax.vmap(jax.value_and_grad(objective))(logits)
        seen = jnp.maximum(seen, values.max())
        target = twin_target(seen, values, FACTOR)
        move, polyak = jax.vmap(lambda g, s, v: rule.update(g, s, value=v, target=target))(gradients, polyak, values)
        return logits + move, polyak, seen, jax.vmap(objective)(logits + move)

    logits = 0.01 * jax.random.normal(jax.random.fold_in(key, 1), (2, 8, 4))  # as actors start
    start = (logits, jax.vmap(rule.init)(logits), jnp.array(-jnp.inf), jax.vmap(objective)(logits))
    return iterations(step, start, lambda state: best - state[3].max() < 1e-2 * best)


def run(seeds: list[int]) -> dict[str, Side]:
    with jax.enable_x64(True):
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])

        def of_all_scales(count):
            return np.stack([np.asarray(count(scale), np.float64) for scale in SCALES])

        found = {"Polyak": (KNOWN, of_all_scales(lambda scale: single(keys, scale, 0.0, True)))}
        for rate in RATES:
            found[f"step {rate:g}"] = (KNOWN, of_all_scales(lambda scale, rate=rate: single(keys, scale, rate, False)))
        found["twins"] = (TWINS, of_all_scales(lambda scale: twins(keys, scale)))
    sides = {}
    for name, (measure, counts) in found.items():
        numbers = {SLOWEST + measure: counts.max(0), SPREAD + measure: np.ptp(counts, axis=0)}
        numbers |= {f"{measure}, rewards times {scale:g}": count for scale, count in zip(SCALES, counts)}
        sides[name] = Side({"scales": SCALES, "limit": LIMIT, "cap": CAP, "factor": FACTOR}, numbers)
    return sides


CLAIM = Claim(
    method="polyak_pg",
    statement="The Polyak step needs no tuning and does not feel the scale of rewards, whereas every constant step fails at some scale.",
    baseline="constant steps of .1, 1, 10 and 100 along the same gradient",
    task="random MDPs with 8 states, 4 actions, Dirichlet(.3), rewards in [0, 1] times .1, 1 or 100, and discount .9; exact J and gradient, "
    "softmax logits, from the uniform policy, the twins each from one that is almost uniform",
    run=run,
    checks=(
        Check(SLOWEST + KNOWN, "Polyak", below=20.0),
        Check(SPREAD + KNOWN, "Polyak", below=0.5),
        *(Check(SLOWEST + KNOWN, f"step {rate:g}", over="Polyak", ratio=True, above=10.0) for rate in RATES),
        Check(SLOWEST + TWINS, "twins", below=400.0),
        Check(SPREAD + TWINS, "twins", below=0.5),
    ),
    seconds=40,
)
