"""Diffusion: the identities of its scales, a draw from an exact denoiser, and that two ways of acting stay two."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.core.parts import replace
from polopt.loops.actor_critic import STEP
from polopt.objectives.diffusion import denoised, denoising, input_scale
from polopt.policies.diffusion import DiffusionActor, noise_levels, undone


def test_the_scales_at_noise_of_the_datas_size():
    """c_skip = .5, c_out = c_in = .7071, and an error counts twice."""
    one = np.ones(1)
    np.testing.assert_allclose(denoised(one, 0 * one, one), 0.5)
    np.testing.assert_allclose(denoised(0 * one, one, one), np.sqrt(0.5))
    np.testing.assert_allclose(input_scale(one), np.sqrt(0.5))
    np.testing.assert_allclose(denoising(3 * one, one, one), 2 * 4)


@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
def test_the_loss_is_the_squared_error_of_the_network(spread):
    """F's own target is (clean - c_skip noisy) / c_out."""
    rng = np.random.default_rng(0)
    clean, noise, output, sigma = rng.normal(size=(4, 5)) * np.array([[spread], [1], [1], [1]])
    sigma, noisy = np.abs(sigma), clean + np.abs(sigma) * noise
    skip, out = denoised(np.ones(5), np.zeros(5), sigma, spread), denoised(np.zeros(5), np.ones(5), sigma, spread)
    loss = denoising(denoised(noisy, output, sigma, spread), clean, sigma, spread)
    np.testing.assert_allclose(loss, (output - (clean - skip * noisy) / out) ** 2, rtol=1e-10)


def test_noise_levels():
    levels = noise_levels(5)
    np.testing.assert_allclose(levels[jnp.array([0, 4, 5])], [80.0, 0.002, 0.0], rtol=1e-4)
    np.testing.assert_allclose(levels[2], ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7, rtol=1e-4)
    assert (jnp.diff(levels) < 0).all()
    np.testing.assert_allclose(noise_levels(1), [80.0, 0.0], rtol=1e-5)


@pytest.mark.parametrize("churn", [0.0, 0.4])
def test_draws_from_the_exact_denoiser_of_a_gaussian(churn):
    """N(1, .25) and N(-2, .04), whose denoiser is (m s^2 + x v) / (s^2 + v): mean and deviation come out, with fresh noise and without."""
    mean, variance = jnp.array([1.0, -2.0]), jnp.array([0.25, 0.04])
    exact = lambda x, sigma: (mean * sigma**2 + x * variance) / (sigma**2 + variance)  # noqa: E731
    one = lambda key: undone(exact, noise_levels(100), (2,), key, jnp.full(100, churn))  # noqa: E731
    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(found.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(found.std(0), jnp.sqrt(variance), rtol=0.05)


def test_a_guide_moves_before_every_step_but_the_last():
    """With a denoiser that takes everything for data, so that a step moves nothing."""
    far = undone(lambda x, sigma: x, noise_levels(4), (1,), jax.random.key(0), guide=lambda i, x, sigma: x + 10.0**i)
    still = undone(lambda x, sigma: x, noise_levels(4), (1,), jax.random.key(0))
    np.testing.assert_allclose(far - still, 111.0, rtol=1e-4)


def test_both_ways_of_acting_are_kept():
    """Logged actions of +-.7 stay apart, each about half of the time, where a Gaussian's mean is between them."""
    actor = DiffusionActor(Feedforward(hidden=(32, 32), activation="relu"), 1, spaces.Box(-1.0, 1.0, (1,)), 10, jax.random.key(0))
    step = replace(STEP, {"learning_rate": 3e-3})

    def update(i, carry):
        actor, optimiser = carry
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), 129)
        action = jnp.where(jax.random.bernoulli(keys[-1], shape=(128, 1)), 0.7, -0.7)
        loss = lambda actor: jnp.mean(jax.vmap(lambda a, k: actor.loss(jnp.zeros(1), a, k))(action, keys[:-1]))  # noqa: E731
        return step.update(jax.grad(loss)(actor), optimiser, actor, 0.0)

    actor, _ = jax.jit(lambda c: jax.lax.fori_loop(0, 1000, update, c))((actor, step.init(actor)))
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: actor.draw(jnp.zeros(1), k)))(jax.random.split(jax.random.key(2), 1000)))[:, 0]
    assert (np.abs(np.abs(drawn) - 0.7) < 0.2).mean() > 0.9
    assert 0.4 < (drawn > 0).mean() < 0.6
