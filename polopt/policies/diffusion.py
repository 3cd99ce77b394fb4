"""Data drawn by undoing noise step by step (Karras et al. 2022, arXiv:2206.00364): a denoiser's loss, and Heun's method from noise to data.

A denoiser D(x, sigma) guesses what was there before noise of deviation sigma came on top. Data of one dimension or of many move from noise to what
is likely along  dx / dsigma = (x - D(x, sigma)) / sigma,  for which D is asked twice a step; churn puts fresh noise in before a step, which makes
up for errors of the steps before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.networks import Feedforward, Linear, Torso
from polopt.core.parts import hyper, part
from polopt.objectives.diffusion import denoised, denoising, input_scale

LOG_LEVEL = (-1.2, 1.2)  # mean and deviation of the logarithm of the noise in training
SPREAD = 0.5  # about the deviation of unit actions


def noise_levels(steps: int, low=0.002, high=80.0, power=7.0):
    """(steps + 1,) falling from `high` to `low`, more of them small than large, and then 0."""
    first, last = high ** (1 / power), low ** (1 / power)
    levels = (first + jnp.arange(steps) / max(steps - 1, 1) * (last - first)) ** power
    return jnp.append(levels, 0.0)


def denoise(network: Callable, noisy, sigma, spread=1.0):
    """D(x, sigma) from a network F(scaled x, log(sigma) / 4), for x of any shape and one sigma."""
    return denoised(noisy, network(input_scale(sigma, spread) * noisy, jnp.log(sigma) / 4), sigma, spread)


def matching_loss(network: Callable, clean, key, spread=1.0):
    """What a network's denoiser loses on data of any shape, with noise of a random size; the mean over the entries."""
    k_level, k_noise = jax.random.split(key)
    sigma = jnp.exp(LOG_LEVEL[0] + LOG_LEVEL[1] * jax.random.normal(k_level))
    noisy = clean + sigma * jax.random.normal(k_noise, clean.shape)
    return jnp.mean(denoising(denoise(network, noisy, sigma, spread), clean, sigma, spread))


def undone(denoiser: Callable, levels, shape: tuple[int, ...], key, churn=None, swell=1.0, guide: Callable | None = None):
    """A draw of `shape` from a denoiser D(x, sigma), along noise levels (steps + 1,) of which the last is 0.

    churn: (steps,) by what share the noise is raised before each step; none for no fresh noise. swell: deviation of what is put in by that share.
    guide: guide(i, x, sigma) moves x before step i, except the last.
    """
    steps = levels.shape[0] - 1
    churn = jnp.zeros(steps) if churn is None else churn
    k_start, k_steps = jax.random.split(key)

    def step(x, given):
        i, sigma, after, churn, key = given
        if guide is not None:
            x = jnp.where(i < steps - 1, guide(i, x, sigma), x)
        raised = (1 + churn) * sigma
        x = x + swell * sigma * jnp.sqrt(churn * (2 + churn)) * jax.random.normal(key, shape)
        slope = (x - denoiser(x, raised)) / raised
        guess = x + (after - raised) * slope
        last = after == 0
        level = jnp.where(last, 1.0, after)  # of no use where it is the last
        other = (guess - denoiser(guess, level)) / level
        return jnp.where(last, guess, x + (after - raised) * (slope + other) / 2), None

    start = levels[0] * jax.random.normal(k_start, shape)
    given = jnp.arange(steps), levels[:-1], levels[1:], churn, jax.random.split(k_steps, steps)
    return jax.lax.scan(step, start, given)[0]


@part
class Churned:
    """The way from noise to data with fresh noise, while there is neither much noise nor little."""

    levels: int = hyper(128, at_least=2)  # N: steps
    low: float = hyper(0.002, above=0)  # smallest noise
    high: float = hyper(80.0, above=0)  # largest noise
    power: float = hyper(7.0, above=0)  # rho: the larger it is, the more of the steps have little noise
    churn: float = hyper(80.0, at_least=0)  # by how much the noise is raised, over all steps together; by at most 41 % in one
    churn_low: float = hyper(0.05, at_least=0)  # noise below which it is not raised
    churn_high: float = hyper(50.0, at_least=0)  # noise above which it is not raised
    churn_noise: float = hyper(1.003, above=0)  # deviation of the fresh noise

    def __call__(self, denoiser: Callable, shape: tuple[int, ...], key, guide: Callable | None = None):
        """A draw of `shape`; the guide as in `undone`."""
        levels = noise_levels(self.levels, self.low, self.high, self.power)
        inside = (levels[:-1] >= self.churn_low) & (levels[:-1] <= self.churn_high)
        churn = jnp.where(inside, jnp.minimum(self.churn / self.levels, math.sqrt(2) - 1), 0.0)
        return undone(denoiser, levels, shape, key, churn, self.churn_noise, guide)


class DiffusionActor(eqx.Module):
    """pi(a|s) of a box: maps the vector of a state to draws of unit actions. It keeps every way of acting that a log has."""

    torso: Torso
    head: Linear
    shape: tuple[int, ...] = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def __init__(self, spec: Feedforward, inputs: int, action_space, steps: int, key):
        """steps: in which an action is drawn."""
        k_torso, k_head = jax.random.split(key)
        numbers = math.prod(action_space.shape)
        self.torso = Torso(spec, inputs + numbers + 1, (), k_torso)
        self.head = Linear(self.torso.features, numbers, k_head, gain=1.0)
        self.shape, self.steps = action_space.shape, steps

    def network(self, vector):
        """The network F of one state."""
        return lambda noisy, level: self.head(self.torso((), jnp.concatenate([vector, noisy, level[None]]), ())[1])

    def loss(self, vector, action, key):
        """What the denoiser loses on one logged action."""
        return matching_loss(self.network(vector), jnp.ravel(action), key, SPREAD)

    def draw(self, vector, key):
        """A unit action."""
        network = self.network(vector)
        action = undone(lambda x, sigma: denoise(network, x, sigma, SPREAD), noise_levels(self.steps), (math.prod(self.shape),), key)
        return jnp.clip(action, -1, 1).reshape(self.shape)
