"""Soft Actor-Critic Algorithms and Applications.

Tuomas Haarnoja, Aurick Zhou, Kristian Hartikainen, George Tucker, Sehoon Ha, Jie Tan, et al. 2018. arXiv:1812.05905

The return is maximised together with the policy's entropy, off-policy, with a reparameterised Gaussian sent through tanh. The
temperature that weighs the entropy is learnt, so that the entropy keeps a given value.

With a~ = tanh(u), u ~ N(mean(s), std(s)^2), and log pi the density of a~ in [-1, 1]:

    y       = r + gamma (1 - term) ( min_i Q-_i(s', a~') - alpha log pi(a~'|s') )
    L_Q     = sum_i E[ (Q_i(s, a) - y)^2 ] / 2
    L_pi    = E[ alpha log pi(a~|s) - min_i Q_i(s, a~) ]
    L_alpha = E[ -log(alpha) (log pi(a~|s) + H) ],   H = -dim(a),   pi held fixed

Defaults: two layers of 256, Adam 3e-4 for all, minibatches of 256, tau .005, one update for each step.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part
from polopt.critics.action_value import ActionValue, Ensemble, polyak
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, descend, draw, needs_box, regress
from polopt.loops.descent import Step
from polopt.loops.exploration import Drawn
from polopt.loops.off_policy import OffPolicy
from polopt.loops.temperature import Fixed, Learned, Temperature
from polopt.methods.registry import composition
from polopt.policies.unit import GaussianActor, UnitPolicy


def soft_value(value, log_prob, alpha):
    """Q - alpha log pi: what a state is worth under the policy, entropy counted."""
    return value - alpha * log_prob


@part
class SoftActorCritic:
    """A stochastic actor, an ensemble of critics and a temperature."""

    temperature: Temperature = Learned()
    actor_network: Feedforward = NETWORK
    critic_network: Feedforward = NETWORK
    actor_step: Step = STEP
    critic_step: Step = STEP
    critics: int = hyper(2, at_least=1)  # critics in the ensemble
    subset: int | None = hyper(None, at_least=1)  # critics drawn anew for each target, of which the smallest counts; none for all
    actor_value: str = hyper("min", choices=("min", "mean"))  # of the critics, in the actor's loss
    delay: int = hyper(1, at_least=1)  # updates of the critics for one of the actor and the temperature
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    tau: float = hyper(0.005, above=0, at_most=1)  # share of the online critics that the targets take in an update

    def refuse(self, env) -> str | None:
        if self.subset is not None and self.subset > self.critics:
            return f"draws {self.subset} critics for a target, but has {self.critics}. Set a smaller subset"
        return needs_box(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_critic = jax.random.split(key)
        actor = self.actor(env, k_actor)
        critic = Ensemble(lambda k: ActionValue(self.critic_network, env.observation_space, env.action_space, k), self.critics, k_critic)
        optimisers = {"actor": self.actor_step.init(actor), "critic": self.critic_step.init(critic)}
        return ActorCritic(actor, critic, (), critic, self.temperature.init(), optimisers, jnp.zeros((), jnp.int32))

    def actor(self, env, key):
        return GaussianActor(self.actor_network, env.observation_space, env.action_space, key)

    def heated(self, learner, log_prob, progress):
        """The temperature after the actor's step, from log-probabilities of its actions."""
        return self.temperature.update(learner.extra, log_prob, math.prod(learner.actor.action_space.shape), progress)

    def alpha(self, extra) -> jax.Array:
        return self.temperature.value(extra)

    def heat(self, extra) -> dict[str, jax.Array]:
        """Diagnostics of the temperature."""
        return {"temperature": self.alpha(extra)}

    def act(self, learner, inputs, key):
        return learner.actor.draw(*inputs, key)

    def policy(self, learner, normaliser):
        return UnitPolicy(learner.actor, normaliser)

    def target(self, learner, batch, key):
        """y for each transition (n,)."""
        k_action, k_subset = jax.random.split(key)
        after = draw(learner.actor, batch.next_observation, k_action)
        value = jax.vmap(learner.target_critic)(*batch.next_observation, after.action)
        return self.backup(learner, batch, value, after.log_prob, k_subset)

    def backup(self, learner, batch, value, log_prob, key):
        """y from the values of the next actions (n, critics) and their log-probabilities (n,)."""
        return batch.reward + batch.discount * soft_value(self.least(value, key), log_prob, self.alpha(learner.extra))

    def least(self, value, key):
        """The smallest of the critics that count: values (n, critics) to (n,)."""
        if self.subset is not None:
            value = value[:, jax.random.permutation(key, self.critics)[: self.subset]]
        return jnp.min(value, axis=1)

    def judged(self, value):
        """What the actor goes by: values (..., critics) to (...,)."""
        return jnp.min(value, axis=-1) if self.actor_value == "min" else jnp.mean(value, axis=-1)

    def actor_loss(self, actor, learner, batch, key):
        """L_pi, and log pi of the actions drawn (n,)."""
        now = draw(actor, batch.observation, key)
        value = self.judged(jax.vmap(learner.critic)(*batch.observation, now.action))
        return -jnp.mean(soft_value(value, now.log_prob, self.alpha(learner.extra))), now.log_prob

    def fit(self, learner, batch, y, progress, key):
        """(gradient of the critics for targets y, their values (n, critics), `extra` after it, diagnostics)."""
        (loss, value), gradient = jax.value_and_grad(regress, has_aux=True)(learner.critic, batch, y)
        return gradient, value, learner.extra, {"loss/critic": loss}

    def update(self, learner, batch, progress, key):
        k_target, k_actor = jax.random.split(key)
        y = self.target(learner, batch, k_target)
        gradient, value, extra, fitted = self.fit(learner, batch, y, progress, jax.random.fold_in(k_target, 1))
        critic, optimisers = descend(self.critic_step, gradient, learner.optimisers, "critic", learner.critic, progress)
        target_critic = polyak(learner.target_critic, critic, self.tau)
        after = ActorCritic(learner.actor, critic, (), target_critic, extra, optimisers, learner.count + 1)

        def move(now):
            (actor_loss, log_prob), gradient = jax.value_and_grad(self.actor_loss, has_aux=True)(now.actor, now, batch, k_actor)
            actor, optimisers = descend(self.actor_step, gradient, now.optimisers, "actor", now.actor, progress)
            temperature = self.heated(now, log_prob, progress)
            entropy = -jnp.sum(log_prob) / log_prob.shape[0]
            return ActorCritic(actor, now.critic, (), now.target_critic, temperature, optimisers, now.count), actor_loss, entropy

        def stay(now):
            return now, jnp.zeros(()), jnp.zeros(())

        if self.delay == 1:
            after, actor_loss, entropy = move(after)
            seen = 1.0
        else:
            seen = (after.count % self.delay == 0).astype(jnp.float32) * self.delay  # so that the mean over updates is that over the actor's
            after, actor_loss, entropy = jax.lax.cond(after.count % self.delay == 0, move, stay, after)
        metrics = {
            **fitted,
            "loss/actor": actor_loss * seen,
            "entropy": entropy * seen,
            "value": jnp.mean(value),
            **self.heat(after.extra),
        }
        return after, y - jnp.mean(value, axis=1), metrics


@composition
def sac(task: ControlTask | None = None) -> OffPolicy:
    """SAC with a learnt temperature."""
    return OffPolicy(SoftActorCritic(), Drawn())


@composition
def fixed(task: ControlTask | None = None) -> OffPolicy:
    """SAC with a temperature of its own choice, as in the first paper (arXiv:1801.01290)."""
    return OffPolicy(SoftActorCritic(Fixed()), Drawn())
