"""AWAC: Accelerating Online Reinforcement Learning with Offline Datasets.

Ashvin Nair, Abhishek Gupta, Murtaza Dalal, Sergey Levine. 2020. arXiv:2006.09359

An actor-critic whose policy step is weighted cloning: logged actions that are better than what the policy does on average weigh more. No
model of who made the data is needed, and the same updates go on when new data come in.

    y    = r + gamma (1 - term) min_i Q-_i(s', a'),   a' ~ pi(.|s')
    A    = min_i Q_i(s, a) - E_{a~ ~ pi}[ min_i Q_i(s, a~) ],   by `samples` draws
    L_pi = -E_D[ min( exp(A / lambda), c ) log pi(a|s) ]

Unlike IQL the critic evaluates the learnt policy, also at actions that are not in the log.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core.actions import encoded, encoded_space
from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part
from polopt.critics.action_value import ActionValue, Ensemble, polyak
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, descend, regress
from polopt.loops.descent import Step
from polopt.loops.offline import Offline
from polopt.methods.offline.bc import cloning_loss, one_action
from polopt.methods.offline.iql import advantage_weight
from polopt.methods.registry import composition
from polopt.policies.cloned import ClonedActor, ClonedPolicy


@part
class AdvantageWeighted:
    """An actor that is cloned by its advantage, and critics of it."""

    actor_network: Feedforward = NETWORK
    critic_network: Feedforward = NETWORK
    actor_step: Step = STEP
    critic_step: Step = STEP
    critics: int = hyper(2, at_least=1)  # critics; the smallest of their values counts
    samples: int = hyper(1, at_least=1)  # actions of the policy that its value is the mean of
    temperature: float = hyper(1.0, above=0)  # lambda: how much better an action must be for e times the weight
    clip: float = hyper(100.0, above=0)  # c: the largest weight
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    tau: float = hyper(0.005, above=0, at_most=1)  # share of the online critics that the targets take in an update

    def refuse(self, env) -> str | None:
        return one_action(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_critic = jax.random.split(key)
        actor = ClonedActor(self.actor_network, env.observation_space, env.action_space, k_actor)
        critic = Ensemble(
            lambda k: ActionValue(self.critic_network, env.observation_space, encoded_space(env.action_space), k), self.critics, k_critic
        )
        optimisers = {"actor": self.actor_step.init(actor), "critic": self.critic_step.init(critic)}
        return ActorCritic(actor, critic, (), critic, (), optimisers, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return learner.actor(*inputs).sample(key)

    def policy(self, learner, normaliser):
        return ClonedPolicy(learner.actor, normaliser)

    def value(self, critic, actor, inputs, key, samples: int):
        """The mean over draws of the policy of min_i Q_i, for network inputs with a leading axis: (n,)."""

        def one(vector, pictures, key):
            distribution = actor(vector, pictures)

            def drawn(key):
                action = distribution.action(distribution.sample(key))
                return jnp.min(critic(vector, pictures, encoded(actor.action_space, action)))

            return jnp.mean(jax.vmap(drawn)(jax.random.split(key, samples)))

        return jax.vmap(one)(*inputs, jax.random.split(key, inputs[0].shape[0]))

    def update(self, learner, batch, progress, key):
        k_target, k_value = jax.random.split(key)
        taken = batch._replace(action=jax.vmap(lambda a: encoded(learner.actor.action_space, a))(batch.action))
        y = batch.reward + batch.discount * self.value(learner.target_critic, learner.actor, batch.next_observation, k_target, 1)
        (loss, critics), gradient = jax.value_and_grad(regress, has_aux=True)(learner.critic, taken, y)
        critic, optimisers = descend(self.critic_step, gradient, learner.optimisers, "critic", learner.critic, progress)

        q = jnp.min(jax.vmap(critic)(*taken.observation, taken.action), axis=1)
        advantage = q - self.value(critic, learner.actor, batch.observation, k_value, self.samples)
        weight = advantage_weight(advantage, 1 / self.temperature, self.clip)
        policy_loss, gradient = jax.value_and_grad(cloning_loss)(learner.actor, batch, batch.weight * weight)
        actor, optimisers = descend(self.actor_step, gradient, optimisers, "actor", learner.actor, progress)

        learner = ActorCritic(actor, critic, (), polyak(learner.target_critic, critic, self.tau), (), optimisers, learner.count + 1)
        metrics = {"loss/policy": policy_loss, "loss/critic": loss, "value": jnp.mean(q), "weight": jnp.mean(weight)}
        return learner, y - critics[:, 0], metrics


@composition
def awac(task: DataTask | None = None) -> Offline:
    """AWAC on a fixed log."""
    return Offline(AdvantageWeighted())
