"""Continuous control with deep reinforcement learning.

Timothy P. Lillicrap, Jonathan J. Hunt, Alexander Pritzel, Nicolas Heess, Tom Erez, Yuval Tassa, David Silver, Daan Wierstra. 2015. arXiv:1509.02971

Q-learning for continuous actions: a deterministic actor, which follows the critic's gradient in the action, takes the place of the
maximum. Replay and slowly moving targets make it stable.

With actor mu, critic Q, their slow copies mu- and Q-, and transitions (s, a, r, s') from the replay:

    y       = r + gamma (1 - term) Q-(s', mu-(s'))
    L_Q     = E[ (Q(s, a) - y)^2 ] / 2
    grad J  = E[ grad_theta mu(s) grad_a Q(s, a) at a = mu(s) ],    with Q held fixed
    target <- (1 - tau) target + tau online,  after every update

Truncation is not termination: it keeps the bootstrap. The copies of the environment explore with Ornstein-Uhlenbeck noise.

The defaults are those in use today (two layers of 256, Adam 3e-4 for the actor and 1e-3 for the critic, minibatches of 256, tau .005),
not the paper's (400 and 300 units with batch normalisation, 1e-4, 64, .001); the paper's decay of the critic's weights is
`critic_decay`. The same rule with its slots filled otherwise is TD3.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.critics.action_value import ActionValue, Ensemble, polyak
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, descend, needs_box, regress
from polopt.loops.descent import Step
from polopt.loops.exploration import OrnsteinUhlenbeck
from polopt.loops.off_policy import OffPolicy
from polopt.methods.registry import composition
from polopt.policies.unit import DeterministicActor, UnitPolicy


class TargetAction(Protocol):
    """Where the next state's value is taken, from the slow actor's actions (n, ...)."""

    def __call__(self, action, key) -> jax.Array: ...


@part
class AsChosen:
    """At the slow actor's own action."""

    def __call__(self, action, key):
        return action


class ActorObjective(Protocol):
    """The actor's loss from its actions (n, ...); `critic(actions)` gives their values (n,)."""

    def __call__(self, critic, action, batch) -> jax.Array: ...


def action_gradient_loss(critic, action):
    """-E[ Q(s, a) ], where `critic(actions)` gives (n,): its gradient in the actions is the deterministic policy gradient."""
    return -jnp.mean(critic(action))


@part
class Climb:
    """The actor climbs its critic."""

    def __call__(self, critic, action, batch):
        return action_gradient_loss(critic, action)


@part
class Deterministic:
    """A deterministic actor and one or more critics, of which the smallest makes the targets and the first leads the actor."""

    target_action: TargetAction = AsChosen()
    objective: ActorObjective = Climb()
    actor_network: Feedforward = NETWORK
    critic_network: Feedforward = NETWORK
    actor_step: Step = STEP
    critic_step: Step = replace(STEP, {"learning_rate": 1e-3})
    critics: int = hyper(1, at_least=1)  # critics; the smallest of their values makes the targets
    delay: int = hyper(1, at_least=1)  # updates of the critics for one of the actor and the targets
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    tau: float = hyper(0.005, above=0, at_most=1)  # share of the online networks that the targets take in an update
    critic_decay: float = hyper(0.0, at_least=0)  # weight of half the squared length of the critic's parameters in its loss

    def refuse(self, env) -> str | None:
        return needs_box(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_critic = jax.random.split(key)
        actor = DeterministicActor(self.actor_network, env.observation_space, env.action_space, k_actor)
        critic = Ensemble(lambda k: ActionValue(self.critic_network, env.observation_space, env.action_space, k), self.critics, k_critic)
        optimisers = {"actor": self.actor_step.init(actor), "critic": self.critic_step.init(critic)}
        return ActorCritic(actor, critic, actor, critic, (), optimisers, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return learner.actor(*inputs)

    def policy(self, learner, normaliser):
        return UnitPolicy(learner.actor, normaliser)

    def target(self, learner, batch, key):
        """y for each transition (n,)."""
        action = self.target_action(jax.vmap(learner.target_actor)(*batch.next_observation), key)
        value = jax.vmap(learner.target_critic)(*batch.next_observation, action)
        return batch.reward + batch.discount * jnp.min(value, axis=1)

    def actor_loss(self, actor, critic, batch):
        first = critic.members[0]
        return self.objective(lambda action: jax.vmap(first)(*batch.observation, action), jax.vmap(actor)(*batch.observation), batch)

    def update(self, learner, batch, progress, key):
        y = self.target(learner, batch, key)

        def critic_loss(critic):
            loss, value = regress(critic, batch, y)
            return loss + 0.5 * self.critic_decay * sum(jnp.sum(x**2) for x in jax.tree.leaves(critic)), value

        (loss, value), gradient = jax.value_and_grad(critic_loss, has_aux=True)(learner.critic)
        critic, optimisers = descend(self.critic_step, gradient, learner.optimisers, "critic", learner.critic, progress)
        count = learner.count + 1

        def move(_):
            gradient = jax.grad(self.actor_loss)(learner.actor, critic, batch)
            actor, moved = descend(self.actor_step, gradient, optimisers, "actor", learner.actor, progress)
            return actor, polyak(learner.target_actor, actor, self.tau), polyak(learner.target_critic, critic, self.tau), moved

        def stay(_):
            return learner.actor, learner.target_actor, learner.target_critic, optimisers

        actor, target_actor, target_critic, optimisers = move(None) if self.delay == 1 else jax.lax.cond(count % self.delay == 0, move, stay, None)
        learner = ActorCritic(actor, critic, target_actor, target_critic, (), optimisers, count)
        return learner, y - value[:, 0], {"loss/critic": loss, "value": jnp.mean(value)}


@composition
def ddpg(task: ControlTask | None = None) -> OffPolicy:
    """DDPG with today's sizes."""
    return OffPolicy(Deterministic(), OrnsteinUhlenbeck())
