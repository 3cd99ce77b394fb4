"""A Bradley-Terry model knows against whom a comparison was won; a share of wins does not."""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.preferences.training import logged, problems, side, trained
from polopt.loops.preference import AllPairs, Minibatches
from polopt.loops.preference_sources import Logged
from polopt.loops.reward_model import BradleyTerry, RewardModelling
from polopt.optim.adam import Adam
from polopt.policies.language.tabular import TabularPolicy

ARMS, PAIRS, NEAR = 20, (1000, 8000), 1.0
UPDATES, ITERATIONS = 10, 100  # of 100 pairs an iteration
ERROR = "root mean squared error of centred strengths"
CORRELATION = "correlation with the true strengths"


def problem(seed: int, count: int):
    """(task, strengths, shares of wins): opponents are mostly of about the same strength, as in a tournament."""
    draw = np.random.default_rng(seed)
    strength = 1.5 * draw.standard_normal(ARMS)
    a = draw.integers(ARMS, size=count)
    weight = np.exp(-(((strength[:, None] - strength[None]) / NEAR) ** 2) / 2) * (1 - np.eye(ARMS)) + 1e-3
    chance = np.cumsum(weight / weight.sum(1, keepdims=True), axis=1)
    b = (draw.random((count, 1)) > chance[a]).sum(1).clip(0, ARMS - 1)
    won = draw.random(count) < 1 / (1 + np.exp(strength[b] - strength[a]))
    games = np.bincount(a, minlength=ARMS) + np.bincount(b, minlength=ARMS)
    wins = np.bincount(a, won, minlength=ARMS) + np.bincount(b, ~won, minlength=ARMS)
    model = TabularPolicy(jnp.zeros((1, ARMS)))
    return logged(model, np.zeros(count), np.stack([a, b], 1), np.stack([won, ~won], 1), steps=ITERATIONS), strength, wins / np.maximum(games, 1)


def strengths(ensemble):
    """(ARMS,) the rewards of all arms, on their own scale, centred."""
    tokens = jnp.arange(ARMS, dtype=jnp.int32)[:, None]
    raw = ensemble.members(problems(1), jnp.zeros(ARMS, jnp.int32), tokens, jnp.ones(tokens.shape, bool))[0] * ensemble.deviation[0]
    return raw - raw.mean()


def run(seeds: list[int]) -> dict[str, Side]:
    fit = Minibatches(Adam(learning_rate=0.05, max_grad_norm=None), minibatches=UPDATES)
    method = RewardModelling(Logged(groups=100 * UPDATES, pairs=AllPairs()), BradleyTerry(penalty=1e-6), fit, tune_trunk=False)
    sides = {}
    for count in PAIRS:
        tasks, truth, shares = zip(*(problem(seed, count) for seed in seeds))
        truth, shares = np.stack(truth), np.stack(shares)
        centred = truth - truth.mean(1, keepdims=True)
        ensembles = trained(method, list(tasks), seeds).policies
        found = np.asarray(jax.vmap(strengths)(ensembles))
        correlation = [[np.corrcoef(a, b)[0, 1] for a, b in zip(x, truth)] for x in (found, shares)]
        error = np.sqrt(((found - centred) ** 2).mean(1))
        sides[f"Bradley-Terry, {count} pairs"] = side(method, {CORRELATION: correlation[0], ERROR: error})
        sides[f"share of wins, {count} pairs"] = Side({"pairs": count}, {CORRELATION: np.array(correlation[1])})
    return sides


FEW, MANY = (f"Bradley-Terry, {count} pairs" for count in PAIRS)

CLAIM = Claim(
    method="bt",
    statement="Where opponents are chosen by strength, the model's maximum likelihood recovers the strengths and a share of wins does not; the error "
    "falls with the square root of the comparisons.",
    baseline="the share of comparisons that each won",
    task="20 arms with strengths N(0, 1.5^2), opponents mostly within 1; 1000 and 8000 comparisons; a linear head, 1000 "
    "batches of 100, Adam .05 annealed",
    run=run,
    checks=(
        Check(CORRELATION, MANY, above=0.95),
        Check(CORRELATION, MANY, over=f"share of wins, {PAIRS[1]} pairs", above=0.02),
        Check(ERROR, MANY, over=FEW, ratio=True, below=0.6),
    ),
    seconds=10,
)
