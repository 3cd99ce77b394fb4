"""The closed-form steps: the catalogue's numbers, one component against one Gaussian, both bounds of the likelihood, and which candidate is taken."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from polopt.policies.closed_form import FromGaussian, FromMixture, best_step, component_budgets, jensen_gaussian, lower_bound
from polopt.policies.distributions import Gaussian
from polopt.policies.experts import Mixture

KINDS = pytest.mark.parametrize("kind", [np.asarray, torch.tensor, jnp.asarray])
LINEAR = jnp.array([3.0, 2.0])


def linear(action):
    """Two critics that agree on a linear value."""
    return jnp.stack([LINEAR @ action] * 2)


def mixture(mean, std=None, weight=None) -> Mixture:
    mean = jnp.asarray(mean, jnp.float32)
    count, bound = mean.shape[0], jnp.ones(mean.shape[0])
    weight = jnp.full(count, 1 / count) if weight is None else jnp.asarray(weight, jnp.float32)
    return Mixture(jnp.log(weight), Gaussian(mean, jnp.log(jnp.asarray(std or jnp.ones(mean.shape), jnp.float32)), -bound, bound))


@functools.partial(jax.jit, static_argnames="value")
def improve(improvement, found, value):
    return improvement(found, value)


def best(found, value=linear, **fields):
    return improve(FromMixture(**{"pessimism": 0.0, **fields}), found, value)


def from_gaussian(mean, std, value=linear, **fields):
    found = Gaussian(jnp.asarray(mean), jnp.log(jnp.asarray(std)), jnp.float32(-1), jnp.float32(1))
    return improve(FromGaussian(**{"pessimism": 0.0, **fields}), found, value)


@KINDS
def test_the_step_in_numbers(kind):
    """Oracle 1: S = diag(1, 4), g = (3, 2), delta = .5: the step is (.6, 1.6), of Mahalanobis length 1, and gains 5."""
    step = np.asarray(best_step(kind([0.0, 0.0]), kind([1.0, 4.0]), kind([3.0, 2.0]), kind(1.0)))
    np.testing.assert_allclose(step, [0.6, 1.6], rtol=1e-6)
    np.testing.assert_allclose([step @ (step / [1, 4]), step @ [3, 2]], [1.0, 5.0], rtol=1e-6)


@pytest.mark.parametrize("function", [lambda m, v, g, b: best_step(m, v, g, b), lambda m, v, g, b: jensen_gaussian(b, m, v, 0.5)[2]])
def test_both_agree_in_three_libraries_with_their_gradients(function):
    rng = np.random.default_rng(0)
    given = rng.normal(size=(4, 3)), rng.gamma(2.0, size=(4, 3)), rng.normal(size=(4, 3)), rng.gamma(2.0, size=4)
    of_torch = [torch.tensor(x, requires_grad=True) for x in given]
    (function(*of_torch) ** 2).sum().backward()
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in given]
        np.testing.assert_allclose(function(*arrays), function(*given), rtol=1e-12)
        slopes = jax.grad(lambda *x: (function(*x) ** 2).sum(), argnums=(0, 1, 2, 3))(*arrays)
    for x, y in zip(slopes, of_torch, strict=True):
        np.testing.assert_allclose(x, np.zeros(x.shape) if y.grad is None else y.grad.numpy(), rtol=1e-9)


@KINDS
def test_one_component_is_the_single_gaussian(kind):
    """Oracle 2: both bounds have 2 delta and the component itself."""
    mean, variance = kind([[0.1, -0.2]]), kind([[0.5, 2.0]])
    np.testing.assert_allclose(np.asarray(component_budgets(kind([0.0]), variance, 0.7)), [1.4], rtol=1e-6)
    centre, joint, budget = jensen_gaussian(kind([0.0]), mean, variance, 0.7)
    np.testing.assert_allclose(np.asarray(centre), [0.1, -0.2], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(joint), [0.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(float(budget), 1.4, rtol=1e-6)


@pytest.mark.parametrize("bounds", ["max", "mean", "both"])
@pytest.mark.parametrize("count", [1, 2])
def test_equal_components_are_one(bounds, count):
    """Oracles 2 and 3: of one component, and of two equal ones, both bounds give what one Gaussian gives."""
    mean, std = [0.1, -0.2], [0.1, 0.2]
    np.testing.assert_allclose(best(mixture([mean] * count, [std] * count), bounds=bounds), from_gaussian(mean, std), rtol=1e-4)


def test_small_deviations_lose_nothing_to_rounding():
    """The budget of the mean bound is a difference of large numbers where the deviations are e^-5."""
    mean = jnp.full((2, 3), 0.9)
    np.testing.assert_allclose(jensen_gaussian(jnp.log(jnp.array([0.3, 0.7])), mean, jnp.full((2, 3), np.exp(-10)), 0.5)[2], 1.0, rtol=1e-5)


def test_without_a_budget_the_most_likely_mean_is_left():
    """Oracle 4: delta = 0 gives the mean of the largest weight by the root of det S; with `keep` the mean of the largest Q."""
    found = mixture([[0.1, 0.1], [0.5, 0.5], [-0.3, -0.3]], [[0.1, 0.1], [0.2, 0.2], [0.1, 0.1]], [0.3, 0.3, 0.4])
    np.testing.assert_allclose(best(found, delta=0.0), [-0.3, -0.3], rtol=1e-4)
    np.testing.assert_allclose(best(found, delta=0.0, unlikely="keep"), [0.5, 0.5], rtol=1e-4)
    np.testing.assert_allclose(from_gaussian([0.2, 0.3], [1.0, 1.0], delta=0.0), [0.2, 0.3], rtol=1e-6)


def test_a_linear_critics_step_is_the_constrained_optimum():
    """Oracle 5: gradient ascent that is projected onto the ellipsoid ends where the closed form is."""
    mean, std = jnp.array([0.1, -0.2]), jnp.array([0.2, 0.1])

    def climb(_, unit):  # in units of the deviations the ellipsoid is a ball
        unit = unit + 0.1 * std * LINEAR
        return unit * jnp.minimum(1, jnp.sqrt(0.6) / jnp.linalg.norm(unit))

    np.testing.assert_allclose(from_gaussian(mean, std, delta=0.3), mean + std * jax.lax.fori_loop(0, 500, climb, jnp.zeros(2)), rtol=1e-4)


def test_where_the_mean_bound_has_room():
    """Oracle 6: unit deviations at +-3 with equal weights: 2 delta - 9 is the budget."""
    for delta in (4.0, 4.5, 5.0):
        *_, budget = jensen_gaussian(jnp.log(jnp.array([0.5, 0.5])), jnp.array([[3.0], [-3.0]]), jnp.ones((2, 1)), delta)
        np.testing.assert_allclose(budget, 2 * delta - 9, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_done_is_as_likely_as_promised(seed):
    """Within `delta` of the most likely mean of a component for the bound by the maximum, and of the mean's bound without a step for that one."""
    keys = jax.random.split(jax.random.key(seed), 4)
    mean, std = 0.2 * jax.random.normal(keys[0], (3, 2)), jnp.exp(0.3 * jax.random.normal(keys[1], (3, 2)) - 2)
    log_weight, slope = jax.nn.log_softmax(jax.random.normal(keys[2], (3,))), jax.random.normal(keys[3], (2,))
    found = Mixture(log_weight, Gaussian(mean, jnp.log(std), -jnp.ones(3), jnp.ones(3)))
    peaks = [log_weight[k] + jax.tree.map(lambda x: x[k], found.experts).log_prob(mean[k]) for k in range(3)]
    action = best(found, lambda a: (slope @ a)[None], bounds="max", least=0.0, delta=0.4)
    assert found.log_prob(action) >= max(peaks) - 0.4 - 1e-4
    centre, joint, budget = jensen_gaussian(log_weight, mean, std**2, 2.0)
    if budget >= 0:
        action = best_step(centre, joint, slope, budget)
        each = jax.vmap(lambda expert, m: expert.log_prob(action) - expert.log_prob(m))(found.experts, mean)
        np.testing.assert_allclose(jnp.exp(log_weight) @ each, -2.0, rtol=1e-3)


def test_the_better_bound_is_taken():
    """Where Q prefers the middle of two near components the bound by the mean wins, and with `max` a component's own candidate is done."""
    found = mixture([[0.1, 0.0], [-0.1, 0.0]], [[0.2, 0.2]] * 2)

    def value(action):
        return jnp.stack([-jnp.sum(action**2) + 1e-3 * action[1]] * 2)

    both, middle, own = (best(found, value, bounds=bounds) for bounds in ("both", "mean", "max"))
    np.testing.assert_allclose(both, max((middle, own), key=lambda action: float(value(action)[0])))
    assert not np.allclose(middle, own)
    apart = mixture([[0.5, 0.0], [-0.5, 0.0]], [[0.1, 0.1]] * 2)  # too far for the mean's bound: its candidates are the components'
    np.testing.assert_allclose(best(apart, value, bounds="mean"), best(apart, value, bounds="max"))


def test_components_of_small_weight_are_no_candidates():
    found = mixture([[0.1, 0.1], [0.6, 0.6]], [[0.1, 0.1]] * 2, [0.97, 0.03])
    far, near = (best(found, delta=4.0, bounds="max", least=least) for least in (0.01, 0.05))
    np.testing.assert_allclose(near, from_gaussian([0.1, 0.1], [0.1, 0.1], delta=4.0), rtol=1e-4)
    assert far @ LINEAR > near @ LINEAR
    np.testing.assert_allclose(best(found, delta=0.0, least=1.0), [0.1, 0.1], rtol=1e-4)  # none has as much: the likeliest is left


def test_pessimism_leaves_what_critics_disagree_on():
    """mean - p std with one degree of freedom less; of two equally likely actions that of the smaller spread is done; equal values give no NaN."""
    np.testing.assert_allclose(lower_bound(jnp.array([1.0, 3.0]), 1.0), 2 - np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(lower_bound(jnp.array([1.0]), 1.0), 1.0)
    found = mixture([[0.5, 0.0], [-0.5, 0.0]], [[0.01, 0.01]] * 2)

    def value(action):
        return jnp.stack([2.0 * (action[0] > 0), 0.5 * (action[0] > 0)]) + 1e-3 * action[1]

    assert best(found, value, bounds="max")[0] > 0 > best(found, value, bounds="max", pessimism=2.0)[0]
    assert np.isfinite(best(found, pessimism=1.0)).all() and np.isfinite(from_gaussian([0.1, 0.2], [1.0, 1.0], pessimism=1.0)).all()
