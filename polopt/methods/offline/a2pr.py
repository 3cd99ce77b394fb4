"""Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning.

Tenglong Liu, Yang Li, Yixing Lan, Hao Gao, Wei Pan, Xin Xu. 2024. arXiv:2405.19909

An autoencoder learns only those logged actions that are better than the state's value, which gives a better model of who made the log. The actor is
pulled to that model's action or to the logged one, whichever has the higher advantage, and only where that is not negative.

With TD3+BC's critics, their targets y, and the noisy a' of these:

    L_V    = E_D[ (V(s) - t)^2 ],   t = min( y, r + gamma (1 - term) min_i Q_i(s', a') )
    L_VAE  = w E_D[ 1[Q_1(s, a) > V(s)] (a^ - a)^2 ] + KL( e(z|s, a) || N(0, 1) ) / 2,   a^ = D(s, z), z ~ e(z|s, a); both averaged over entries
    L_pi   = -lambda E_D[ Q_1(s, pi(s)) ] + E_D[ c (pi(s) - a*)^2 ],   lambda = alpha / E_D[ |Q_1(s, pi(s))| ], held fixed
    a-     = D(s, z), z ~ e(z|s, pi(s));   a* = a- where Q_1(s, a-) >= Q_1(s, a), else a
    c      = 1 where the advantage Q_1 - V of a- is at least 0, or that of a above 0; else 0

Our choices: a- is held fixed in L_pi (in the authors' code a gradient reaches the actor through it), and within an update the actor moves just
before V and the autoencoder rather than just after. Defaults: the authors', where alpha and w were chosen for each task.
"""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.critics.value import ValueNetwork
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, Hosted, descend
from polopt.loops.descent import Step
from polopt.loops.offline import Offline
from polopt.methods.actor_critic.ddpg import Deterministic
from polopt.methods.actor_critic.td3 import Smoothed
from polopt.methods.offline.iql import value_of
from polopt.methods.offline.td3_bc import ClimbNear, distance
from polopt.methods.registry import composition
from polopt.objectives.divergences import gaussian_kl
from polopt.policies.autoencoder import ActionAutoencoder


def selected(logged, rebuilt, of_logged, of_rebuilt):
    """(action to be pulled to, 1 or 0 whether at all) from both actions (n, ...) and their advantages (n,)."""
    xp = array_namespace(of_logged, of_rebuilt)
    better = of_rebuilt >= of_logged
    wide = xp.reshape(better, (better.shape[0], *(1,) * (len(logged.shape) - 1)))
    return xp.where(wide, rebuilt, logged), xp.astype((of_rebuilt >= 0) | (of_logged > 0), of_logged.dtype)


def value_error(value, batch, target):
    """L_V for targets t (n,)."""
    return jnp.mean(batch.weight * (value_of(value, batch.observation) - target) ** 2)


def rebuilding_loss(model, batch, mask, weight, key):
    """L_VAE of an autoencoder, with the mask (n,) of the rows to be rebuilt."""
    rebuilt, mean, log_std = jax.vmap(model.rebuilt)(*batch.observation, batch.action, jax.random.split(key, mask.shape[0]))
    divergence = gaussian_kl(mean, log_std, jnp.zeros_like(mean), jnp.zeros_like(mean)) / mean.shape[1]
    return weight * jnp.mean(mask * distance(rebuilt, batch.action)) + 0.5 * jnp.mean(divergence)


class Judges(eqx.Module):
    """V, and the model of the better logged actions."""

    value: ValueNetwork
    model: ActionAutoencoder


class Selected(eqx.Module):
    """`Better` with V(s) (n,) and the model."""

    value: jax.Array
    model: ActionAutoencoder
    key: jax.Array

    def __call__(self, critic, action, batch):
        rebuilt = jax.vmap(self.model.rebuilt)(*batch.observation, action, jax.random.split(self.key, self.value.shape[0]))[0]
        of_logged, of_rebuilt = (critic(a) - self.value for a in (batch.action, rebuilt))
        return jax.lax.stop_gradient(selected(batch.action, rebuilt, of_logged, of_rebuilt))


@part
class Better:
    """The better of the logged and the model's action, where its advantage is not negative."""

    def by(self, judges: Judges, batch, key) -> Selected:
        return Selected(value_of(judges.value, batch.observation), judges.model, key)


@part
class AdvantageGuided(Hosted):
    """TD3+BC whose actor is pulled to the better of the logged action and that of a model of the better logged actions."""

    host: Deterministic = Deterministic(Smoothed(), ClimbNear(Better()), critic_step=STEP, critics=2, delay=2)
    value_network: Feedforward = NETWORK
    model_network: Feedforward = replace(NETWORK, {"hidden": (750, 750)})
    value_step: Step = STEP
    model_step: Step = replace(STEP, {"learning_rate": 1e-3})
    rebuilding: float = hyper(1.0, above=0)  # w: weight of the rebuilt actions against their codes

    def init(self, env, key) -> ActorCritic:
        k_host, k_value, k_model = jax.random.split(key, 3)
        value = ValueNetwork(self.value_network, env.observation_space, k_value)
        model = ActionAutoencoder(self.model_network, env.observation_space, env.action_space, k_model)
        learner = self.host.init(env, k_host)
        optimisers = {**learner.optimisers, "value": self.value_step.init(value), "model": self.model_step.init(model)}
        return dataclasses.replace(learner, extra=Judges(value, model), optimisers=optimisers)

    def update(self, learner, batch, progress, key):
        k_host, k_actor, k_model = jax.random.split(key, 3)
        judges = learner.extra
        objective = self.host.objective
        objective = dataclasses.replace(objective, anchor=objective.anchor.by(judges, batch, k_actor))
        host = dataclasses.replace(self.host, objective=objective)
        after, error, metrics = host.update(learner, batch, progress, k_host)

        # the host's targets once more, by the same noise, and those of its new critics
        slow, online = (self.host.target(dataclasses.replace(learner, target_critic=c), batch, k_host) for c in (learner.target_critic, after.critic))
        value_loss, gradient = jax.value_and_grad(value_error)(judges.value, batch, jnp.minimum(slow, online))
        value, optimisers = descend(self.value_step, gradient, after.optimisers, "value", judges.value, progress)

        mask = (jax.vmap(after.critic.members[0])(*batch.observation, batch.action) > value_of(value, batch.observation)).astype(jnp.float32)
        model_loss, gradient = jax.value_and_grad(rebuilding_loss)(judges.model, batch, mask, self.rebuilding, k_model)
        model, optimisers = descend(self.model_step, gradient, optimisers, "model", judges.model, progress)
        metrics |= {"loss/value": value_loss, "loss/model": model_loss, "better": jnp.mean(mask)}
        return dataclasses.replace(after, extra=Judges(value, model), optimisers=optimisers), error, metrics


@composition
def a2pr(task: DataTask | None = None) -> Offline:
    """A2PR."""
    return Offline(AdvantageGuided(), normalise_observations=True)
