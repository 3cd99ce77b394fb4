"""GORL: the hypergradient by hand, by its identity and by differences; what a constant guide leaves; where the expert's pairs come from."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from polopt.core.networks import Feedforward
from polopt.core.parts import replace
from polopt.data import files
from polopt.data.dataset import DataTask
from polopt.methods.offline.gorl_guided import Guidance, GuideNetwork, gorl_guided, guide_loss, terms, weights
from polopt.methods.offline.td3_bc import ClimbNear, distance, td3_bc
from tests.methods.offline.helpers import logged, rule_and_batch

CAP = 10.0


class Scalar(eqx.Module):
    """pi = theta, whatever the state."""

    theta: jax.Array

    def __call__(self, vector, pictures):
        return self.theta[None]


class Constant(eqx.Module):
    """A guide whose output is one number for each sample, whatever its losses: its gradient is that in the samples' weights."""

    output: jax.Array

    def __call__(self, losses):
        return self.output


def output_of(weight):
    """The guide's output that makes a weight."""
    return jnp.log(weight / (CAP - weight)) + jnp.log(CAP - 1)


def small(**changes):
    sizes = {"actor_network.hidden": (8,), "host.critic_network.hidden": (8,), "guide_network.hidden": (8,), "batch_size": 8, "guides": 4}
    return replace(gorl_guided(None), {**sizes, "updates": 4, **changes})


def test_a_step_by_hand():
    """Oracle 5: theta = 0, l_con = (theta - 1)^2, expert at 1, beta = .1, w = 1: theta' = .2, L_G = .64 and dL_G / dw = -.32."""
    actor, guidance = Scalar(jnp.float32(0.0)), Guidance((), (jnp.zeros((1, 1)), ()), jnp.ones((1, 1)))
    losses = lambda actor: (jnp.zeros(1), (actor.theta - 1)[None] ** 2)  # noqa: E731
    loss = lambda w: guide_loss(Constant(output_of(w)), actor, losses, guidance, 0.1, CAP)  # noqa: E731
    np.testing.assert_allclose(loss(jnp.float32(1.0)), 0.64, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(1.0)), -0.32, rtol=1e-4)


def problem():
    """(actor, losses, guidance): six samples, a small network and three expert pairs."""
    rule, learner, batch = rule_and_batch("td3_bc")
    action = lambda actor: jax.vmap(actor)(*batch.observation)  # noqa: E731
    first = learner.critic.members[0]
    critic = lambda a: jax.vmap(first)(*batch.observation, a)  # noqa: E731
    keys = jax.random.split(jax.random.key(3))
    guidance = Guidance((), (jax.random.normal(keys[0], (3, 2)), ()), jax.random.uniform(keys[1], (3, 1)))
    return learner.actor, lambda actor: terms(rule.objective, critic, action(actor), batch), guidance


class PerSample(eqx.Module):
    """The output of each sample by the value of its constraint loss, looked up."""

    keys: jax.Array
    output: jax.Array

    def __call__(self, losses):
        return jnp.sum(jnp.where(self.keys == losses[1], self.output, 0.0))


def hypergradient(actor, losses, guidance, outputs, rate=0.05):
    constraint = losses(actor)[1]
    loss = jax.jit(lambda outputs: guide_loss(PerSample(constraint, outputs), actor, losses, guidance, rate, CAP))
    return loss, jax.jit(jax.grad(loss))(outputs)


def test_the_hypergradient_is_its_identity():
    """Oracle 1: dL_G / dw_i = -(beta / n) < grad L_G(theta'), grad l_con,i(theta) >, and so say differences."""
    actor, losses, guidance = problem()
    outputs = jnp.linspace(-1.0, 1.0, 6)
    loss, found = hypergradient(actor, losses, guidance, outputs)
    weight, slope = jax.jvp(lambda o: CAP * jax.nn.sigmoid(o - jnp.log(CAP - 1)), (outputs,), (jnp.ones(6),))
    trial = lambda actor: jnp.mean(losses(actor)[0] + weight * losses(actor)[1])  # noqa: E731
    moved = jax.tree.map(lambda p, g: p - 0.05 * g, actor, jax.jit(jax.grad(trial))(actor))
    outer = jax.jit(jax.grad(lambda actor: jnp.mean(distance(jax.vmap(actor)(*guidance.inputs), guidance.action))))(moved)
    inner = jax.jit(jax.jacobian(lambda actor: losses(actor)[1]))(actor)
    along = sum(jnp.tensordot(i, o, o.ndim) for i, o in zip(jax.tree.leaves(inner), jax.tree.leaves(outer)))
    np.testing.assert_allclose(found, -0.05 / 6 * along * slope, rtol=1e-3, atol=1e-7)
    for i in (0, 3):
        step = 0.5 * jax.nn.one_hot(i, 6)
        np.testing.assert_allclose(found[i], loss(outputs + step) - loss(outputs - step), rtol=0.1, atol=2e-7)


def test_what_the_expert_does_not_care_for_keeps_its_weight():
    """Oracles 2 and 4: no gradient for a sample whose constraint is at its minimum, and none at all where the expert's pairs are met."""
    actor, losses, guidance = problem()
    flat = lambda actor: (losses(actor)[0], losses(actor)[1] * jnp.array([0.0, 1, 1, 1, 1, 1]))  # noqa: E731
    assert hypergradient(actor, flat, guidance, jnp.zeros(6))[1][0] == 0.0
    still = lambda actor: tuple(jnp.arange(1.0, 7.0) * 0 + jax.lax.stop_gradient(x) for x in losses(actor))  # noqa: E731
    met = dataclasses.replace(guidance, action=jax.vmap(actor)(*guidance.inputs))
    np.testing.assert_array_equal(hypergradient(actor, still, met, jnp.zeros(6))[1], 0.0)


def test_weights_begin_at_the_hosts_and_stay_below_the_cap():
    network = GuideNetwork(Feedforward(hidden=(8,), activation="relu"), jax.random.key(0))
    np.testing.assert_allclose(weights(network, jnp.linspace(-2, 2, 5), jnp.linspace(0, 4, 5), CAP), 1.0, atol=0.1)
    for output, weight in ((-50.0, 0.0), (0.0, 1.0), (50.0, CAP)):
        np.testing.assert_allclose(weights(Constant(jnp.float32(output)), jnp.zeros(1), jnp.zeros(1), CAP), [weight], atol=1e-5)


def test_the_terms_are_td3_bcs():
    _, _, batch = rule_and_batch("td3_bc")
    action, critic = jax.random.uniform(jax.random.key(0), (6, 1)), lambda a: 3.0 * a[:, 0] + 1.0
    improvement, constraint = terms(ClimbNear(), critic, action, batch)
    np.testing.assert_allclose(jnp.mean(improvement + constraint), ClimbNear()(critic, action, batch), rtol=1e-5)


def test_a_constant_guide_leaves_the_host():
    """Oracle 3: with the weight 2 for all the actor is that of TD3+BC with half of alpha, as Adam sees no scale."""
    data = logged()
    task = DataTask(data, 8)
    method = small(**{"guide_step.learning_rate": 1e-30})
    weight = 2.0
    state = method.init(task, jax.random.key(0))
    head = lambda s: (s.learner.extra.network.head.weight, s.learner.extra.network.head.bias)  # noqa: E731
    state = eqx.tree_at(head, state, (0 * head(state)[0], output_of(jnp.full((1,), weight))))
    sizes = {"actor_network.hidden": (8,), "critic_network.hidden": (8,), "batch_size": 8, "updates": 4, "alpha": 2.5 / weight}
    host = replace(td3_bc(None), sizes)
    plain = dataclasses.replace(state, learner=dataclasses.replace(state.learner, extra=()))
    guided, alone = method.step(task, state)[0], host.step(task, plain)[0]
    for x, y in zip(jax.tree.leaves(guided.learner.actor), jax.tree.leaves(alone.learner.actor)):
        np.testing.assert_allclose(x, y, atol=2e-5)


def test_the_experts_pairs():
    """Those of the best episodes, or a file's, in the log's units."""
    data = logged()
    task = DataTask(data, 8)
    returns = np.add.reduceat(np.asarray(data.reward), [0, 5])
    best = slice(0, 5) if returns[0] > returns[1] else slice(5, 12)
    guidance = small().init(task, jax.random.key(0)).learner.extra
    np.testing.assert_allclose(guidance.action, data.action[best][:4] / 2, rtol=1e-5)
    normalised = (data.observation[best][:4] - data.observation.mean(0)[None]) / (data.observation.std(0) + 1e-3)[None]
    np.testing.assert_allclose(guidance.inputs[0], normalised, rtol=1e-3)


def test_a_file_of_pairs_guides(tmp_path):
    data = logged()
    expert = dataclasses.replace(data, action=np.full((12, 1), 1.0, np.float32))
    place = str(files.write(jax.tree.map(np.asarray, expert), tmp_path / "expert.npz"))
    task, method = DataTask(data, 8), small(guide=place)
    assert method.refuse(task) is None
    np.testing.assert_allclose(method.init(task, jax.random.key(0)).learner.extra.action, 0.5)
    assert len(replace(method, {"guides": 13}).init(task, jax.random.key(0)).learner.extra.action) == 12  # all that there are
