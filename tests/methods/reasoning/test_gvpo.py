"""GVPO's oracles: its gradient, its fixed point, and what cancels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.loops.language import Aggregation
from polopt.methods.reasoning.gvpo import GroupVariance, group_variance
from polopt.objectives.advantages import group_relative
from tests.methods.reasoning.helpers import everywhere, update, weights

RNG = np.random.default_rng(0)
GROUPS = np.array([0, 0, 0, 1, 1, 1])
L, R = RNG.normal(size=6), RNG.normal(size=6)


def loss(log_ratio, reward, groups, beta):
    centred = group_relative(reward, groups, scale="none")
    return group_variance(log_ratio, centred, groups, beta)


def test_it_is_half_the_variance_over_the_group():
    """1/(G-1) sum of squares over 2, as a mean over completions; in NumPy, JAX and PyTorch."""
    found = everywhere(lambda l, r, g: loss(l, r, g, 0.5), L, R, GROUPS)
    halves = [np.var((0.5 * L - R)[GROUPS == g], ddof=1) / 2 for g in (0, 1)]
    np.testing.assert_allclose(found.mean(), np.mean(halves), rtol=1e-10)


def test_a_pair():
    """Oracle 4: R = (.2, 0), r = (1, 0): 1/4 (.2 - 1)^2 = .16."""
    np.testing.assert_allclose(everywhere(lambda l, r, g: loss(l, r, g, 1.0), np.array([0.2, 0]), np.array([1.0, 0]), np.array([0, 0])).mean(), 0.16)


def test_constants_of_a_prompt_cancel():
    """Oracle 2."""
    shift = np.array([3.0, -5.0])[GROUPS]
    for moved in (loss(L + shift, R, GROUPS, 0.7), loss(L, R + shift, GROUPS, 0.7)):
        np.testing.assert_allclose(moved, loss(L, R, GROUPS, 0.7), rtol=1e-9)


def test_the_gibbs_policy_has_no_loss():
    """Oracle 3."""
    assert np.max(loss(R / 0.3 + np.array([2.0, -1.0])[GROUPS], R, GROUPS, 0.3)) < 1e-25
    assert np.max(loss(L, R, GROUPS, 0.3)) > 0.01


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_weight_on_grad_log_pi(beta):
    """beta / (G - 1) w_i on every token of the completion, over the number of prompts; at the reference w is the centred reward (oracle 1)."""
    old = jnp.full((6, 2), -1.0)
    step = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
    learn = jnp.ones((6, 2), bool).at[2, 1].set(False)
    centred = group_relative(R, GROUPS, scale="none")
    for moved in (0.0, 1.0):
        given = update(old + moved * step, centred, old=old, learn=learn, group=GROUPS)
        found = weights(GroupVariance(beta), given, Aggregation("sequence"))
        l = np.asarray(jnp.sum(jnp.where(learn, moved * step, 0.0), axis=1))
        w = centred - beta * group_relative(l, GROUPS, scale="none")
        np.testing.assert_allclose(found, learn * (beta / 2 * w / 2)[:, None], rtol=1e-4, atol=1e-6)


def test_a_mean_without_gradient_is_the_same():
    """Oracle 5: the residuals of a group sum to 0."""

    def detached(log_ratio):
        mean = log_ratio - group_relative(log_ratio, jnp.asarray(GROUPS), scale="none")
        residual = group_relative(jnp.asarray(R, jnp.float32), jnp.asarray(GROUPS), scale="none") - 0.5 * (log_ratio - jax.lax.stop_gradient(mean))
        return jnp.sum(1.5 * residual**2 / 2)

    at = jnp.asarray(L, jnp.float32)
    whole = jax.grad(lambda x: jnp.sum(loss(x, jnp.asarray(R, jnp.float32), jnp.asarray(GROUPS), 0.5)))(at)
    np.testing.assert_allclose(jax.grad(detached)(at), whole, rtol=1e-4, atol=1e-6)


def test_the_reference_is_the_old_policy_or_the_anchor():
    log_prob, other = jnp.full((2, 1), -1.0), jnp.array([[-1.5], [-0.5]])
    old = GroupVariance(1.0).loss(update(log_prob, old=other, anchor=log_prob), None)[0]
    anchor = GroupVariance(1.0, "anchor").loss(update(log_prob, old=log_prob, anchor=other), None)[0]
    np.testing.assert_allclose(old, 0.25, rtol=1e-5)  # l = (.5, -.5), G / (G - 1) l^2 / 2
    np.testing.assert_allclose(anchor, old)
