"""BNPO's oracles: the fit, the density, the variance that it minimises, and its special cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.methods.reasoning import bnpo
from tests.methods.reasoning.helpers import credited, everywhere, judged


def arrays(*numbers):
    return tuple(np.asarray(x, np.float64) for x in numbers)


def test_numbers():
    """Oracle 1: rates .25 and .75."""
    rates, weight = np.array([0.25, 0.75]), np.ones(2)
    normaliser = everywhere(bnpo.fitted, rates, weight)
    np.testing.assert_allclose(normaliser, [7 / 6, 7 / 6])
    f = everywhere(lambda p, w: bnpo.density(p, bnpo.fitted(p, w)), rates, weight)
    np.testing.assert_allclose(f, 1.04660, atol=1e-5)
    rewards, groups = np.array([1.0, 0, 0, 0, 1, 1, 1, 0]), np.repeat([0, 1], 4)
    centred = np.array([0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75])
    np.testing.assert_allclose(everywhere(bnpo.beta_normalised, rewards, groups), 0.95548 * centred, atol=1e-5)
    np.testing.assert_allclose(credited(bnpo.BetaNormalised(), judged(rewards, groups)), 0.95548 * centred, atol=1e-4)


def test_the_size_of_a_group_is_no_weight():
    """A prompt counts once, whether it has two completions or eight."""
    rewards = np.array([1.0, 0, 1, 1, 0, 0, 0, 0, 0, 1])
    groups = np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
    rates = np.array([0.5, 3 / 8])
    normaliser = bnpo.fitted(rates, np.ones(2))
    wanted = (rewards - rates[groups]) / bnpo.density(rates, normaliser)[groups]
    np.testing.assert_allclose(everywhere(bnpo.beta_normalised, rewards, groups), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "a, b, reinforce, grpo, best",
    [
        (1, 1, 0.16667, 0.15421, 0.14887),
        (2, 1, 0.16667, 0.15421, 0.13097),
        (0.5, 0.5, 0.12500, 0.15421, 0.12023),
        (0.7, 2, 0.14014, 0.15421, 0.10812),
        (3, 3, 0.21429, 0.15421, 0.13889),
    ],
)
def test_the_integrated_variance(a, b, reinforce, grpo, best):
    """Oracles 2 to 5: values, special cases, and no slope at the minimum."""
    a, b = arrays(a, b)
    at = lambda x, y: float(bnpo.integrated_variance(a, b, bnpo.Beta(*arrays(x, y))))  # noqa: E731
    np.testing.assert_allclose([at(1, 1), at(1.5, 1.5), at(1 + a / 3, 1 + b / 3)], [reinforce, grpo, best], atol=1e-5)
    with jax.enable_x64(True):
        log_variance = lambda n: jnp.log(bnpo.integrated_variance(jnp.asarray(a), jnp.asarray(b), n))  # noqa: E731
        slope = jax.grad(log_variance)(bnpo.Beta(jnp.asarray(1 + a / 3), jnp.asarray(1 + b / 3)))
    np.testing.assert_allclose(slope, 0.0, atol=1e-8)


def test_the_variance_is_the_integral():
    """E[p (1 - p) / f^2] by quadrature, for p ~ Beta(3, 3) and the normaliser Beta(1.5, 1.2)."""
    p = (np.arange(200_000) + 0.5) / 200_000
    f = bnpo.density(p, bnpo.Beta(*arrays(1.5, 1.2)))
    integral = np.mean(bnpo.density(p, bnpo.Beta(*arrays(3, 3))) * p * (1 - p) / f**2)
    np.testing.assert_allclose(bnpo.integrated_variance(*arrays(3, 3), bnpo.Beta(*arrays(1.5, 1.2))), integral, rtol=1e-5)


def test_grpo_is_a_special_case():
    """Oracle 4: 1 / f is (pi / 8) / sqrt(p (1 - p)) for alpha = beta = 3/2."""
    p = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(1 / bnpo.density(p, bnpo.Beta(*arrays(1.5, 1.5))), np.pi / 8 / np.sqrt(p * (1 - p)), rtol=1e-6)


@pytest.mark.parametrize(
    "rewards, groups",
    [
        ([1, 0, 0, 0], [0, 0, 0, 0]),  # one prompt
        ([1, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1]),  # equal rates
        ([1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 2, 2]),  # rates 1, 0, .5: more spread than any Beta with a, b > 0 but for the clamp
    ],
)
def test_where_the_fit_says_nothing_it_is_reinforce(rewards, groups):
    rewards = np.array(rewards, np.float64)
    means = np.array([rewards[np.array(groups) == g].mean() for g in groups])
    np.testing.assert_allclose(everywhere(bnpo.beta_normalised, rewards, np.array(groups)), rewards - means, atol=1e-6)


def test_groups_that_are_all_right_or_all_wrong_get_0():
    rewards = np.array([1.0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    found = everywhere(bnpo.beta_normalised, rewards, np.repeat(np.arange(4), 4))
    assert np.isfinite(found).all() and (found[[0, 1, 2, 3, 12, 13, 14, 15]] == 0).all() and (found[4:12] != 0).all()


def test_the_limit():
    """1 / f is at most the limit: with .3 every factor above it is cut."""
    rewards, groups = np.array([1.0, 0, 0, 0, 1, 1, 1, 0]), np.repeat([0, 1], 4)
    centred = np.array([0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75])
    np.testing.assert_allclose(credited(bnpo.BetaNormalised(limit=0.3), judged(rewards, groups)), 0.3 * centred, rtol=1e-5)
