"""RPG's oracles: the table of gradients, what GRPO's penalty is instead, and the bounds."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core.parts import replace
from polopt.data import testbeds
from polopt.methods.reasoning.rpg import (
    DIVERGENCES,
    ClippedREINFORCE,
    Differentiable,
    MaskedREINFORCE,
    clipped_coefficient,
    differentiable,
    differentiable_loss,
    kl_coefficient,
    masked,
    masked_coefficient,
    rpg,
)
from polopt.objectives.divergences import k3
from polopt.optim.sgd import Sgd
from tests.methods.reasoning.identities import agree, an_update, every_field_weighs, same_in_pieces, weights

rows = pytest.mark.parametrize("divergence", DIVERGENCES)


def problem(seed=0, arms=10):
    """Logits of pi, pi_old and a third policy, and rewards."""
    rng = np.random.default_rng(seed)
    return (*rng.normal(size=(3, arms)), rng.uniform(0, 2, arms))


def objective(logits, ref, rewards, beta, divergence):
    """J itself, by enumeration."""
    log_p, log_r = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref)
    reverse = jnp.sum(jnp.exp(log_p) * (log_p - log_r))
    forward = jnp.sum(jnp.exp(log_r) * (log_r - log_p))
    return jnp.sum(jnp.exp(log_p) * rewards) - beta * (reverse if "reverse" in divergence else forward)


@rows
@pytest.mark.parametrize("reference", ["old", "another"])
def test_both_forms_are_the_gradient_of_the_objective(divergence, reference):
    """Oracle 1, with the reference the old policy and with another: loss and coefficient against J, by enumeration."""
    with jax.enable_x64(True):
        theta, old, third, rewards = map(jnp.asarray, problem())
        ref, beta = old if reference == "old" else third, 0.5
        p_old, log_old, log_ref = jax.nn.softmax(old), jax.nn.log_softmax(old), jax.nn.log_softmax(ref)

        def loss(logits):
            return jnp.sum(p_old * differentiable_loss(jax.nn.log_softmax(logits), log_old, log_ref, rewards, beta, divergence))

        def with_stop(logits):
            log_p = jax.nn.log_softmax(logits)
            w = jnp.exp(log_p - log_old)
            c = w * rewards + beta * kl_coefficient(w, jnp.exp(log_ref - log_old), divergence)
            return -jnp.sum(p_old * jax.lax.stop_gradient(c) * log_p)

        wanted = jax.grad(objective)(theta, ref, rewards, beta, divergence)
        np.testing.assert_allclose(-jax.grad(loss)(theta), wanted, atol=1e-12)
        np.testing.assert_allclose(-jax.grad(with_stop)(theta), wanted, atol=1e-12)


def test_k3_as_a_loss_is_the_forward_divergence():
    """Oracle 2."""
    with jax.enable_x64(True):
        theta, ref, _, rewards = map(jnp.asarray, problem(1))
        p, log_ref = jax.nn.softmax(theta), jax.nn.log_softmax(ref)
        found = jax.grad(lambda x: jnp.sum(p * k3(jax.nn.log_softmax(x), log_ref)))(theta)
        forward, reverse = (-jax.grad(objective)(theta, ref, 0 * rewards, 1.0, d) for d in ("forward", "reverse"))
        np.testing.assert_allclose(found, forward, atol=1e-12)
        assert np.abs(found - reverse).max() > 0.02


@rows
def test_on_policy_coefficients(divergence):
    """Oracle 3: beta times 1, 0, -1, 0 beside the advantage."""
    wanted = {"forward": 1.0, "unnormalised_forward": 0.0, "reverse": -1.0, "unnormalised_reverse": 0.0}[divergence]
    found, _ = agree(lambda x, a: clipped_coefficient(x, a, 0.1, divergence, 0.2, 0.28), np.zeros(2), np.array([1.0, -2.0]), moves=())
    np.testing.assert_allclose(found, np.array([1.0, -2.0]) + 0.1 * wanted, atol=1e-12)


@rows
def test_without_a_penalty_all_are_importance_weighted(divergence):
    """Oracle 4."""
    log_prob, old, advantage = np.log([[0.2, 0.5]]), np.log([[0.3, 0.4]]), np.array([[1.0, -1.0]])
    loss = functools.partial(differentiable_loss, beta=0.0, divergence=divergence)
    _, (slope,) = agree(lambda x, o, a: loss(x, o, o, a), log_prob, old, advantage)
    np.testing.assert_allclose(-slope, [[2 / 3, -5 / 4]], rtol=1e-12)


@rows
def test_the_clip_is_inside_the_coefficient(divergence):
    beta = 0.3
    w = np.array([0.5, 0.9, 1.1, 3.0])
    kept = np.array([0.8, 0.9, 1.1, 1.28])
    found, _ = agree(lambda x, a: clipped_coefficient(x, a, beta, divergence, 0.2, 0.28), np.log(w), np.full(4, -2.0), moves=())
    np.testing.assert_allclose(found, -2 * kept + beta * kl_coefficient(kept, 1.0, divergence), rtol=1e-9)


@pytest.mark.parametrize(
    "ratio, advantage, wanted", [(1.28, 1.0, 0.0), (1.27, 1.0, 1.27), (0.79, -1.0, 0.0), (0.81, -1.0, -0.81), (10.1, -1.0, 0.0), (9.0, -1.0, -9.0)]
)
def test_the_mask(ratio, advantage, wanted):
    log_ratio = np.array([np.log(ratio * (1 + 1e-12))])
    found, _ = agree(lambda x, a: masked_coefficient(x, a, 0.0, "reverse", 0.2, 0.28, 10.0, 10.0), log_ratio, np.array([advantage]), moves=())
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_large_coefficients_are_cut():
    found = masked_coefficient(np.log([9.0]), np.array([0.0]), 1.0, "reverse", 0.2, 0.28, 10.0, 10.0)
    np.testing.assert_allclose(found, [-10.0])


@rows
def test_the_weights_in_the_loop(divergence):
    log_ratio, advantage = np.log([[0.5, 1.1], [0.9, 2.0]]), np.array([[1.0, 1.0], [-0.5, -0.5]])
    update = an_update(log_ratio, old=np.zeros((2, 2)), advantage=advantage.astype(np.float32))
    wanted = clipped_coefficient(log_ratio, advantage, 0.2, divergence, 0.2, 0.28)
    np.testing.assert_allclose(weights(ClippedREINFORCE(divergence, 0.2), update), wanted, rtol=1e-5)
    wanted = masked_coefficient(log_ratio, advantage, 0.2, divergence, 0.2, 0.28, 1.5, 1.0)
    np.testing.assert_allclose(weights(MaskedREINFORCE(divergence, 0.2, dual=1.5, limit=1.0), update), wanted, rtol=1e-5, atol=1e-7)


def test_every_field_counts():
    ratio, advantage = np.array([[0.4, 0.9, 1.2, 1.4, 12.0]] * 3), np.array([[1.0], [0.0], [-1.0]], np.float32)
    update = an_update(np.log(ratio), old=np.zeros((3, 5)), advantage=np.repeat(advantage, 5, 1))
    every_field_weighs(ClippedREINFORCE(beta=0.5), update, divergence="reverse", beta=0.1, low=0.05, high=0.05)
    bounds = dict(low=0.05, high=0.15, dual=13.0, limit=0.05)
    every_field_weighs(MaskedREINFORCE(beta=0.5), update, divergence="forward", beta=0.1, **bounds)
    every_field_weighs(Differentiable(beta=0.5), update, divergence="forward", beta=0.1)


def test_the_loop():
    task = testbeds.chain(prompts=6, length=2, vocabulary=3, success=0.7, steps=4)
    method = dataclasses.replace(rpg(task), step_rule=Sgd(10.0), minibatches=2)
    same_in_pieces(replace(method, {"sampler.prompts": 4, "sampler.completions": 8, "objective.beta": 0.5}), task, 4)
    assert [type(f(task).objective) for f in (masked, differentiable)] == [MaskedREINFORCE, Differentiable]
