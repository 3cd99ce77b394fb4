"""Policies that are told a latent of what is to come, and which latents there are to be told."""

from __future__ import annotations

from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import vector_size
from polopt.core.attention import Transformer, waves
from polopt.core.networks import Feedforward, Linear, Torso
from polopt.core.parts import hyper, part
from polopt.objectives.divergences import categorical_kl, gaussian_kl
from polopt.policies.cloned import LOG_STD, cloned
from polopt.policies.deployed import taken
from polopt.policies.histories import HistoryPolicy, tokens


class Latent(Protocol):
    """A family of distributions over latents z (size,), each given by some numbers."""

    size: int

    @property
    def numbers(self) -> int:
        """How many numbers say which distribution."""
        ...

    def draw(self, numbers, key) -> jax.Array:
        """z, with a gradient in the numbers."""
        ...

    def kl(self, first, second) -> jax.Array:
        """KL(first || second) from the numbers of both."""
        ...


@part
class GaussianLatent:
    """A diagonal Gaussian."""

    size: int = hyper(16, at_least=1)  # numbers of a latent

    @property
    def numbers(self) -> int:
        return 2 * self.size

    def _parts(self, numbers):
        mean, log_std = jnp.split(numbers, 2)
        return mean, jnp.clip(log_std, *LOG_STD)

    def draw(self, numbers, key):
        mean, log_std = self._parts(numbers)
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

    def kl(self, first, second):
        return gaussian_kl(*self._parts(first), *self._parts(second))


@part
class CategoricalLatent:
    """One of `size`, as a vector with a one; the gradient is that of the probabilities (straight through)."""

    size: int = hyper(4, at_least=2)  # latents

    @property
    def numbers(self) -> int:
        return self.size

    def draw(self, numbers, key):
        chance = jax.nn.softmax(numbers)
        chosen = jax.nn.one_hot(jax.random.categorical(key, numbers), self.size)
        return chosen + chance - jax.lax.stop_gradient(chance)

    def kl(self, first, second):
        log_p, log_q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
        return categorical_kl(log_p, log_q)


class Told(eqx.Module):
    """A network of what is known and, where there is one, a latent: one hidden stack and a head."""

    torso: Torso
    head: Linear

    def __init__(self, spec: Feedforward, inputs: int, outputs: int, key, gain: float = 1.0):
        k_torso, k_head = jax.random.split(key)
        self.torso = Torso(spec, inputs, (), k_torso)
        self.head = Linear(self.torso.features, outputs, k_head, gain=gain)

    def __call__(self, *vectors):
        return self.head(self.torso((), jnp.concatenate(vectors), ())[1])


class LatentActor(eqx.Module):
    """pi(a|x, z), V(x, z) and p(z|x) over features x of a history: a causal transformer over each state with the action before it.

    Of a box a Gaussian with tanh on its mean and a deviation that nothing changes, else the space's categorical.
    """

    embed: Linear
    clock: Linear
    network: Transformer
    act: Told
    value: Told
    prior: Told
    log_std: jax.Array | None
    latent: Latent
    action_space: spaces.Space = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(self, observation_space, action_space, latent: Latent, width: int, layers: int, heads: int, spec: Feedforward, key):
        keys = jax.random.split(key, 6)
        numbers = vector_size(action_space)
        self.embed, self.clock = Linear(spaces.size(observation_space) + numbers, width, keys[0], 1.0), Linear(width, width, keys[1], 0.2)
        self.network = Transformer(width, layers, heads, keys[2])
        self.act, self.value = Told(spec, width + latent.size, numbers, keys[3], 0.01), Told(spec, width + latent.size, 1, keys[4])
        self.prior = Told(spec, width, latent.numbers, keys[5], 0.01)
        self.log_std = jnp.zeros(action_space.shape) if isinstance(action_space, spaces.Box) else None
        self.latent, self.action_space, self.width = latent, action_space, width

    def features(self, states, actions, step, mask):
        """x (K, width) of each step of a window: states (K, d), encoded actions (K, k), steps (K,), mask (K,). No action is seen at its own step."""
        clock = jax.vmap(lambda t: self.clock(waves(t, self.width)))(step)
        return self.network(jax.vmap(self.embed)(tokens(states, actions, mask)) + clock, mask)

    def distribution(self, x, z):
        return cloned(self.action_space, self.act(x, z), self.log_std)


class FutureEncoder(eqx.Module):
    """The numbers of q(z|tau) at each step, from the features of its history and a transformer over what follows."""

    embed: Linear
    network: Transformer
    head: Told

    def __init__(self, spec: Feedforward, inputs: int, width: int, layers: int, heads: int, numbers: int, key):
        keys = jax.random.split(key, 3)
        self.embed, self.network = Linear(inputs, width, keys[0], 1.0), Transformer(width, layers, heads, keys[1])
        self.head = Told(spec, 2 * width, numbers, keys[2])

    def __call__(self, x, rows, mask):
        """(K, numbers) from features (K, width), the rows (K, inputs) of state, action, reward and next state, and mask (K,)."""
        future = self.network(jax.vmap(self.embed)(rows)[::-1], mask[::-1])[::-1]
        return jax.vmap(self.head)(x, future)


class LatentPolicy(HistoryPolicy):
    """A deployed actor that draws latents from its prior and acts on the one of the highest value.

    Without a key the latents are those of a fixed one.
    """

    actor: LatentActor
    samples: int = eqx.field(static=True)

    def chosen(self, x, key):
        """(z, V(x, z)) of the best of the latents."""
        prior = self.actor.prior(x)
        z = jax.vmap(lambda k: self.actor.latent.draw(prior, k))(jax.random.split(key, self.samples))
        value = jax.vmap(lambda z: self.actor.value(x, z)[0])(z)
        best = jnp.argmax(value)
        return z[best], value[best]

    def act(self, carry, observation, key=None):
        history = self.history(carry, observation)
        x = self.actor.features(history.vectors, history.actions, jnp.maximum(history.step, 0), history.mask)[-1]
        k_latent, k_action = (jax.random.key(0), None) if key is None else jax.random.split(key)
        drawn, action = taken(self.action_space, self.actor.distribution(x, self.chosen(x, k_latent)[0]), k_action)
        return self.after(history, drawn), action
