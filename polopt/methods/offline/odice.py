"""ODICE: Revealing the Mystery of Distribution Correction Estimation via Orthogonal-gradient Update.

Liyuan Mao, Haoran Xu, Weinan Zhang, Xianyuan Zhan. 2024. arXiv:2402.00348

The dual loss of V has a gradient through V(s), forward, and one through V(s'), backward, which nearly cancel. Here the backward one is projected
onto what is orthogonal to the forward one: this is untouched, and what is left of the other keeps the values of consecutive states apart.

    min_V    E_D[ (1 - lambda) V(s) + lambda f*(r + gamma (1 - term) V(s') - V(s)) ],   f* one-sided; chi^2: max(y + 2, 0)^2 / 4 - 1
    y_i      = r + gamma (1 - term) V-(s') - V_i(s),      G_f = grad lambda E[ f*(y_i) ]
    y'_i     = r + gamma (1 - term) V_i(s') - V-(s),      G_b = eta grad lambda E[ f*(y'_i) ]
    step     along grad (1 - lambda) E[ V_i(s) ] + G_f + G_b - <G_f, G_b> / <G_f, G_f> G_f,   then V- takes a share tau of V
    L_pi     = -E_D[ w log pi(a|s) ],   w = mean_i min( max(y_i, 0), c ), held fixed

V- is the smaller of two slow copies, the means are over both V_i as well, and the inner products run over all parameters of both at once, as in the
authors' code. So does w; `policy_weights=density` takes the paper's ratio of visits (f*)'(y), max(y / 2 + 1, 0), instead. A projection by layers, or
one that the linear term enters, would be another method. All variants weigh by the same y (our choice: the authors' true gradient has no slow copy).

How large a residual is depends on the rewards: the authors scale them so that returns span 1000 (`rewards.span`); in mazes -3 a step and 0 at the
goal, no layer normalisation, in the largest one V. lambda was chosen per task from .4 to .8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace
from jax.flatten_util import ravel_pytree

from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.critics.action_value import polyak
from polopt.critics.normed import NormedValue
from polopt.critics.value import ValueNetwork
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, descend
from polopt.loops.descent import Step
from polopt.loops.offline import Offline
from polopt.methods.offline.bc import cloning_loss, one_action
from polopt.methods.offline.dual_rl import dual_value_loss
from polopt.methods.offline.iql import value_of
from polopt.methods.registry import composition
from polopt.objectives.divergences import F_DIVERGENCES
from polopt.policies.cloned import ClonedActor, ClonedPolicy


def orthogonal_part(vector, to):
    """vector - <to, vector> / <to, to> to, for vectors (n,); as it is where `to` is nothing."""
    xp = array_namespace(vector, to)
    return vector - xp.sum(to * vector) / xp.clip(xp.sum(to * to), min=1e-10) * to


def each(networks) -> Callable:
    """V_i as a function of network inputs with a leading axis: (n, networks)."""
    return lambda inputs: jnp.stack([value_of(network, inputs) for network in networks], axis=1)


def least(networks) -> Callable:
    """The smallest V_i likewise: (n, 1)."""
    return lambda inputs: jnp.min(each(networks)(inputs), axis=1, keepdims=True)


def backed_up(after, batch):
    """r + gamma (1 - term) V(s'), (n, networks), with V(s') by a function of inputs."""
    return batch.reward[:, None] + batch.discount[:, None] * after(batch.next_observation)


def forward_gradient(loss, value, slow):
    """G_f."""
    return jax.grad(lambda value: loss(each(value), least(slow)))(value)


def backward_gradient(loss, value, slow):
    """G_b with eta = 1."""
    return jax.grad(lambda value: loss(least(slow), each(value)))(value)


class GradientRule(Protocol):
    """The gradient of the nonlinear term in the networks `value`. `loss(now, after)` is that term, V(s) and V(s') by these functions."""

    def __call__(self, loss, value, slow): ...


@part
class Orthogonal:
    """The forward gradient, and what of the backward one is orthogonal to it."""

    eta: float = hyper(1.0, at_least=0)  # weight of the backward gradient; 0 leaves the semi-gradient

    def __call__(self, loss, value, slow):
        forward, back = ravel_pytree(forward_gradient(loss, value, slow))
        backward = ravel_pytree(backward_gradient(loss, value, slow))[0]
        return back(forward + orthogonal_part(self.eta * backward, forward))


@part
class TrueGradient:
    """The gradient through both values of one residual, which no slow copy enters."""

    def __call__(self, loss, value, slow):
        return jax.grad(lambda value: loss(each(value), each(value)))(value)


@part
class DualValue:
    """V by the dual of a divergence from the log's visits, and an actor that is cloned with what this says of each pair."""

    gradient: GradientRule = Orthogonal()
    divergence: str = hyper("chi2", choices=("chi2", "reverse_kl"))  # f
    actor_network: Feedforward = replace(NETWORK, {"hidden": (1024, 1024)})
    value_network: Feedforward = NETWORK
    actor_step: Step = replace(STEP, {"learning_rate": 2e-4})
    value_step: Step = replace(STEP, {"learning_rate": 2e-4})
    layer_norm: bool = True  # layer normalisation inside V
    values: int = hyper(2, at_least=1)  # networks V_i
    weight: float = hyper(0.6, above=0, below=1)  # lambda: of the residuals against V itself
    policy_weights: str = hyper("residual", choices=("residual", "density"))  # w: max(y, 0), or the ratio of visits (f*)'(y)
    cap: float = hyper(100.0, above=0)  # c: the largest w
    actor_decay: float = hyper(1e-4, at_least=0)  # weight of half the squared length of the actor's parameters in its loss
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    tau: float = hyper(0.005, above=0, at_most=1)  # share of V that its slow copy takes in an update

    def refuse(self, env) -> str | None:
        return one_action(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_value = jax.random.split(key)
        actor = ClonedActor(self.actor_network, env.observation_space, env.action_space, k_actor)
        kind = NormedValue if self.layer_norm else ValueNetwork
        value = tuple(kind(self.value_network, env.observation_space, k) for k in jax.random.split(k_value, self.values))
        optimisers = {"actor": self.actor_step.init(actor), "value": self.value_step.init(value)}
        return ActorCritic(actor, value, (), value, (), optimisers, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return learner.actor(*inputs).sample(key)

    def policy(self, learner, normaliser):
        return ClonedPolicy(learner.actor, normaliser)

    def conjugate(self, residual):
        """f*."""
        return F_DIVERGENCES[self.divergence].conjugate(residual)

    def nonlinear(self, now, after, batch):
        """lambda E[ f*(y) ], V(s) and V(s') by functions of inputs."""
        y = backed_up(after, batch) - now(batch.observation)
        return self.weight * jnp.mean(batch.weight[:, None] * self.conjugate(y))

    def value_gradient(self, value, slow, batch):
        """What the networks V_i step along."""
        linear = jax.grad(lambda v: (1 - self.weight) * jnp.mean(batch.weight[:, None] * each(v)(batch.observation)))(value)
        return jax.tree.map(jnp.add, linear, self.gradient(lambda now, after: self.nonlinear(now, after, batch), value, slow))

    def policy_weight(self, residual):
        """w (n,) from residuals (n, networks)."""
        if self.policy_weights == "density":
            residual = jax.grad(lambda y: jnp.sum(self.conjugate(y)))(residual)
        return jnp.mean(jnp.clip(residual, 0, self.cap), axis=1)

    def policy_loss(self, actor, batch, weight):
        return cloning_loss(actor, batch, weight) + 0.5 * self.actor_decay * sum(jnp.sum(x**2) for x in jax.tree.leaves(actor))

    def update(self, learner, batch, progress, key):
        value, slow = learner.critic, learner.target_critic
        seen, target = each(value)(batch.observation), backed_up(least(slow), batch)
        loss = jnp.mean(batch.weight[:, None] * dual_value_loss(seen, target, self.weight, self.conjugate))
        gradient = self.value_gradient(value, slow, batch)
        value, optimisers = descend(self.value_step, gradient, learner.optimisers, "value", value, progress)

        weight = self.policy_weight(target - seen)
        policy_loss, gradient = jax.value_and_grad(self.policy_loss)(learner.actor, batch, batch.weight * weight)
        actor, optimisers = descend(self.actor_step, gradient, optimisers, "actor", learner.actor, progress)
        learner = ActorCritic(actor, value, (), polyak(slow, value, self.tau), (), optimisers, learner.count + 1)
        metrics = {"loss/value": loss, "loss/policy": policy_loss, "value": jnp.mean(seen), "weight": jnp.mean(weight)}
        return learner, jnp.mean(target - seen, axis=1), metrics


@composition
def odice(task: DataTask | None = None) -> Offline:
    """ODICE with the sizes of the authors' code."""
    return Offline(DualValue())


@composition
def true_gradient(task: DataTask | None = None) -> Offline:
    """The same with the gradient of one residual."""
    return Offline(DualValue(TrueGradient()))
