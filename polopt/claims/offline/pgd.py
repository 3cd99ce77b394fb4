"""PGD: guidance makes drawn actions likelier under the policy, and leaves the dynamics nearly what they are.

The model is the exact denoiser of a Gaussian log, so that the sampler and its guidance are all that is measured. The fresh noise of the authors'
sampler undoes much of the guidance: without any, half of lambda does as much.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import configuration
from polopt.core.parts import replace
from polopt.methods.offline.pgd import pgd

ROWS, LOGGED, DRAWN = 9, 20_000, 1_000
KEEPS, MOVES, NOISE = 0.9, 0.5, 0.05  # s' = .9 s + .5 a + noise
LOGGED_GAIN, LOGGED_DEVIATION = -0.3, 0.5  # a = -.3 s + noise
GAIN, OFFSET, DEVIATION = -0.3, 0.5, 0.3  # the policy: a = -.3 s + .5 + noise
WEIGHTS = (0.0, 0.05, 0.1, 0.2)
LIKELIHOOD, RESIDUAL = "mean log-likelihood of an action under the policy", "deviation of the dynamics"
IS_ACTION = jnp.array([False, True])


def log_likelihood(row):
    """-((a - m(s)) / deviation)^2 / 2 of a row (s, a)."""
    return -0.5 * ((row[1] - GAIN * row[0] - OFFSET) / DEVIATION) ** 2


def logged(key):
    """(LOGGED, ROWS, 2) sequences of the log, from the states that it tends to."""
    k_start, k_act, k_move = jax.random.split(key, 3)
    stays = KEEPS + MOVES * LOGGED_GAIN
    start = jnp.sqrt(((MOVES * LOGGED_DEVIATION) ** 2 + NOISE**2) / (1 - stays**2)) * jax.random.normal(k_start, (LOGGED,))

    def step(state, noise):
        action = LOGGED_GAIN * state + LOGGED_DEVIATION * noise[0]
        return KEEPS * state + MOVES * action + NOISE * noise[1], jnp.stack([state, action], axis=1)

    noise = jnp.stack([jax.random.normal(k, (ROWS, LOGGED)) for k in (k_act, k_move)], axis=1)
    return jnp.swapaxes(jax.lax.scan(step, start, noise)[1], 0, 1)


def gaussian_denoiser(sequences):
    """D(x, sigma) = mu + C (C + sigma^2)^-1 (x - mu) for the mean mu and the covariance C of sequences (n, rows, 2)."""
    flat = sequences.reshape(sequences.shape[0], -1)
    mean = jnp.mean(flat, axis=0)
    spread, axes = jnp.linalg.eigh(jnp.cov(flat.T))
    spread = jnp.maximum(spread, 0.0)

    def denoiser(x, sigma):
        along = axes.T @ (x.ravel() - mean)
        return (mean + axes @ (along * spread / (spread + sigma**2))).reshape(x.shape)

    return denoiser


def measured(sequences):
    """(mean log-likelihood but for a constant, root mean square of what the dynamics are off)."""
    state, action = sequences[..., 0], sequences[..., 1]
    off = state[:, 1:] - KEEPS * state[:, :-1] - MOVES * action[:, :-1]
    return jnp.mean(jax.vmap(jax.vmap(log_likelihood))(sequences)), jnp.sqrt(jnp.mean(off**2))


@jax.jit
def drawn(method, weights, keys):
    """What is measured of the log of each key, and of sequences that are drawn from its model with each of the weights."""

    def of_seed(key):
        k_log, k_draw = jax.random.split(key)
        log = logged(k_log)
        denoiser = gaussian_denoiser(log)

        def of_weight(weight):
            guidance = dataclasses.replace(method.guidance, weight=weight)
            guide = guidance(denoiser, log_likelihood, IS_ACTION, method.sampler.levels)
            one = lambda key: method.sampler(denoiser, (ROWS, 2), key, guide)  # noqa: E731
            return measured(jax.vmap(one)(jax.random.split(k_draw, DRAWN)))

        return measured(log), jax.lax.map(of_weight, weights)

    return jax.lax.map(of_seed, keys)


def run(seeds: list[int]) -> dict[str, Side]:
    method, keys = pgd(None), jnp.stack([jax.random.key(seed) for seed in seeds])
    of_log, of_drawn = jax.tree.map(lambda x: np.asarray(x, np.float64), drawn(method, jnp.array(WEIGHTS), keys))
    sides = {"the log": Side({"sequences": LOGGED}, dict(zip((LIKELIHOOD, RESIDUAL), of_log)))}
    for i, weight in enumerate(WEIGHTS):
        guidance = replace(method.guidance, {"weight": weight})
        settings = {**configuration(guidance), **configuration(method.sampler), "sequences": DRAWN}
        sides[f"lambda = {weight:g}"] = Side(settings, {LIKELIHOOD: of_drawn[0][:, i], RESIDUAL: of_drawn[1][:, i]})
    return sides


CLAIM = Claim(
    method="pgd",
    statement="The more guidance, the likelier are the drawn actions under the policy; where guidance is of use, the drawn dynamics are only a "
    "little less right.",
    baseline="the same sampler without guidance",
    task=f"linear system of one state, log of a Gaussian behaviour, policy half a unit beside it; sequences of {ROWS} rows from the exact denoiser "
    f"of {LOGGED} logged ones, a log of its own for each seed; 128 steps; {DRAWN} drawn",
    run=run,
    checks=(
        Check(LIKELIHOOD, "lambda = 0.05", over="lambda = 0", above=0.0),
        Check(LIKELIHOOD, "lambda = 0.1", over="lambda = 0.05", above=0.0),
        Check(LIKELIHOOD, "lambda = 0.2", over="lambda = 0.1", above=0.0),
        Check(LIKELIHOOD, "lambda = 0.1", above=-1.7),
        Check(RESIDUAL, "lambda = 0.1", below=0.09),
        Check(RESIDUAL, "lambda = 0", below=0.06),
    ),
    seconds=15,
)
