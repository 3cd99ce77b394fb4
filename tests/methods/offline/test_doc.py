"""Dichotomy of Control: what an energy says of luck, which latents hold none, and what moves whom."""

from __future__ import annotations

import dataclasses
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from polopt.core import parts, spaces
from polopt.data.dataset import DataTask
from polopt.methods.offline.doc import categorical, doc, information
from polopt.policies.latents import CategoricalLatent, GaussianLatent, LatentPolicy
from tests.methods.offline.helpers import begun, logged

SIZES = {"rule.history": 2, "rule.future": 2, "rule.width": 8, "rule.layers": 1, "rule.network.hidden": (8,), "rule.samples": 4, "batch_size": 8}
CHANCES, GOOD = np.array([0.3, 0.7]), 0.1  # of a reward of 1 from either arm; how often the log takes the better one


@jax.jit
def judged(beta, learner, batch):
    """(losses by name, slopes in actor, encoder and energies)."""
    weighed = dataclasses.replace(parts.replace(doc(None), SIZES).rule, beta=beta)
    networks = learner.actor, learner.extra.encoder, learner.extra.energies
    (_, metrics), slope = jax.value_and_grad(weighed.loss, has_aux=True)(networks, batch, learner.extra.scale, jax.random.key(2))
    return metrics, slope


def joint(encoding):
    """(a, r, z, chance) of everything there can be in the bandit, where `encoding(a, r)` is the latent."""
    rows = [(a, r, encoding(a, r), p * (q if r else 1 - q)) for a, (p, q) in enumerate(zip((1 - GOOD, GOOD), CHANCES)) for r in (0, 1)]
    a, r, z, chance = (np.array(column) for column in zip(*rows))
    return a, r, z, chance


def conditional_information(encoding):
    """MI(r; z | a) in the bandit, by enumeration."""
    a, r, z, chance = joint(encoding)
    chances = lambda *columns: np.array([chance[np.all([c == c[i] for c in columns], axis=0)].sum() for i in range(len(a))])  # noqa: E731
    return float(np.sum(chance * np.log(chances(r, z, a) * chances(a) / (chances(r, a) * chances(z, a)))))


def test_what_the_best_return_makes_of_a_log():
    """Oracle 1: pi(good | r = 1) = .1 .7 / (.1 .7 + .9 .3) = .2059, which pays .382 where 1 was asked for."""
    a, r, _, chance = joint(lambda a, r: 0)
    good = chance[(a == 1) & (r == 1)].sum() / chance[r == 1].sum()
    assert good == pytest.approx(0.2059, abs=1e-4)
    assert good * 0.7 + (1 - good) * 0.3 == pytest.approx(0.382, abs=1e-3)


def test_the_action_is_no_luck_and_the_reward_is_nothing_else():
    """Oracle 2: z = a has MI(r; z | a) = 0; z = (a, r) has H(r | a), the entropy of a coin of .3."""
    assert conditional_information(lambda a, r: a) == pytest.approx(0.0, abs=1e-12)
    entropy = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert conditional_information(lambda a, r: 2 * a + r) == pytest.approx(entropy, rel=1e-9)


@pytest.mark.parametrize("encoding", [lambda a, r: a, lambda a, r: 2 * a + r])
def test_the_best_energy_says_the_information(encoding):
    """Oracle 5: with omega = log p(r|z, a) / p(r) + const, I is MI(r; z, a), of which MI(r; a) is not the encoder's. Rows as often as they occur."""
    a, r, z, chance = joint(encoding)
    often = np.round(chance * 100).astype(int)
    a, r, z, chance = (np.repeat(x, often) for x in (a, r, z, chance))
    same = lambda *columns: np.all([c[:, None] == c[None] for c in columns], axis=0).astype(float)  # noqa: E731
    given, of = same(a, z), same(r)
    ratio = (given @ of) / given.sum(1, keepdims=True) / of.mean(1)[None]  # p(r_j | a_i, z_i) / p(r_j)
    found = float(jnp.mean(information(jnp.log(jnp.maximum(ratio, 1e-30)) + 3.0, jnp.ones(len(a)))))
    by_action = np.mean(np.log(((same(a) @ of) / same(a).sum(1, keepdims=True) / of.mean(1)[None]).diagonal()))
    assert found - by_action == pytest.approx(conditional_information(encoding), abs=1e-4)


def test_an_energy_that_does_not_look_at_the_cause_says_nothing():
    row = jax.random.normal(jax.random.key(0), (1, 60))
    assert float(jnp.mean(information(jnp.repeat(row, 60, 0), jnp.ones(60)))) < 0
    np.testing.assert_allclose(information(jnp.full((60, 60), 2.0), jnp.ones(60)), 0.0, atol=1e-5)


def test_a_masked_row_is_nobodys_alternative():
    energy, mask = jax.random.normal(jax.random.key(0), (5, 5)), jnp.array([1.0, 1, 1, 0, 0])
    np.testing.assert_allclose(information(energy, mask)[:3], information(energy[:3, :3], jnp.ones(3)), rtol=1e-5)
    np.testing.assert_array_equal(information(energy, mask)[3:], 0.0)


def test_other_arrays_have_the_same_information():
    """NumPy, JAX and PyTorch agree in I and its gradient, and a place at which nobody is has neither."""
    energy, mask = np.random.default_rng(0).normal(size=(5, 5)), np.array([1.0, 1, 0, 1, 0])
    given = torch.tensor(energy, requires_grad=True)
    value = information(given, torch.tensor(mask)).sum()
    value.backward()
    np.testing.assert_allclose(value.detach(), information(energy, mask).sum(), rtol=1e-9)
    found, slope = jax.value_and_grad(lambda e, m: information(e, m).sum())(jnp.asarray(energy), jnp.asarray(mask))
    np.testing.assert_allclose(found, value.detach(), rtol=1e-5)
    np.testing.assert_allclose(slope, given.grad, atol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda e: information(e, jnp.zeros(5)).sum())(jnp.asarray(energy)), 0.0)


def test_who_moves_whom():
    """Values and prior move nothing but themselves, beta is the encoder's alone, and without a word of the latent's energy there is no luck in it."""
    state, batch = begun("doc", tuple(SIZES.items()), spaces.Discrete(2))
    (metrics, once), (_, twice), (_, none) = (judged(beta, state.learner, batch) for beta in (1.0, 2.0, 0.0))
    told = once[2].told
    nothing = jax.tree.map(jnp.zeros_like, state.learner.extra.energies.told)
    silent = eqx.tree_at(lambda x: x.extra.energies.told, state.learner, nothing)
    assert abs(float(metrics["information"])) > 1e-4
    assert float(judged(1.0, silent, batch)[0]["information"]) == pytest.approx(0.0, abs=1e-6)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(told)) > 1e-6
    for x, y in zip(jax.tree.leaves((once[2], once[0].value, once[0].prior)), jax.tree.leaves((twice[2], twice[0].value, twice[0].prior))):
        np.testing.assert_allclose(x, y, atol=1e-5)
    for x, y, z in zip(*(jax.tree.leaves(slope[1]) for slope in (none, once, twice))):
        np.testing.assert_allclose(y - x, z - y, atol=1e-5)
    assert max(float(jnp.abs(y - x).max()) for x, y in zip(jax.tree.leaves(none[1]), jax.tree.leaves(once[1]))) > 1e-6


def test_the_encoder_sees_the_future_and_the_policy_does_not():
    state, batch = begun("doc", tuple(SIZES.items()), spaces.Discrete(2))
    actor, encoder = state.learner.actor, state.learner.extra.encoder
    states, steps, mask = batch.inputs[0][0], jnp.arange(3), jnp.ones(3)
    actions = jax.nn.one_hot(batch.action[0], 2)

    @jax.jit
    @functools.partial(jax.jacobian, argnums=1)
    def slope(actions, rows):
        x = actor.features(states, actions, steps, mask)
        return encoder(x, rows, mask)

    rows = jax.random.normal(jax.random.key(0), (3, encoder.embed.weight.shape[0]))
    seen = np.abs(np.asarray(slope(actions, rows))).sum((1, 3)) > 1e-9
    np.testing.assert_array_equal(seen, np.triu(np.ones((3, 3), bool)))
    features = jax.jit(jax.jacobian(lambda a: actor.features(states, a, steps, mask)))(actions)
    np.testing.assert_array_equal(np.abs(np.asarray(features)).sum((1, 3)) > 1e-9, np.tril(np.ones((3, 3), bool), -1))


@pytest.mark.parametrize("latent", [GaussianLatent(3), CategoricalLatent(3)])
def test_latents(latent):
    """Draws differ, have the gradient of their distribution's numbers, and a distribution has no divergence from itself."""
    numbers = jnp.linspace(-1.0, 1.0, latent.numbers)
    keys = jax.random.split(jax.random.key(0), 4000)
    z = jax.jit(jax.vmap(lambda k: latent.draw(numbers, k)))(keys)
    expected = jax.nn.softmax(numbers) if isinstance(latent, CategoricalLatent) else numbers[:3]
    np.testing.assert_allclose(z.mean(0), expected, atol=0.1)
    slope = jax.jacobian(lambda n: latent.draw(n, keys[0]))(numbers)
    known = jax.jacobian(jax.nn.softmax)(numbers) if isinstance(latent, CategoricalLatent) else np.eye(3)
    np.testing.assert_allclose(slope[:, :3], known, atol=1e-6)
    assert float(latent.kl(numbers, numbers)) == pytest.approx(0.0, abs=1e-6)
    assert float(latent.kl(numbers, jnp.zeros_like(numbers))) > 0.01


def test_the_latent_of_the_highest_value_is_taken():
    """Of so many draws that each latent is among them the best; of one draw that one, good or not."""
    method, data, x = parts.replace(categorical(None), SIZES), logged(spaces.Discrete(2)), jax.random.normal(jax.random.key(1), (8,))

    @jax.jit
    def judged(key):
        policy = method.policy(method.init(DataTask(data, 1), key))
        draws = lambda count: LatentPolicy(policy.actor, policy.normaliser, policy.context, count).chosen  # noqa: E731
        each = jax.vmap(lambda one: policy.actor.value(x, one)[0])(jnp.eye(4))
        return draws(200)(x, jax.random.key(2)), jax.vmap(lambda key: draws(1)(x, key)[1])(jax.random.split(key, 30)), each

    (z, value), single, every = jax.tree.map(np.asarray, judged(jax.random.key(0)))
    assert z.argmax() == every.argmax()
    assert value == pytest.approx(every.max(), rel=1e-4)
    assert single.min() == pytest.approx(every.min(), rel=1e-4)


def test_a_width_that_does_not_divide_is_refused():
    method = parts.replace(doc(None), {**SIZES, "rule.width": 6, "rule.heads": 2})
    assert "2 heads need a multiple of 4" in method.refuse(DataTask(logged(spaces.Discrete(2)), 1))
