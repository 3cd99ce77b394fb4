"""Offline Reinforcement Learning with Implicit Q-Learning.

Ilya Kostrikov, Ashvin Nair, Sergey Levine. 2021. arXiv:2110.06169

Q is never asked about an action that is not in the log. V is an upper expectile of Q over the logged actions, Q is fitted to r + gamma V(s'),
and the policy is cloned with weights that grow with the advantage.

With twin critics Q_i, their slow copies Q-_i, and L_tau(u) = |tau - 1[u < 0]| u^2:

    L_V  = E_D[ L_tau( min_i Q-_i(s, a) - V(s) ) ]
    L_pi = -E_D[ min( exp( beta (min_i Q-_i(s, a) - V(s)) ), c ) log pi(a|s) ]
    L_Q  = sum_i E_D[ ( r + gamma (1 - term) V(s') - Q_i(s, a) )^2 ] / 2

in this order, V and Q by the new V. The mean over s' stays inside the square of L_Q, so that luck in the dynamics is not taken for skill.
V rises with tau: from the value of who made the data (.5) to that of the best logged action (1).

Defaults: the paper's for locomotion, tau .7 and beta 3 with rewards scaled so that returns span 1000 (`rewards.span`, off by default),
c = 100, Adam 3e-4, the actor's falling to 0 along a cosine. Mazes: tau .9, beta 10, `rewards.shift` -1.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from polopt.core.actions import encoded, encoded_space
from polopt.core.networks import Feedforward, Network
from polopt.core.parts import hyper, part
from polopt.critics.action_value import ActionValue, Ensemble, polyak
from polopt.critics.normed import NormedValue
from polopt.critics.value import ValueNetwork
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, descend, regress
from polopt.loops.descent import Step
from polopt.loops.offline import Offline
from polopt.methods.offline.bc import cloning_loss, one_action
from polopt.methods.registry import composition
from polopt.objectives import values
from polopt.optim.cosine import Cosine
from polopt.policies.cloned import ClonedActor, ClonedPolicy


class ImplicitMaximum(Protocol):
    """The loss of V against Q of logged actions, element by element, whose minimiser is an optimistic summary of Q."""

    def __call__(self, value, target) -> jax.Array: ...


@part
class Expectile:
    """An upper expectile."""

    tau: float = hyper(0.7, above=0, below=1)  # weight of the actions that are better than V

    def __call__(self, value, target):
        return values.expectile(value, target, self.tau)


class CriticFit(Protocol):
    """What the critics are fitted to, and with which loss."""

    def refuse(self, data) -> str | None:
        """Why it cannot learn from a dataset; None when it can."""
        ...

    def minibatch(self, batch, discount, key) -> Any:
        """What V, the actor and the critics learn from in an update, made of what the loop has drawn."""
        ...

    def __call__(self, critic, target, batch, actor, key) -> tuple[jax.Array, jax.Array]:
        """The loss of critics from targets (n,), and their values (n, members); actions in `batch` are encoded."""
        ...


@part
class LeastSquares:
    """The targets, by least squares."""

    def refuse(self, data) -> str | None:
        return None

    def minibatch(self, batch, discount, key):
        return batch

    def __call__(self, critic, target, batch, actor, key):
        return regress(critic, batch, target)


def advantage_weight(advantage, beta, clip):
    """min(exp(beta A), clip), without overflow."""
    return jnp.exp(jnp.minimum(beta * advantage, jnp.log(clip)))


def value_of(value, inputs):
    """V (n,) for network inputs with a leading axis."""
    return jax.vmap(lambda vector, pictures: value((), vector, pictures)[1])(*inputs)


@part
class ImplicitQ:
    """V, twin Q and an actor, all on logged actions only."""

    maximum: ImplicitMaximum = Expectile()
    fit: CriticFit = LeastSquares()
    actor_network: Feedforward = NETWORK
    critic_network: Feedforward = NETWORK
    actor_step: Step = Cosine(STEP)
    critic_step: Step = STEP
    layer_norm: bool = False  # layer normalisation inside V
    critics: int = hyper(2, at_least=1)  # critics; the smallest of their values counts
    beta: float = hyper(3.0, at_least=0)  # how fast a weight grows with the advantage
    clip: float = hyper(100.0, above=0)  # c: the largest weight
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    tau: float = hyper(0.005, above=0, at_most=1)  # share of the online critics that the targets take in an update

    def refuse(self, env) -> str | None:
        return one_action(env) or self.fit.refuse(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_critic, k_value = jax.random.split(key, 3)
        inputs = env.observation_space, encoded_space(env.action_space)
        actor = ClonedActor(self.actor_network, env.observation_space, env.action_space, k_actor)
        critic = Ensemble(lambda k: ActionValue(self.critic_network, *inputs, k), self.critics, k_critic)
        kind = NormedValue if self.layer_norm else ValueNetwork
        value = kind(Network(self.critic_network.hidden, self.critic_network.activation), env.observation_space, k_value)
        optimisers = {"actor": self.actor_step.init(actor), "critic": self.critic_step.init(critic), "value": self.critic_step.init(value)}
        return ActorCritic(actor, critic, (), critic, value, optimisers, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return learner.actor(*inputs).sample(key)

    def policy(self, learner, normaliser):
        return ClonedPolicy(learner.actor, normaliser)

    def value_loss(self, value, batch, q):
        """L_V for the slow critics' values of the logged actions (n,)."""
        return jnp.mean(batch.weight * self.maximum(value_of(value, batch.observation), q))

    def update(self, learner, batch, progress, key):
        k_batch, k_fit = jax.random.split(key)
        batch = self.fit.minibatch(batch, self.discount, k_batch)
        taken = batch._replace(action=jax.vmap(lambda a: encoded(learner.actor.action_space, a))(batch.action))
        q = jnp.min(jax.vmap(learner.target_critic)(*taken.observation, taken.action), axis=1)

        value_loss, gradient = jax.value_and_grad(self.value_loss)(learner.extra, batch, q)
        value, optimisers = descend(self.critic_step, gradient, learner.optimisers, "value", learner.extra, progress)

        advantage = q - value_of(value, batch.observation)
        weight = advantage_weight(advantage, self.beta, self.clip)
        policy_loss, gradient = jax.value_and_grad(cloning_loss)(learner.actor, batch, batch.weight * weight)
        actor, optimisers = descend(self.actor_step, gradient, optimisers, "actor", learner.actor, progress)

        y = batch.reward + batch.discount * value_of(value, batch.next_observation)
        (loss, critics), gradient = jax.value_and_grad(self.fit, has_aux=True)(learner.critic, y, taken, actor, k_fit)
        critic, optimisers = descend(self.critic_step, gradient, optimisers, "critic", learner.critic, progress)

        learner = ActorCritic(actor, critic, (), polyak(learner.target_critic, critic, self.tau), value, optimisers, learner.count + 1)
        metrics = {"loss/value": value_loss, "loss/policy": policy_loss, "loss/critic": loss, "value": jnp.mean(q), "weight": jnp.mean(weight)}
        return learner, y - critics[:, 0], metrics


@composition
def iql(task: DataTask | None = None) -> Offline:
    """IQL with the paper's sizes."""
    return Offline(ImplicitQ())
