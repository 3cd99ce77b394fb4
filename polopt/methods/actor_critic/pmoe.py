"""Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning.

Jie Ren, Yewen Li, Zihan Ding, Wei Pan, Hao Dong. 2021. arXiv:2104.09122

A policy that mixes Gaussians can keep several optima of which a single one keeps one. Which expert acts is a choice that no
gradient passes, so the weights are regressed onto how often each expert is the best in its state, and only the best one follows
the critic.

With pi(a|s) = sum_k w_k(s) N_k(a|s), each N_k sent through tanh, one action a_k ~ N_k of every expert and its own log-density l_k
= log N_k(a_k|s):

    q_k    = min_i Q_i(s, a_k),   b = argmax_k q_k, a constant
    L_prim = E[ alpha l_b - q_b ],                      `improve=all`: the mean over k in the place of b
    L_freq = E[ (1/K) sum_k (w_k(s) - 1{k = b})^2 ],    least where w_k(s) is the chance that k is the best
    L_pi   = L_prim + L_freq
    y      = r + gamma (1 - term) ( min_i Q-_i(s', a') - alpha l_k' ),   k' ~ w(s'),  a' ~ N_k'
    alpha as in SAC, from l_b

The entropy is thus an expert's, not the mixture's; `entropy=mixture` takes the exact log pi(a|s) in both places. With K = 1 this
is SAC. Experts that start alike and wide often stay so under the rule of the best, hence they start apart: `spread` and
`log_std`.

This is PMOE on SAC. On PPO it is not here yet.

Defaults: those of a co-author's code (K = 4, two layers of 512, Adam 3e-4, minibatches of 300, tau .01), but rewards as they are:
it standardises them in each minibatch and multiplies them by 10. Our choice: the weights come from the actor's last features,
theirs from the observation by one layer.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part
from polopt.critics.action_value import ActionValue, Ensemble, polyak
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import STEP, ActorCritic, descend, needs_box, regress
from polopt.loops.descent import Step
from polopt.loops.exploration import Drawn
from polopt.loops.off_policy import OffPolicy
from polopt.methods.actor_critic.sac import Learned, Temperature, soft_value
from polopt.methods.registry import composition
from polopt.objectives.backend import stop_gradient
from polopt.policies.experts import UnitExperts
from polopt.policies.unit import UnitPolicy

NETWORK = Feedforward(hidden=(512, 512), activation="relu")


def best_expert(value):
    """1{k = b} of values (..., K), b the first of the largest; a constant."""
    xp = array_namespace(value)
    place = xp.cumulative_sum(xp.ones_like(value), axis=-1) - 1  # 0 ... K-1, on the device of the values
    best = xp.astype(xp.argmax(value, axis=-1, keepdims=True), value.dtype)
    return stop_gradient(xp.astype(place == best, value.dtype))


def primary_loss(log_prob, value, share, alpha):
    """sum_k share_k (alpha l_k - q_k), (...,) of arrays (..., K): an expert without a share has no gradient."""
    return array_namespace(log_prob, value).sum(share * (alpha * log_prob - value), axis=-1)


def frequency_loss(weights, best):
    """(1/K) sum_k (w_k - 1{k = b})^2, (...,) of arrays (..., K)."""
    return array_namespace(weights).mean((weights - best) ** 2, axis=-1)


@part
class MixtureOfExperts:
    """An actor of several experts, two critics and a temperature."""

    temperature: Temperature = Learned()
    actor_network: Feedforward = NETWORK
    critic_network: Feedforward = NETWORK
    actor_step: Step = STEP
    critic_step: Step = STEP
    experts: int = hyper(4, at_least=1)  # K
    spread: float = hyper(0.5, at_least=0)  # standard deviation of the experts' first means, before tanh
    log_std: float = hyper(-1.0, at_least=-20, at_most=2)  # first log deviation of each expert
    improve: str = hyper("best", choices=("best", "all"))  # which experts follow the critic in a state
    entropy: str = hyper("expert", choices=("expert", "mixture"))  # of what density the entropy is counted
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    tau: float = hyper(0.01, above=0, at_most=1)  # share of the online critics that the targets take in an update

    def refuse(self, env) -> str | None:
        return needs_box(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_critic = jax.random.split(key)
        shape = self.experts, self.spread, self.log_std
        actor = UnitExperts(self.actor_network, env.observation_space, env.action_space, *shape, k_actor)
        critic = Ensemble(lambda k: ActionValue(self.critic_network, env.observation_space, env.action_space, k), 2, k_critic)
        optimisers = {"actor": self.actor_step.init(actor), "critic": self.critic_step.init(critic)}
        return ActorCritic(actor, critic, (), critic, self.temperature.init(), optimisers, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return learner.actor.draw(*inputs, key)

    def policy(self, learner, normaliser):
        return UnitPolicy(learner.actor, normaliser)

    def draw(self, actor, inputs, key):
        """One action of every expert in n states: unit actions (n, K, ...), log-probabilities (n, K), and the logits of the weights (n, K)."""

        def one(key, vector, pictures):
            mixture = actor(vector, pictures)
            raw = mixture.sample_each(key)
            log_prob = mixture.log_prob_each(raw) if self.entropy == "expert" else jax.vmap(mixture.log_prob)(raw)
            return mixture.action_each(raw), log_prob, mixture.logits

        return jax.vmap(one)(jax.random.split(key, inputs[0].shape[0]), *inputs)

    def target(self, learner, batch, key):
        """y for each transition (n,)."""
        k_action, k_which = jax.random.split(key)
        action, log_prob, logits = self.draw(learner.actor, batch.next_observation, k_action)
        rows = jnp.arange(logits.shape[0]), jax.random.categorical(k_which, logits)
        value = jnp.min(jax.vmap(learner.target_critic)(*batch.next_observation, action[rows]), axis=1)
        return batch.reward + batch.discount * soft_value(value, log_prob[rows], self.temperature.value(learner.extra))

    def actor_loss(self, actor, learner, batch, key):
        """L_pi; log-probabilities of the best experts' actions (n,), L_freq, and the mean of the largest weights."""
        action, log_prob, logits = self.draw(actor, batch.observation, key)
        each = jax.vmap(jax.vmap(learner.critic, in_axes=(None, None, 0)))  # over states, then experts
        value = jnp.min(each(*batch.observation, action), axis=-1)
        best, weights = best_expert(value), jax.nn.softmax(logits)
        share = best if self.improve == "best" else jnp.full_like(best, 1 / self.experts)
        primary = jnp.mean(primary_loss(log_prob, value, share, self.temperature.value(learner.extra)))
        frequency = jnp.mean(frequency_loss(weights, best))
        return primary + frequency, (jnp.sum(best * log_prob, axis=-1), frequency, jnp.mean(jnp.max(weights, axis=-1)))

    def update(self, learner, batch, progress, key):
        k_target, k_actor = jax.random.split(key)
        y = self.target(learner, batch, k_target)
        (loss, value), gradient = jax.value_and_grad(regress, has_aux=True)(learner.critic, batch, y)
        critic, optimisers = descend(self.critic_step, gradient, learner.optimisers, "critic", learner.critic, progress)
        slow = polyak(learner.target_critic, critic, self.tau)
        now = ActorCritic(learner.actor, critic, (), slow, learner.extra, optimisers, learner.count + 1)
        (actor_loss, (log_prob, frequency, largest)), gradient = jax.value_and_grad(self.actor_loss, has_aux=True)(now.actor, now, batch, k_actor)
        actor, optimisers = descend(self.actor_step, gradient, optimisers, "actor", now.actor, progress)
        temperature = self.temperature.update(now.extra, log_prob, math.prod(actor.action_space.shape), progress)
        metrics = {
            "loss/critic": loss,
            "loss/actor": actor_loss,
            "loss/frequency": frequency,
            "largest_weight": largest,
            "entropy": -jnp.mean(log_prob),
            "temperature": self.temperature.value(temperature),
            "value": jnp.mean(value),
        }
        return ActorCritic(actor, critic, (), slow, temperature, optimisers, now.count), y - jnp.mean(value, axis=1), metrics


@composition
def pmoe(task: ControlTask | None = None) -> OffPolicy:
    """PMOE on SAC."""
    return OffPolicy(MixtureOfExperts(), Drawn(), batch_size=300)
