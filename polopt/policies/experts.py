"""Mixtures of experts: actors that weigh several distributions of the action in every state."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import encoded, encoded_space
from polopt.core.networks import Feedforward, Linear, Torso
from polopt.policies.actor import Actor
from polopt.policies.distributions import Categorical, SquashedGaussian
from polopt.policies.unit import LOG_STD


class Mixture(eqx.Module):
    """sum_k w_k p_k with w = softmax(logits); `experts` is a distribution with a leading axis of K.

    `entropy` and `kl` are those of expert and action together, which are upper bounds of the mixture's own.
    """

    logits: jax.Array
    experts: Any

    @property
    def weights(self):
        return jax.nn.softmax(self.logits)

    def sample_each(self, key):
        """A raw draw of every expert, (K, ...). A single one draws as it does alone."""
        count = self.logits.shape[0]
        return jax.vmap(lambda expert, k: expert.sample(k))(self.experts, jax.random.split(key, count) if count > 1 else key[None])

    def log_prob_each(self, raw):
        """log p_k of the k-th of the raw draws (K, ...), as (K,)."""
        return jax.vmap(lambda expert, r: expert.log_prob(r))(self.experts, raw)

    def action_each(self, raw):
        return jax.vmap(lambda expert, r: expert.action(r))(self.experts, raw)

    def sample(self, key):
        if self.logits.ndim > 1:  # of many states at once
            return jax.vmap(lambda mixture, k: mixture.sample(k))(self, jax.random.split(key, self.logits.shape[0]))
        k_which, k_draw = jax.random.split(key)
        which = jax.random.categorical(k_which, self.logits)
        return self._chosen(which).sample(k_draw)

    def mode(self):
        """The most likely draw of the expert of the largest weight."""
        return self._chosen(jnp.argmax(self.logits)).mode()

    def log_prob(self, raw):
        each = jax.vmap(lambda expert: expert.log_prob(raw))(self.experts)
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + each)

    def entropy(self):
        return Categorical(self.logits).entropy() + self.weights @ jax.vmap(lambda expert: expert.entropy())(self.experts)

    def kl(self, other):
        each = jax.vmap(lambda p, q: p.kl(q))(self.experts, other.experts)
        return Categorical(self.logits).kl(Categorical(other.logits)) + self.weights @ each

    def action(self, raw):
        return self._chosen(0).action(raw)

    def _chosen(self, which):
        return jax.tree.map(lambda x: x[which], self.experts)


class UnitExperts(eqx.Module):
    """Maps (vector, images) to a mixture of K Gaussians sent through tanh; means, deviations and weights from one torso.

    spread, log_std: the experts start at means drawn from N(0, spread^2), before tanh, and at this log deviation, the same in every state.
    """

    torso: Torso
    head: Linear
    gate: Linear
    action_space: spaces.Box = eqx.field(static=True)
    count: int = eqx.field(static=True)

    def __init__(self, spec: Feedforward, observation_space, action_space, count: int, spread, log_std, key):
        k_torso, k_head, k_gate, k_spread = jax.random.split(key, 4)
        pictures = tuple(image.shape for image in spaces.images(observation_space))
        self.torso = Torso(spec, spaces.size(observation_space), pictures, k_torso)
        numbers = count * math.prod(action_space.shape)
        head = Linear(self.torso.features, 2 * numbers, k_head, gain=0.01)
        start = jnp.concatenate([spread * jax.random.normal(k_spread, (numbers,)), jnp.full((numbers,), log_std)])
        self.head = eqx.tree_at(lambda h: h.bias, head, start)
        self.gate = Linear(self.torso.features, count, k_gate, gain=0.01)
        self.action_space, self.count = action_space, count

    def __call__(self, vector, pictures) -> Mixture:
        _, x = self.torso((), vector, pictures)
        mean, log_std = (y.reshape(self.count, *self.action_space.shape) for y in jnp.split(self.head(x), 2))
        experts = jax.vmap(lambda m, s: SquashedGaussian(m, s, jnp.float32(-1), jnp.float32(1)))(mean, jnp.clip(log_std, *LOG_STD))
        return Mixture(self.gate(x), experts)

    def draw(self, vector, pictures, key=None):
        """A unit action, the mean of the expert of the largest weight through tanh without a key."""
        mixture = self(vector, pictures)
        return mixture.action(mixture.mode() if key is None else mixture.sample(key))


class ExpertsActor(eqx.Module):
    """K heads on the torso of an actor for any action space, weights from the same features, and a value of single actions beside them.

    spread: standard deviation of what is added to the biases of the heads, so that the experts start apart.
    """

    actor: Actor
    heads: tuple[Linear, ...]
    log_std: jax.Array | None
    gate: Linear
    judge: Torso
    judge_head: Linear

    def __init__(self, actor: Actor, count: int, spread, judge: Feedforward, key):
        k_heads, k_gate, k_spread, k_judge, k_last = jax.random.split(key, 5)
        outputs = actor.head.bias.shape[0]
        heads = [Linear(actor.torso.features, outputs, k, gain=0.01) for k in jax.random.split(k_heads, count)]
        bias = spread * jax.random.normal(k_spread, (count, outputs))
        self.heads = tuple(eqx.tree_at(lambda h: h.bias, head, b) for head, b in zip(heads, bias))
        self.log_std = None if actor.log_std is None else jnp.broadcast_to(actor.log_std, (count, *actor.log_std.shape))
        self.actor = eqx.tree_at(lambda a: (a.head, a.log_std), actor, (None, None), is_leaf=lambda x: x is None)
        self.gate = Linear(actor.torso.features, count, k_gate, gain=0.01)
        actions = math.prod(encoded_space(actor.action_space).shape)
        self.judge = Torso(judge, actor.torso.features + actions, (), k_judge)
        self.judge_head = Linear(self.judge.features, 1, k_last, gain=1.0)

    @property
    def torso(self):
        return self.actor.torso

    @property
    def action_space(self):
        return self.actor.action_space

    def __call__(self, carry, vector, pictures):
        """(carry, input) to (carry, mixture)."""
        carry, x = self.torso(carry, vector, pictures)
        return carry, self.mixture(x)

    def mixture(self, features) -> Mixture:
        deviations = [None] * len(self.heads) if self.log_std is None else self.log_std
        made = [self._expert(head, deviation).distribution(features) for head, deviation in zip(self.heads, deviations)]
        return Mixture(self.gate(features), jax.tree.map(lambda *x: jnp.stack(x), *made))

    def value(self, features, action):
        """Q of an action of the environment, from the torso's features as constants."""
        numbers = jnp.ravel(encoded(self.action_space, action)).astype(features.dtype)
        x = jnp.concatenate([jax.lax.stop_gradient(features), numbers])
        return self.judge_head(self.judge((), x, ())[1])[0]

    def _expert(self, head, log_std) -> Actor:
        return eqx.tree_at(lambda a: (a.head, a.log_std), self.actor, (head, log_std), is_leaf=lambda x: x is None)


class Shown(eqx.Module):
    """An actor of experts that gives its torso's features too."""

    actor: ExpertsActor

    @property
    def torso(self):
        return self.actor.torso

    def __call__(self, carry, vector, pictures):
        carry, x = self.torso(carry, vector, pictures)
        return carry, (x, self.actor.mixture(x))
