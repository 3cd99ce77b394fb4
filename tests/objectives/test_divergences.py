"""Estimators against enumeration, exact forms against definitions, f-divergences against each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.objectives import divergences
from polopt.objectives.divergences import (
    ESTIMATORS,
    F_DIVERGENCES,
    alpha_divergence,
    categorical_kl,
    f_divergence,
    gaussian_kl,
    gaussian_wasserstein,
    k1,
    k2,
    k3,
    kl_loss,
    unnormalised_kl,
)

properties = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


class Toy:
    """A six-way softmax policy, an anchor, and the policy that draws the samples; every expectation is a sum of six terms."""

    def __init__(self, seed, on_policy):
        rng = np.random.default_rng(seed)
        self.logits = torch.tensor(rng.normal(size=6), requires_grad=True)
        self.ref = torch.log_softmax(torch.tensor(rng.normal(size=6)), 0)
        self.old = self.log_prob().detach() if on_policy else torch.log_softmax(torch.tensor(rng.normal(size=6)), 0)

    def log_prob(self):
        return torch.log_softmax(self.logits, 0)

    def expected(self, estimator):
        """Mean over samples of `old`, and mean of the gradient."""
        mean = torch.sum(self.old.exp() * estimator(self.log_prob()))
        return mean.item(), torch.autograd.grad(mean, self.logits)[0].numpy()

    def exact(self, direction):
        new = self.log_prob()
        kl = categorical_kl(new, self.ref) if direction == "reverse" else categorical_kl(self.ref, new)
        return kl.item(), torch.autograd.grad(kl, self.logits)[0].numpy()


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def stated(words, exact):
    """What a stated bias says of a measured difference."""
    return exact if words.startswith(("unbiased", "exact")) and not words.startswith("exactly 0") else not exact


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("on_policy", [True, False])
def test_stated_biases_are_true(name, on_policy):
    """CONFORMANCE, the KL row, and the table of rpg: each estimator's words against enumeration."""
    estimator = ESTIMATORS[name]
    direction = "reverse" if "KL(pi || ref)" in estimator.target else "forward"
    for seed in range(3):
        toy = Toy(seed, on_policy)
        if name in ("k1", "k2", "k3"):
            if not on_policy:
                continue  # they are stated for samples of pi alone
            value, gradient = toy.expected(lambda x: getattr(divergences, name)(x, toy.ref))
        else:
            value, gradient = toy.expected(lambda x: kl_loss(x, toy.ref, old_log_prob=toy.old, estimator=name))
        exact, exact_gradient = toy.exact(direction)
        assert stated(estimator.as_value, abs(value - exact) < 1e-12), value - exact
        assert stated(estimator.as_gradient, np.allclose(gradient, exact_gradient, rtol=0, atol=1e-12))


def test_k1_as_a_loss_does_nothing():
    toy = Toy(0, on_policy=True)
    np.testing.assert_allclose(toy.expected(lambda x: k1(x, toy.ref))[1], 0, atol=1e-15)
    with pytest.raises(ValueError, match="expected gradient is exactly 0.*regularises nothing.*unnormalised_reverse"):
        kl_loss(toy.log_prob(), toy.ref, estimator="k1")


def test_k3_as_a_loss_is_the_other_divergence():
    """CONFORMANCE: cosine 0.96 on a six-way softmax; and it is the forward gradient exactly (rpg, oracle 2)."""
    toy = Toy(0, on_policy=True)
    _, gradient = toy.expected(lambda x: kl_loss(x, toy.ref, estimator="k3"))
    assert cosine(gradient, toy.exact("reverse")[1]) == pytest.approx(0.961, abs=5e-4)
    np.testing.assert_allclose(gradient, toy.exact("forward")[1], atol=1e-15)


def test_the_default_is_the_ratio_times_k3():
    toy = Toy(1, on_policy=False)
    x = toy.log_prob()
    np.testing.assert_allclose(kl_loss(x, toy.ref, old_log_prob=toy.old).detach(), (torch.exp(x - toy.old) * k3(x, toy.ref)).detach(), atol=1e-14)
    on_policy = Toy(1, on_policy=True)
    value, gradient = on_policy.expected(lambda x: kl_loss(x, on_policy.ref))  # the samples are said to be pi's
    assert value == pytest.approx(on_policy.exact("reverse")[0])
    np.testing.assert_allclose(gradient, on_policy.exact("reverse")[1], atol=1e-14)
    np.testing.assert_array_equal(kl_loss(x, toy.ref, estimator="k2").detach(), k2(x, toy.ref).detach())


@pytest.mark.parametrize(
    ("name", "coefficient"),
    [
        ("forward", lambda u, w, v: -v),
        ("unnormalised_forward", lambda u, w, v: w - v),
        ("reverse", lambda u, w, v: w * (u + 1)),
        ("unnormalised_reverse", lambda u, w, v: w * u),
    ],
)
def test_coefficients_of_the_table_of_rpg(name, coefficient):
    """Catalogue, rpg: what multiplies grad log pi, sample by sample (its table is for the negative, times beta)."""
    toy = Toy(2, on_policy=False)
    x = toy.log_prob().detach().requires_grad_()
    gradient = torch.autograd.grad(kl_loss(x, toy.ref, old_log_prob=toy.old, estimator=name).sum(), x)[0]
    u, w, v = x - toy.ref, torch.exp(x - toy.old), torch.exp(toy.ref - toy.old)
    np.testing.assert_allclose(gradient, coefficient(u, w, v).detach(), atol=1e-14)


# -- exact forms -------------------------------------------------------------------------------------------------------


def test_impossible_actions():
    """Masked actions count for nothing, in value and gradient; an action that only p takes is infinitely far."""
    p = torch.tensor([[0.0, 1.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[1.0, 0.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    kl = categorical_kl(torch.log_softmax(p, -1), torch.log_softmax(q, -1))
    expected = categorical_kl(torch.log_softmax(p[:, :2], -1), torch.log_softmax(q[:, :2], -1))
    assert kl.item() == pytest.approx(expected.item())
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(kl.sum(), (p, q)))
    log_p, log_q = np.log([0.5, 0.5]), np.array([0.0, -math.inf])
    assert categorical_kl(log_p, log_q) == math.inf
    assert categorical_kl(log_q, log_p) == pytest.approx(math.log(2))


@properties
@given(seeds)
def test_unnormalised_kl_is_kl_of_measures(seed):
    rng = np.random.default_rng(seed)
    p, q = rng.gamma(1.0, size=(2, 5)) + 1e-3
    assert unnormalised_kl(np.log(p), np.log(q)) == pytest.approx(np.sum(p * np.log(p / q) - p + q))
    p, q = p / p.sum(), q / q.sum()
    assert unnormalised_kl(np.log(p), np.log(q)) == pytest.approx(categorical_kl(np.log(p), np.log(q)))


def test_the_wasserstein_distance_of_gaussians():
    """N(0, 1) and N(3, 5^2) are 5 apart, a distribution and itself 0; in one dimension it is the distance of the quantiles."""
    zero, one = np.zeros(1), np.ones(1)
    assert gaussian_wasserstein(zero, zero, 3 * one, np.log(5 * one)) == pytest.approx(5.0, rel=1e-9)
    assert gaussian_wasserstein(one, zero, one, zero) == pytest.approx(0.0, abs=1e-6)
    normal = torch.distributions.Normal(torch.zeros(1, dtype=torch.float64), 1.0)
    x = normal.icdf((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).numpy()
    exact = math.sqrt(np.mean((0.3 + 0.5 * x - (-1.0 + 2.0 * x)) ** 2))
    assert gaussian_wasserstein(0.3 * one, np.log(0.5 * one), -one, np.log(2 * one)) == pytest.approx(exact, rel=1e-3)


def test_gaussian_kl_is_the_integral():
    rng = np.random.default_rng(0)
    (mean_p, mean_q), (log_std_p, log_std_q) = rng.normal(size=(2, 3)), 0.5 * rng.normal(size=(2, 3))
    x = np.linspace(-20, 20, 40001)[:, None]

    def log_density(mean, log_std):
        return -0.5 * ((x - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)

    log_p, log_q = log_density(mean_p, log_std_p), log_density(mean_q, log_std_q)
    expected = np.sum(np.trapezoid(np.exp(log_p) * (log_p - log_q), x[:, 0], axis=0))
    assert gaussian_kl(mean_p, log_std_p, mean_q, log_std_q) == pytest.approx(expected, rel=1e-9)
    close = gaussian_kl(np.zeros(1), np.zeros(1), np.zeros(1), np.full(1, 1e-6))
    assert close == pytest.approx(1e-12, rel=1e-5)  # to first order, the square of the difference of log deviations


# -- f-divergences -----------------------------------------------------------------------------------------------------

ALL = {**F_DIVERGENCES, **{f"alpha {a}": alpha_divergence(a) for a in (-1.0, 0.5, 2.0, 3.0)}}


@pytest.mark.parametrize(
    ("name", "slope"),
    [("forward_kl", -0.5), ("reverse_kl", 1.693147), ("tv", 0.5), ("js", 0.287682), ("neyman_chi2", 0.75), ("chi2", 2.0)],
)
def test_derivatives_at_two(name, slope):
    """Catalogue, f_dpg, oracle 1."""
    assert F_DIVERGENCES[name].derivative(np.log(np.array(2.0))) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_generator_derivative_and_conjugate_belong_together(name):
    """f(1) = 0; f' is f's slope; f*(y) is the largest t y - f(t), reached where f'(t) = y."""
    f = ALL[name]
    x = np.linspace(-3, 1.5, 37)
    t = np.exp(x)
    assert abs(float(f.generator(np.zeros(1))[0])) < 1e-15
    h = 1e-6
    numeric = (f.generator(np.log(t + h)) - f.generator(np.log(t - h))) / (2 * h)
    smooth = np.abs(x) > 1e-3 if name == "tv" else x == x
    np.testing.assert_allclose(f.derivative(x)[smooth], numeric[smooth], rtol=1e-6, atol=1e-6)
    y = f.derivative(x)[smooth]
    if name != "tv":
        np.testing.assert_allclose(f.conjugate(y), t[smooth] * y - f.generator(x)[smooth], rtol=1e-9, atol=1e-9)
    grid = np.concatenate([np.linspace(-60, -5, 2000), np.linspace(-5, 4, 20001), [0.0]])
    for y in (-2.5, -1.0, -0.3, 0.1, 0.4):
        largest = np.max(np.exp(grid) * y - f.generator(grid))
        given = float(f.conjugate(np.array(y)))
        if math.isfinite(given):
            assert given == pytest.approx(largest, abs=2e-5)
        else:
            # where it is infinite the supremum grows with the range of t
            assert np.max(np.exp(grid + 3) * y - f.generator(grid + 3)) > largest + 0.5


def test_one_sided_conjugates_of_the_dual_methods():
    """Catalogue, dual_rl: chi2 is y + y^2/4 above -2 and -1 below; TV's is max(y, -1/2)."""
    y = np.array([-5.0, -2.0, 0.0, 0.4])
    np.testing.assert_allclose(F_DIVERGENCES["chi2"].conjugate(y), [-1, -1, 0, 0.44])
    np.testing.assert_allclose(F_DIVERGENCES["tv"].conjugate(y), [-0.5, -0.5, 0, 0.4])
    assert F_DIVERGENCES["tv"].conjugate(np.array(0.6)) == math.inf
    # catalogue, odice: y w - (w - 1)^2 with w = max(y / 2 + 1, 0)
    w = np.maximum(y / 2 + 1, 0)
    np.testing.assert_allclose(F_DIVERGENCES["chi2"].conjugate(y), y * w - (w - 1) ** 2)


@pytest.mark.parametrize("name", ALL)
def test_score_function_gradient(name):
    """Catalogue, f_dpg, oracles 2 and 3: sum pi f'(pi / p) grad log pi is the gradient of D_f, and 0 on average at pi = p."""
    rng = np.random.default_rng(3)
    logits = torch.tensor(rng.normal(size=5), requires_grad=True)
    p = torch.log_softmax(torch.tensor(rng.normal(size=5)), 0)
    new = torch.log_softmax(logits, 0)
    exact = torch.autograd.grad(f_divergence(new, p, ALL[name]), logits)[0]
    new = torch.log_softmax(logits, 0)
    weight = (new.exp() * ALL[name].derivative(new - p)).detach()
    np.testing.assert_allclose(torch.autograd.grad(torch.sum(weight * new), logits)[0], exact, atol=1e-13)
    assert np.ptp(ALL[name].derivative(np.zeros(4))) == 0


def test_names_and_limits():
    rng = np.random.default_rng(4)
    p, q = (x - np.log(np.sum(np.exp(x))) for x in rng.normal(size=(2, 6)))
    assert f_divergence(p, q, F_DIVERGENCES["reverse_kl"]) == pytest.approx(categorical_kl(p, q))
    assert f_divergence(p, q, F_DIVERGENCES["forward_kl"]) == pytest.approx(categorical_kl(q, p))
    middle = np.log((np.exp(p) + np.exp(q)) / 2)
    assert f_divergence(p, q, F_DIVERGENCES["js"]) == pytest.approx(categorical_kl(p, middle) + categorical_kl(q, middle))
    assert f_divergence(p, q, F_DIVERGENCES["tv"]) == pytest.approx(0.5 * np.sum(np.abs(np.exp(p) - np.exp(q))))
    assert f_divergence(p, q, alpha_divergence(2.0)) == pytest.approx(f_divergence(p, q, F_DIVERGENCES["chi2"]) / 2)
    assert f_divergence(p, q, alpha_divergence(-1.0)) == pytest.approx(f_divergence(p, q, F_DIVERGENCES["neyman_chi2"]) / 2)
    assert f_divergence(p, q, alpha_divergence(0.5)) == pytest.approx(2 * np.sum((np.exp(p / 2) - np.exp(q / 2)) ** 2))
    assert f_divergence(p, q, alpha_divergence(1 + 1e-6)) == pytest.approx(categorical_kl(p, q), rel=1e-5)
    assert f_divergence(p, q, alpha_divergence(1e-6)) == pytest.approx(categorical_kl(q, p), rel=1e-5)
    with pytest.raises(ValueError, match="alpha=1.*reverse_kl"):
        alpha_divergence(1)


def test_refusals():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match="estimator='k4'.*'unnormalised_reverse'"):
        kl_loss(x, x, estimator="k4")
    with pytest.raises(ValueError, match=r"log_q \(3,\)"):
        categorical_kl(x, x[0])


def test_the_cap_of_k3():
    """verl cuts k3 at 10 on both sides, without gradient there; log-ratios of a thousand are no infinity."""
    gap = torch.tensor([-1000.0, -3.0, 1.0, 11.5], dtype=torch.float64, requires_grad=True)
    value = divergences.k3(gap, torch.zeros(4, dtype=torch.float64), cap=10.0)
    value.sum().backward()
    np.testing.assert_allclose(value.detach(), [10, 10, np.exp(-1), 10])
    np.testing.assert_allclose(gap.grad, [0, 0, 1 - np.exp(-1), 0])
