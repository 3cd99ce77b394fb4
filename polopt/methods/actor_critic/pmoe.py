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

On-policy (`pmoe:ppo`) PPO's ratio is that of the mixture's density, and L_freq is added to its loss. What tells the best expert
is a value Q(s, a) fitted to the returns that PPO fits V to; our choice: it is read off the actor's features, which it does not
move.

Defaults: those of a co-author's code (K = 4, two layers of 512, Adam 3e-4, minibatches of 300, tau .01), but rewards as they are:
it standardises them in each minibatch and multiplies them by 10. Our choice: the weights come from the actor's last features,
theirs from the observation by one layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import needs_box
from polopt.loops.descent import Step, passes
from polopt.loops.exploration import Drawn
from polopt.loops.memory import NoMemory
from polopt.loops.off_policy import OffPolicy
from polopt.loops.on_policy import OnPolicy
from polopt.methods.actor_critic.sac import SoftActorCritic
from polopt.methods.policy_gradient import ppo as proximal
from polopt.methods.registry import composition
from polopt.objectives import values
from polopt.objectives.backend import stop_gradient
from polopt.policies.experts import ExpertsActor, Shown, UnitExperts

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
class MixtureOfExperts(SoftActorCritic):
    """SAC with an actor of several experts."""

    actor_network: Feedforward = NETWORK
    critic_network: Feedforward = NETWORK
    tau: float = hyper(0.01, above=0, at_most=1)  # share of the online critics that the targets take in an update
    experts: int = hyper(4, at_least=1)  # K
    spread: float = hyper(0.5, at_least=0)  # standard deviation of the experts' first means, before tanh
    log_std: float = hyper(-1.0, at_least=-20, at_most=2)  # first log deviation of each expert
    improve: str = hyper("best", choices=("best", "all"))  # which experts follow the critic in a state
    entropy: str = hyper("expert", choices=("expert", "mixture"))  # of what density the entropy is counted

    def actor(self, env, key):
        shape = self.experts, self.spread, self.log_std
        return UnitExperts(self.actor_network, env.observation_space, env.action_space, *shape, key)

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
        value = jax.vmap(learner.target_critic)(*batch.next_observation, action[rows])
        return self.backup(learner, batch, value, log_prob[rows], jax.random.fold_in(k_which, 1))

    def actor_loss(self, actor, learner, batch, key):
        """L_pi, and log-probabilities of the best experts' actions (n,)."""
        action, log_prob, logits = self.draw(actor, batch.observation, key)
        each = jax.vmap(jax.vmap(learner.critic, in_axes=(None, None, 0)))  # over states, then experts
        value = self.judged(each(*batch.observation, action))
        best = best_expert(value)
        share = best if self.improve == "best" else jnp.full_like(best, 1 / self.experts)
        primary = jnp.mean(primary_loss(log_prob, value, share, self.alpha(learner.extra)))
        return primary + jnp.mean(frequency_loss(jax.nn.softmax(logits), best)), jnp.sum(best * log_prob, axis=-1)


@composition
def pmoe(task: ControlTask | None = None) -> OffPolicy:
    """PMOE on SAC."""
    return OffPolicy(MixtureOfExperts(), Drawn(), batch_size=300)


# -- on-policy ---------------------------------------------------------------------------------------------------------


@part
class Experts(NoMemory):
    """The actor's one distribution is made a mixture; nothing is remembered."""

    count: int = hyper(5, at_least=1)  # K
    spread: float = hyper(0.5, at_least=0)  # standard deviation of the experts' first means or logits
    judge: Feedforward = Feedforward()  # Q, on the actor's features and an action

    def actor(self, actor, key):
        return ExpertsActor(actor, self.count, self.spread, self.judge, jax.random.fold_in(key, 1))


@part
class JudgedDescent:
    """Passes of minibatch steps along the gradient of the loop's loss + L_freq + the loss of the value of actions."""

    step: Step
    epochs: int = hyper(10, at_least=1)  # passes over an iteration's data
    minibatches: int = hyper(32, at_least=1)  # steps in a pass
    value_coefficient: float = hyper(0.5, at_least=0)  # weight of the value loss
    action_value_coefficient: float = hyper(1.0, at_least=0)  # weight of the loss of the value of actions

    def init(self, learner):
        return self.step.init(learner)

    def refuse(self, samples: int) -> str | None:
        return f"cannot split {samples} samples into {self.minibatches} minibatches" if samples % self.minibatches else None

    def loss(self, learner, loop, surrogate_state, batch, key):
        total, metrics = loop.loss(learner, surrogate_state, batch, self.value_coefficient)
        features, mixture = loop.forward(Shown(learner.actor), 0, batch)
        raw, target = loop.samples((batch.raw_action, batch.target))

        def one(features, mixture, raw, target, key):
            value = jax.vmap(lambda a: learner.actor.value(features, a))(mixture.action_each(mixture.sample_each(key)))
            judged = learner.actor.value(features, mixture.action(raw))
            return frequency_loss(mixture.weights, best_expert(value)), values.squared(judged, target)

        frequency, error = map(jnp.mean, jax.vmap(one)(features, mixture, raw, target, jax.random.split(key, target.shape[0])))
        return total + frequency + self.action_value_coefficient * error, {**metrics, "loss/frequency": frequency, "loss/action_value": error}

    def __call__(self, loop, state, learner, surrogate_state, batch, progress, key):
        def descend(carry, minibatch):
            learner, optimiser, key = carry
            key, k_loss = jax.random.split(key)
            gradient, metrics = jax.grad(self.loss, has_aux=True)(learner, loop, surrogate_state, minibatch, k_loss)
            return (*self.step.update(gradient, optimiser, learner, progress), key), metrics

        k_passes, k_losses = jax.random.split(key)
        (learner, state, _), metrics = passes(descend, (learner, state, k_losses), batch, self.epochs, self.minibatches, k_passes)
        return learner, state, jax.tree.map(jnp.mean, metrics)


@part
class MixtureOnPolicy(OnPolicy):
    """The on-policy loop for experts that are Gaussians; of whole numbers several would be the best at once."""

    def refuse(self, task) -> str | None:
        return needs_box(task.env) or super().refuse(task)


@composition
def ppo(task: ControlTask | None = None) -> MixtureOnPolicy:
    """PMOE on PPO."""
    plain = proximal.ppo(task)
    descent = plain.improver
    judged = JudgedDescent(descent.step, descent.epochs, descent.minibatches, descent.value_coefficient)
    return MixtureOnPolicy(**(vars(plain) | {"improver": judged, "memory": Experts()}))
