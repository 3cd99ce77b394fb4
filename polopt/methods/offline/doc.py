"""Dichotomy of Control: Separating What You Can Control from What You Cannot.

Mengjiao Yang, Dale Schuurmans, Pieter Abbeel, Ofir Nachum. 2022. arXiv:2210.13435

A policy that is told a good outcome takes luck for skill. Here it is told a latent of the future that says no more of rewards and next states than
history and action do; of such latents the one with the highest value keeps its promise.

x_t is the history up to s_t, tau_t that and what follows. q(z|tau) encodes the future, p(z|x) foretells the latent, V(x, z) its return R:

    min_{q, pi} E[ -log pi(a_t|x_t, z) ]    so that    MI(r_t, s_{t+1}; z | x_t, a_t) = 0
    I(omega) = E[ omega(r, s'; x, z, a) - log mean_n exp omega(r_n, s'_n; x, z, a) ],    over the rewards and next states of the minibatch
    omega = f(r, s'; x, a) + g(r, s'; x, z, a),    L_f = -I(f),    L_g = -I(f + g) with f held fixed
    L_q,pi = E[ -log pi ] + beta (I(f + g) - I(f)),    L_V = E[ (V(x, z) - R)^2 ] / 2,    L_p = E[ KL( q(z|tau) || p(z|x) ) ]
    deployed:  z_1 ... z_n ~ p(z|x),   z* = the one of the highest V,   a ~ pi(.|x, z*)

At its largest I(f) is MI(r, s'; x, a) and I(f + g) is MI(r, s'; x, z, a); their difference is to be 0. g rises on it and q falls on it; L_V and L_p
move V and p only. Both energies are inner products of embeddings. beta = 0 leaves cloning of futures, whose best promise may be luck. Of one energy
for both, as far as z repeats a, chance decides which of the two it reads; q then loses what it says of the action (seen on the claim's bandit).

Defaults: the backbone of the Decision Transformer, beta = 1 and Gaussian latents as in the released code. It moves the prior's side of L_p no further
than q's; here p is fitted to q. Our choices: 16 numbers of a latent, 100 draws of it, R divided by the largest of the log. Every step of a window is
learnt from, with what the window holds of its history and of its future.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core import spaces
from polopt.core.actions import vector_size
from polopt.core.networks import Feedforward, Torso
from polopt.core.parts import hyper, part, replace
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import STEP, ActorCritic, descend
from polopt.loops.descent import Step
from polopt.loops.windows import OfflineWindows, outcomes, uneven, vectors_only
from polopt.methods.offline.bc import one_action
from polopt.methods.offline.decision_transformer import encoded_actions
from polopt.methods.registry import composition
from polopt.objectives import values
from polopt.policies.latents import CategoricalLatent, FutureEncoder, GaussianLatent, Latent, LatentActor, LatentPolicy, Told

NOBODY = -1e30  # the energy of what is masked


def information(energy, mask):
    """I (n,) for energies (n, n) whose first index is of (x, z, a) and second of (r, s'), the diagonal being what came together; mask (n,)."""
    xp = array_namespace(energy, mask)
    there = xp.astype(mask, energy.dtype)
    others = xp.where(there[None, :] > 0, energy, xp.full_like(energy, NOBODY))
    top = xp.max(others, axis=1, keepdims=True)
    log_sum = xp.log(xp.sum(xp.exp(others - top), axis=1)) + top[:, 0]
    return there * (xp.linalg.diagonal(energy) - log_sum + xp.log(xp.clip(xp.sum(there), min=1.0)))


class Energy(eqx.Module):
    """How well an outcome goes with a cause: an inner product of two embeddings."""

    outcome: Torso
    weight: jax.Array
    cause: Told

    def __init__(self, spec: Feedforward, outcome: int, cause: int, width: int, key):
        k_outcome, k_weight, k_cause = jax.random.split(key, 3)
        self.outcome, self.cause = Torso(spec, outcome, (), k_outcome), Told(spec, cause, width, k_cause)
        # What is added to every outcome changes nothing in I: the gradient of a bias is rounding, which Adam would blow up to whole steps.
        self.weight = jax.nn.initializers.orthogonal(1.0)(k_weight, (self.outcome.features, width))

    def __call__(self, outcomes, causes):
        """(n, n) from outcomes (n, 1 + d) of reward and next state and causes (n, ...)."""
        return jax.vmap(self.cause)(causes) @ jax.vmap(lambda o: self.outcome((), o, ())[1] @ self.weight)(outcomes).T


class Energies(NamedTuple):
    """omega = known(r, s'; x, a) + told(r, s'; x, z, a)."""

    known: Energy
    told: Energy


class Beside(NamedTuple):
    """What is learnt beside the actor and not deployed, and what returns are divided by."""

    encoder: FutureEncoder
    energies: Energies
    scale: jax.Array


@part
class Controlled:
    """A policy that is told a latent, the encoder of the latent, what it foretells, and the energy that keeps luck out of it."""

    latent: Latent = GaussianLatent()
    history: int = hyper(20, at_least=1)  # steps that the policy remembers
    future: int = hyper(20, at_least=1)  # steps that are encoded of what follows, the present one among them
    width: int = hyper(128, at_least=2)  # of a token
    layers: int = hyper(3, at_least=1)  # blocks, of the history's transformer and of the future's
    heads: int = hyper(1, at_least=1)  # of attention
    network: Feedforward = Feedforward(hidden=(128,), activation="relu")
    step: Step = replace(STEP, {"learning_rate": 1e-4, "max_grad_norm": 0.25})
    beta: float = hyper(1.0, at_least=0)  # weight of what the latent says of luck
    samples: int = hyper(100, at_least=1)  # latents of which the best is acted on

    @property
    def context(self) -> int:
        """Steps of a window, in which some step has the whole of both."""
        return self.history + self.future - 1

    def refuse(self, data) -> str | None:
        return uneven(self.width, self.heads) or vectors_only(data) or one_action(data)

    def init(self, data, key) -> ActorCritic:
        k_actor, k_encoder, *k_energies = jax.random.split(key, 4)
        sizes = self.width, self.layers, self.heads
        actor = LatentActor(data.observation_space, data.action_space, self.latent, *sizes, self.network, k_actor)
        d, k = spaces.size(data.observation_space), vector_size(data.action_space)
        encoder = FutureEncoder(self.network, d + k + 1 + d, *sizes, self.latent.numbers, k_encoder)
        causes = self.width + k, self.width + k + self.latent.size
        energies = Energies(*(Energy(self.network, 1 + d, n, self.width, key) for n, key in zip(causes, k_energies)))
        scale = jnp.max(jnp.abs(outcomes(data.reward, data.ended)[0])) + 1e-6
        optimisers = {"all": self.step.init((actor, encoder, energies))}
        return ActorCritic(actor, (), (), (), Beside(encoder, energies, scale), optimisers, jnp.zeros((), jnp.int32))

    def policy(self, learner, normaliser):
        return LatentPolicy(learner.actor, normaliser, self.history, self.samples)

    def loss(self, networks, batch, scale, key):
        """(the sum of the losses, each by name), averaged over the steps that are inside their episode."""
        actor, encoder, energies = networks
        states, after, mask, actions = batch.inputs[0], batch.next_inputs[0], batch.mask, encoded_actions(actor, batch.action)
        mean = lambda x: jnp.sum(mask * x) / jnp.sum(mask)  # noqa: E731
        x = jax.vmap(actor.features)(states, actions, batch.step, mask)
        what_followed = jnp.concatenate([batch.reward[..., None], after], axis=-1)
        numbers = jax.vmap(encoder)(x, jnp.concatenate([states, actions, what_followed], axis=-1), mask)
        z = each(self.latent.draw)(numbers, jax.random.split(key, mask.shape))
        held = jax.lax.stop_gradient((x, z, numbers))

        def energy(of, *cause):
            return jax.vmap(of, in_axes=1)(what_followed, jnp.concatenate(cause, axis=-1))

        def bound(omega):
            return jnp.sum(jax.vmap(information)(omega, mask.T)) / jnp.sum(mask)

        known = energy(energies.known, held[0], actions)
        fixed, told = jax.lax.stop_gradient((known, energies.told))
        luck = bound(fixed + energy(told, held[0], z, actions)) - bound(fixed)
        losses = {
            "policy": mean(each(lambda x, z, a: -actor.distribution(x, z).log_prob(a))(x, z, batch.action)),
            "value": mean(values.squared(each(lambda x, z: actor.value(x, z)[0])(*held[:2]), batch.to_go / scale)),
            "prior": mean(each(lambda x, q: self.latent.kl(q, actor.prior(x)))(held[0], held[2])),
            "energy": -bound(known) - bound(fixed + energy(energies.told, held[0], held[1], actions)),
        }
        metrics = {f"loss/{name}": loss for name, loss in losses.items()} | {"information": luck}
        return sum(losses.values()) + self.beta * luck, metrics

    def update(self, learner, batch, progress, key):
        beside = learner.extra
        networks = learner.actor, beside.encoder, beside.energies
        (_, metrics), gradient = jax.value_and_grad(self.loss, has_aux=True)(networks, batch, beside.scale, key)
        (actor, encoder, energies), optimisers = descend(self.step, gradient, learner.optimisers, "all", networks, progress)
        return ActorCritic(actor, (), (), (), Beside(encoder, energies, beside.scale), optimisers, learner.count + 1), metrics


def each(function):
    """Over the windows of a minibatch and their steps."""
    return jax.vmap(jax.vmap(function))


@composition
def doc(task: DataTask | None = None) -> OfflineWindows:
    """Dichotomy of Control with Gaussian latents."""
    return OfflineWindows(Controlled())


@composition
def categorical(task: DataTask | None = None) -> OfflineWindows:
    """Dichotomy of Control with a few latents."""
    return OfflineWindows(Controlled(CategoricalLatent()))
