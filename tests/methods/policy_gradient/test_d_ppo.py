"""D-PPO's oracles: the identity of the variance, which samples go, and PPO where none goes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from polopt.core import parts
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.methods.policy_gradient.d_ppo import DropCrossTerms, cross_terms, kept

SMALL = {"num_envs": 4, "num_steps": 8, "network.hidden": (8,), "critic_network.hidden": (8,)}


def libraries(x):
    return np.asarray(x, np.float64), jnp.asarray(x, jnp.float32), torch.tensor(x, dtype=torch.float64)


def test_the_numbers_of_the_catalogue():
    """Oracle 1."""
    for phi in libraries([1.0, 2.0, -1.0]):
        delta = np.asarray(cross_terms(phi))
        np.testing.assert_array_equal(delta, [1, 0, -3])
        assert 2 * float((phi**2).sum()) - delta.sum() == 14
        np.testing.assert_allclose(np.var(np.asarray(phi)), 14 / 9, rtol=1e-6)
    assert np.var([1, 2]) == 0.25


def test_the_variance_is_squares_minus_cross_terms():
    """The identity behind the method, and oracle 4."""
    phi = np.random.default_rng(0).normal(size=50)
    delta = cross_terms(phi)
    np.testing.assert_allclose(50**2 * phi.var(), 49 * (phi**2).sum() - delta.sum(), rtol=1e-12)
    np.testing.assert_allclose(delta.sum(), phi.sum() ** 2 - (phi**2).sum(), rtol=1e-12)
    expected = [sum(phi[i] * phi[j] for j in range(50) if j != i) for i in range(50)]
    np.testing.assert_allclose(delta, expected, rtol=1e-9, atol=1e-12)


def test_where_the_sum_is_zero_the_largest_of_each_sign_go():
    """Oracle 3."""
    for phi in libraries([3.0, -1.0, 1.0, -3.0, 2.0, -2.0, 0.5, -0.5]):
        np.testing.assert_allclose(np.asarray(cross_terms(phi)), -(np.asarray(phi) ** 2), atol=1e-12)
        assert np.asarray(kept(phi, 6)).tolist() == [1, 2, 4, 5, 6, 7]
        assert np.asarray(kept(phi, 4)).tolist() == [1, 2, 6, 7]


@pytest.mark.parametrize("drop", [0, 10, 20, 55])
def test_both_signs_keep_the_same_share(drop):
    phi = np.random.default_rng(1).normal(loc=0.7, size=400)
    part = DropCrossTerms(drop)
    chosen = kept(phi, part.count(400))
    assert len(set(chosen.tolist())) == 400 * (100 - drop) / 100
    assert sorted(chosen) == list(chosen)
    delta = cross_terms(phi)
    for sign in (phi >= 0, phi < 0):
        inside = np.isin(np.arange(400), chosen) & sign
        assert abs(inside.sum() - (100 - drop) / 100 * sign.sum()) <= 1
        gone = sign & ~inside
        assert not gone.any() or delta[gone].max() <= delta[inside].min()


def test_one_sign_alone_is_ranked_as_a_whole():
    phi = np.array([5.0, 1.0, 2.0, 4.0])  # S = 12: Delta is 35, 11, 20, 32
    assert kept(phi, 2).tolist() == [0, 3]
    np.testing.assert_array_equal(kept(-phi, 2), [0, 3])


@pytest.mark.parametrize("core", ["none", "gru"])
def test_without_dropping_it_is_ppo_bit_for_bit(core):
    """Oracle 2."""
    task = ControlTask(make("probe:credit"), 1000)
    same = {**SMALL, "minibatches": 2, "network.core": core, "critic_network.core": core, "network.core_size": 4, "critic_network.core_size": 4}
    ends = []
    for name, changes in (("d_ppo", {"drop": 0}), ("ppo", {"standardise": "batch"})):
        method = parts.replace(registry.load(name)(task), {**same, **changes})
        ends.append(jax.jit(lambda key, m=method: m.step(task, m.step(task, m.init(task, key))[0])[0].learner)(jax.random.key(0)))
    for x, y in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        np.testing.assert_array_equal(x, y)


def test_dropping_lowers_the_variance_and_reports_it():
    task = ControlTask(make("probe:credit"), 1000)
    method = parts.replace(registry.load("d_ppo")(task), SMALL)
    _, metrics = jax.jit(lambda key: method.step(task, method.init(task, key)))(jax.random.key(0))
    assert 0 < float(metrics["surrogate/variance_kept"]) < float(metrics["surrogate/variance"])
    assert {"surrogate/mean", "surrogate/mean_kept"} <= set(metrics)


def test_what_is_dropped_has_no_part_in_the_update():
    """Spoiling the targets of the samples that one pass drops leaves its update as it was."""
    task = ControlTask(make("probe:credit"), 1000)
    method = parts.replace(registry.load("d_ppo")(task), {**SMALL, "drop": 50, "epochs": 1, "minibatches": 1})
    state = jax.jit(lambda key: method.init(task, key))(jax.random.key(0))
    _, rollout, _ = method.collect(task.env, state, jax.random.key(1))
    batch, *_ = method.judge(state, state.acting, rollout)
    chosen, _ = method.improver.select(method, state.learner.actor, batch, None)
    spoilt = batch._replace(target=jnp.full_like(batch.target, 1e3).at[chosen].set(batch.target[chosen]))
    improve = jax.jit(lambda b: method.improver(method, state.improver, state.learner, (), b, jnp.float32(0), jax.random.key(2))[0])
    for x, y in zip(jax.tree.leaves(improve(batch)), jax.tree.leaves(improve(spoilt)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_too_few_kept_samples_are_refused():
    task = ControlTask(make("probe:credit"), 1000)
    method = parts.replace(registry.load("d_ppo")(task), {**SMALL, "num_steps": 1, "minibatches": 4, "drop": 50})
    assert "2 samples that are kept of 4" in method.refuse(task)
