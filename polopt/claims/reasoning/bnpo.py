"""BNPO: the fitted normaliser gives advantages of less variance, and learns faster than no normalisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import SUCCESS, learn, success
from polopt.claims.measures import configuration
from polopt.data import testbeds
from polopt.loops.credit import Centred, GroupRelative
from polopt.loops.prompting import Grouped
from polopt.methods.reasoning.bnpo import Beta, beta_normalised, bnpo, integrated_variance
from polopt.objectives.advantages import group_relative
from polopt.optim.sgd import Sgd

PROMPTS, SIZE, MANY, STEPS = 64, 16, 2000, 20
BETAS = ((1, 1), (2, 1), (0.5, 0.5), (0.7, 2), (3, 3))
EXACT = "integrated variance of the fitted normaliser over this one, the greatest of five Betas"
SKEWED, EVEN = "mean squared advantage, rates Beta(.7, 2)", "mean squared advantage, rates Beta(3, 3)"
AFTER = "success after 20 iterations"
NAMES = ("BNPO", "GRPO", "REINFORCE")


def problem(seed: int):
    rates = np.clip(np.random.default_rng(seed).beta(0.7, 2, PROMPTS), 0.01, 0.99)
    return testbeds.bandit(prompts=PROMPTS, success=rates, steps=STEPS, seed=seed)


def exact() -> dict[str, float]:
    """The fitted normaliser's integrated variance over another's, the greatest of five Betas."""

    def worst(other):
        ratios = []
        for a, b in BETAS:
            a, b = np.float64(a), np.float64(b)
            ratios.append(integrated_variance(a, b, Beta(1 + a / 3, 1 + b / 3)) / integrated_variance(a, b, other(a, b)))
        return float(max(ratios))

    flat = lambda x: lambda a, b: Beta(np.float64(x), np.float64(x))  # noqa: E731
    return {"GRPO": worst(flat(1.5)), "REINFORCE": worst(flat(1.0))}


def squared(a: float, b: float):
    """key -> mean squares of the advantages of 2000 prompts, in the order of `NAMES`."""

    def measure(key):
        k_rate, k_reward = jax.random.split(key)
        rate = jax.random.beta(k_rate, a, b, (MANY, 1))
        reward = jax.random.bernoulli(k_reward, jnp.broadcast_to(rate, (MANY, SIZE))).astype(jnp.float32).reshape(-1)
        group = jnp.repeat(jnp.arange(MANY), SIZE)
        # GRPO's as the density's special case, alpha = beta = 3/2
        grpo = jnp.pi / 8 * group_relative(reward, group, epsilon=0.0)
        found = beta_normalised(reward, group), grpo, group_relative(reward, group, scale="none")
        return jnp.stack([jnp.mean(x**2) for x in found])

    return measure


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    skewed, even = (np.asarray(jax.jit(jax.vmap(squared(a, b)))(keys), np.float64) for a, b in ((0.7, 2.0), (3.0, 3.0)))
    method = dataclasses.replace(bnpo(), sampler=Grouped(prompts=PROMPTS, completions=SIZE), step_rule=Sgd(1.0, norm=3.0), minibatches=1)
    credits = (method.advantage, GroupRelative(), Centred())
    ratios, sides = exact(), {}
    for i, (name, credit) in enumerate(zip(NAMES, credits)):
        trained = dataclasses.replace(method, advantage=credit)
        curve = learn(trained, problem, seeds, success)[SUCCESS]
        numbers = {SKEWED: skewed[:, i], EVEN: even[:, i], AFTER: curve[:, -1]}
        if name in ratios:
            numbers[EXACT] = np.full(len(seeds), ratios[name])
        drawn = {SUCCESS: (np.arange(STEPS + 1), curve, "iterations")}
        sides[name] = Side(configuration(trained), numbers, drawn)
    return sides


CLAIM = Claim(
    method="bnpo",
    statement="For any Beta distribution of success rates the fitted normaliser gives advantages of less variance than no normalisation and than "
    "GRPO's, and learns faster than the first and as fast as the second.",
    baseline="REINFORCE with the group's mean, and GRPO's deviation",
    task="exact variances for five Betas; advantages of 2000 prompts of 16 completions; T-BANDIT, 64 prompts with rates Beta(.7, 2), 16 completions "
    "each, 20 updates of norm 3",
    run=run,
    checks=(
        Check(EXACT, "GRPO", below=1.0),
        Check(EXACT, "REINFORCE", below=1.0),
        Check(SKEWED, "BNPO", over="GRPO", ratio=True, below=1.0),
        Check(SKEWED, "BNPO", over="REINFORCE", ratio=True, below=1.0),
        Check(EVEN, "BNPO", over="GRPO", ratio=True, below=1.0),
        Check(EVEN, "BNPO", over="REINFORCE", ratio=True, below=1.0),
        Check(AFTER, "BNPO", over="REINFORCE", above=0.005),
        Check(AFTER, "BNPO", over="GRPO", above=-0.02),
        Check(AFTER, "BNPO", over="GRPO", below=0.02),
    ),
    seconds=25,
)
