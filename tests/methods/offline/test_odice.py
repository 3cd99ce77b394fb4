"""ODICE: the projection, its limits, the conjugate and where V comes to rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.flatten_util import ravel_pytree

from polopt.core import parts, spaces
from polopt.methods.offline.odice import (
    DualValue,
    Orthogonal,
    TrueGradient,
    backed_up,
    backward_gradient,
    each,
    forward_gradient,
    least,
    orthogonal_part,
)
from polopt.objectives.divergences import F_DIVERGENCES
from tests.methods.offline.helpers import BOX, rule_and_batch, update

CHI2 = F_DIVERGENCES["chi2"].conjugate


def test_the_projection_in_numbers():
    """Oracle 2: G_f = (1, 0), G_b = (-.9, .4) give (1, .4), where the plain sum is (.1, .4)."""
    forward, backward = np.array([1.0, 0.0]), np.array([-0.9, 0.4])
    np.testing.assert_allclose(forward + orthogonal_part(backward, forward), [1.0, 0.4])


def test_three_libraries_agree():
    """Oracle 1 in each: orthogonal, and as long as the sine says."""
    rng = np.random.default_rng(0)
    backward, forward = rng.normal(size=30), rng.normal(size=30)
    found = orthogonal_part(backward, forward)
    assert abs(found @ forward) < 1e-12
    cosine = backward @ forward / np.sqrt(backward @ backward * (forward @ forward))
    np.testing.assert_allclose(found @ found, backward @ backward * (1 - cosine**2))
    with jax.enable_x64(True):
        np.testing.assert_allclose(orthogonal_part(jnp.asarray(backward), jnp.asarray(forward)), found)
        jacobian = jax.jacobian(orthogonal_part)(jnp.asarray(backward), jnp.asarray(forward))
    of_torch = torch.tensor(backward, requires_grad=True), torch.tensor(forward)
    np.testing.assert_allclose(orthogonal_part(*of_torch).detach().numpy(), found)
    of_torch = torch.autograd.functional.jacobian(lambda b: orthogonal_part(b, of_torch[1]), of_torch[0])
    np.testing.assert_allclose(jacobian, of_torch.numpy(), atol=1e-12)


def test_nothing_is_divided_by_a_vanishing_gradient():
    """f* is flat far below 0, so that the forward gradient may be exactly 0."""
    np.testing.assert_array_equal(orthogonal_part(np.array([1.0, 2.0]), np.zeros(2)), [1.0, 2.0])


def test_the_conjugate_in_numbers():
    """Oracle 4: 0, 3, -1, -1 with slopes 1, 2, 0, 0 at 0, 2, -2, -5."""
    y = jnp.array([0.0, 2.0, -2.0, -5.0])
    np.testing.assert_allclose(CHI2(y), [0, 3, -1, -1])
    np.testing.assert_allclose(jax.vmap(jax.grad(CHI2))(y), [1, 2, 0, 0])


def flat(tree):
    return ravel_pytree(tree)[0]


def pieces(*rules, **changes):
    """The rules' gradients, flat, and (V, V-, the nonlinear term): the networks and their slow copies differ."""
    rule, learner, batch = rule_and_batch("odice", **changes)
    value = learner.critic
    slow = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), value)

    def loss(now, after):
        return rule.nonlinear(now, after, batch)

    found = jax.jit(lambda value, slow: [flat(gradient(loss, value, slow)) for gradient in rules])(value, slow)
    return found, value, slow, loss


def test_the_forward_gradient_stays_whole():
    """Oracles 1 and 6: G is G_f and something orthogonal to it, over all parameters of both networks at once."""
    (forward, backward, *wholes), *_ = pieces(forward_gradient, backward_gradient, Orthogonal(1.0), Orthogonal(0.3))
    for eta, whole in zip((1.0, 0.3), wholes, strict=True):
        np.testing.assert_allclose(whole @ forward, forward @ forward, rtol=1e-4)
        np.testing.assert_allclose(whole - forward, eta * orthogonal_part(backward, forward), rtol=1e-4, atol=1e-6)


def test_a_small_step_lowers_the_forward_loss_as_its_own_gradient_does():
    """Oracle 6, in differences: along G_f + G_perp it falls by |G_f|^2 a unit."""
    (forward, direction), value, slow, loss = pieces(forward_gradient, Orthogonal())
    parameters, back = ravel_pytree(value)
    at = jax.jit(lambda h: loss(each(back(parameters - h * direction)), least(slow)))
    np.testing.assert_allclose((at(1e-2) - at(-1e-2)) / 2e-2, -forward @ forward, rtol=0.02)


def test_the_limits_of_the_rule():
    """Oracle 3: eta = 0 is the semi-gradient; where V- is V the two gradients add up to the true one; orthogonal ones are added as they are."""
    (semi, forward), *_ = pieces(Orthogonal(0.0), forward_gradient)
    np.testing.assert_allclose(semi, forward, atol=1e-7)

    def at_v(rule):
        return lambda loss, value, slow: rule(loss, value, value)

    (true, forward, backward), *_ = pieces(*map(at_v, (TrueGradient(), forward_gradient, backward_gradient)), **{"rule.values": 1})
    np.testing.assert_allclose(true, forward + backward, rtol=1e-4, atol=1e-6)
    to, across = jnp.array([1.0, 2.0, 0.0]), jnp.array([-2.0, 1.0, 3.0])
    np.testing.assert_allclose(to + orthogonal_part(across, to), to + across)


@pytest.mark.parametrize("name", ["odice", "odice:true_gradient"])
def test_where_v_comes_to_rest(name):
    """Oracle 5: a state that leads to itself unrewarded: (f*)'(y) = (1 - lambda) / lambda, so y = -2/3 and V = (2/3) / (1 - g) with lambda = .6.

    The backward gradient lies along the forward one there, and nothing of it is left. The true gradient has 1 - g in the place of 1:
    (f*)'(y) = (1 - lambda) / (lambda (1 - g)), so y = 2 ((2/3) / (1 - g) - 1).
    """
    changes = {"rule.value_step.learning_rate": 3e-3, "rule.tau": 0.05, "rule.values": 1, "rule.layer_norm": False}
    rule, learner, batch = rule_and_batch(name, **changes)
    same = batch.observation[0][:1] * jnp.ones((6, 1))
    loop = batch._replace(observation=(same, ()), next_observation=(same, ()), discount=jnp.full(6, 0.5), reward=jnp.zeros(6))
    learner, _ = update(rule, learner, loop, 3000)
    rest = -2 * (2 / 3 / 0.5 - 1) / 0.5 if name.endswith("true_gradient") else (2 / 3) / 0.5
    np.testing.assert_allclose(each(learner.critic)((same, ())), rest, atol=0.02)


def test_the_two_kinds_of_weights():
    """max(y, 0) and (f*)'(y), no larger than the cap, averaged over the networks."""
    y = jnp.array([-3.0, -1.0, 0.0, 2.0, 500.0])[:, None]
    density = parts.replace(DualValue(), {"policy_weights": "density"})
    np.testing.assert_allclose(DualValue().policy_weight(y), [0, 0, 0, 2, 100])
    np.testing.assert_allclose(density.policy_weight(y), [0, 0.5, 1, 2, 100])
    np.testing.assert_allclose(DualValue().policy_weight(jnp.concatenate([y, y[::-1]], axis=1)), [50, 1, 0, 1, 50])


def test_what_v_comes_from_is_f_dvl():
    """The loss is that of f-DVL with r + gamma V-(s') in the place of Q, but for the cut of phi at 0."""
    rule, learner, batch = rule_and_batch("odice")
    _, metrics = update(rule, learner, batch)
    y = backed_up(least(learner.target_critic), batch) - each(learner.critic)(batch.observation)
    wanted = 0.4 * each(learner.critic)(batch.observation).mean() + 0.6 * CHI2(y).mean()
    np.testing.assert_allclose(metrics["loss/value"], wanted, rtol=1e-5)


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(3)])
def test_one_update(space):
    """V steps along its linear term and the rule's gradient; the actor is cloned with the residuals from before; V- follows."""
    rule, learner, batch = rule_and_batch("odice", space)

    @jax.jit
    def wanted(learner):
        value, slow = learner.critic, learner.target_critic
        linear = jax.grad(lambda v: 0.4 * jnp.mean(each(v)(batch.observation)))(value)
        rest = rule.gradient(lambda now, after: rule.nonlinear(now, after, batch), value, slow)
        stepped, _ = rule.value_step.update(jax.tree.map(jnp.add, linear, rest), learner.optimisers["value"], value, 0.0)
        weight = jnp.clip(backed_up(least(slow), batch) - each(value)(batch.observation), 0, 100).mean(axis=1)

        def policy_loss(actor):
            log_prob = jax.vmap(lambda o, a: actor(o, ()).log_prob(a))(batch.observation[0], batch.action)
            return -jnp.mean(weight * log_prob) + 0.5e-4 * jnp.sum(flat(actor) ** 2)

        actor, _ = rule.actor_step.update(jax.grad(policy_loss)(learner.actor), learner.optimisers["actor"], learner.actor, 0.0)
        followed = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, slow, stepped)
        return [flat(x) for x in (stepped, actor, followed)], weight.mean()

    after, metrics = update(rule, learner, batch)
    networks, weight = wanted(learner)
    for found, network in zip((after.critic, after.actor, after.target_critic), networks, strict=True):
        np.testing.assert_allclose(flat(found), network, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["weight"], weight, rtol=1e-5)
