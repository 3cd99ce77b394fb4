"""Conservative Q-Learning for Offline Reinforcement Learning.

Aviral Kumar, Aurick Zhou, George Tucker, Sergey Levine. 2020. arXiv:2006.04779

The critic is pushed down on all actions and up on the logged ones, so that it does not promise much where the log says nothing. With enough
weight the value of the learnt policy is a lower bound of its true one.

    L_Q = alpha_c sum_i { E_s[ log integral exp(Q_i(s, a)) da ] - E_D[ Q_i(s, a) ] } + sum_i E_D[ (Q_i(s, a) - y)^2 ] / 2

The integral is estimated with importance weights from uniform actions, actions of pi(.|s) and actions of pi(.|s'), `samples` each; of
whole-number actions it is a sum. Target, actor and temperature are SAC's, without the entropy in the target (as in the authors' code), or for
whole-number actions double DQN's. With `weight=Lagrange()` alpha_c rises while the gap in braces is above a number.

In a table, with a given pi, the fixed point is Q = r + gamma P V - alpha_c (pi / mu - 1), mu being who made the data.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.critics.action_value import ActionValues, polyak
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, descend, draw, regress
from polopt.loops.descent import Step
from polopt.loops.offline import Offline
from polopt.methods.actor_critic.dqn import GreedyPolicy, backup, greedy
from polopt.methods.actor_critic.sac import SoftActorCritic
from polopt.methods.registry import composition
from polopt.objectives import values


def conservative_gap(log_integral, value):
    """What the penalty weighs: log integral exp(Q) less the values of the logged actions, averaged over the batch; both (n, members)."""
    return jnp.mean(log_integral - value, axis=0)


def log_integral(value, log_density):
    """log of the mean of exp(Q) / density over samples, which estimates log integral exp(Q); both (samples, ...)."""
    return jax.nn.logsumexp(value - log_density, axis=0) - math.log(value.shape[0])


class Weight(Protocol):
    """alpha_c and how it moves; the gap is what it weighs, summed over the critics."""

    def init(self) -> Any: ...

    def value(self, state) -> jax.Array: ...

    def update(self, state, gap, progress) -> Any: ...


@part
class Constant:
    """alpha_c as given."""

    weight: float = hyper(5.0, at_least=0)  # alpha_c

    def init(self):
        return ()

    def value(self, state):
        return jnp.asarray(self.weight, jnp.float32)

    def update(self, state, gap, progress):
        return state


@part
class Lagrange:
    """alpha_c rises while the gap of a critic is above a target, and falls below it."""

    target: float = 5.0  # the gap that is allowed
    initial: float = hyper(1.0, above=0)  # alpha_c before the first update
    step: Step = STEP

    def init(self):
        log_weight = jnp.log(jnp.asarray(self.initial, jnp.float32))
        return log_weight, self.step.init(log_weight)

    def value(self, state):
        return jnp.exp(state[0])

    def update(self, state, gap, progress):
        log_weight, optimiser = state
        gradient = -jnp.exp(log_weight) * (jnp.mean(gap) - self.target)
        return self.step.update(gradient, optimiser, log_weight, progress)


@part
class Conservative(SoftActorCritic):
    """SAC with conservative critics, for actions of a box; alpha and alpha_c lie beside each other in `extra`."""

    weight: Weight = Constant()
    actor_step: Step = replace(STEP, {"learning_rate": 1e-4})
    samples: int = hyper(10, at_least=1)  # actions drawn of each kind for the integral
    entropy_in_target: bool = False  # count the entropy in the targets, as SAC does

    def refuse(self, env) -> str | None:
        reason = super().refuse(env)
        return reason and reason.replace("cql", "cql:discrete")

    def init(self, env, key) -> ActorCritic:
        learner = super().init(env, key)
        return dataclasses.replace(learner, extra=(learner.extra, self.weight.init()))

    def alpha(self, extra):
        return super().alpha(extra[0])

    def heated(self, learner, log_prob, progress):
        temperature = super().heated(dataclasses.replace(learner, extra=learner.extra[0]), log_prob, progress)
        return temperature, learner.extra[1]

    def backup(self, learner, batch, value, log_prob, key):
        if self.entropy_in_target:
            return super().backup(learner, batch, value, log_prob, key)
        return batch.reward + batch.discount * self.least(value, key)

    def proposals(self, actor, batch, key):
        """Actions (3 samples, n, ...) to estimate the integral with, and their log-densities (3 samples, n)."""
        k_uniform, k_now, k_next = jax.random.split(key, 3)
        shape = (self.samples, *batch.action.shape)
        uniform = jax.random.uniform(k_uniform, shape, minval=-1.0)
        flat = jnp.full(shape[:2], -math.prod(batch.action.shape[1:]) * math.log(2.0))

        def drawn(inputs, key):
            found = jax.vmap(lambda k: draw(actor, inputs, k))(jax.random.split(key, self.samples))
            return found.action, found.log_prob

        now, log_now = drawn(batch.observation, k_now)
        following, log_next = drawn(batch.next_observation, k_next)
        return jax.lax.stop_gradient((jnp.concatenate([uniform, now, following]), jnp.concatenate([flat, log_now, log_next])))

    def fit(self, learner, batch, y, progress, key):
        actions, log_density = self.proposals(learner.actor, batch, key)
        temperature, state = learner.extra
        weight = self.weight.value(state)

        def critic_loss(critic):
            bellman, value = regress(critic, batch, y)
            all_values = jax.vmap(lambda action: jax.vmap(critic)(*batch.observation, action))(actions)
            gap = conservative_gap(log_integral(all_values, log_density[..., None]), value)
            return bellman + weight * jnp.sum(gap), (bellman, value, gap)

        (_, (loss, value, gap)), gradient = jax.value_and_grad(critic_loss, has_aux=True)(learner.critic)
        extra = temperature, self.weight.update(state, gap, progress)
        return gradient, value, extra, {"loss/critic": loss, "gap": jnp.mean(gap), "weight": weight}


@part
class ConservativeDiscrete:
    """Double Q-learning with a conservative critic, for whole-number actions."""

    weight: Weight = Constant(1.0)
    network: Feedforward = NETWORK
    step: Step = STEP
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    tau: float = hyper(0.005, above=0, at_most=1)  # share of the online network that the target takes in an update

    def refuse(self, env) -> str | None:
        if isinstance(env.action_space, spaces.Discrete):
            return None
        return f"takes one whole-number action, but {env.name} has {env.action_space}. Take bc, iql or cql"

    def init(self, env, key) -> ActorCritic:
        critic = ActionValues(self.network, env.observation_space, env.action_space, key)
        return ActorCritic((), critic, (), critic, self.weight.init(), {"critic": self.step.init(critic)}, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return greedy(learner.critic(*inputs))

    def policy(self, learner, normaliser):
        return GreedyPolicy(learner.critic, normaliser, learner.critic.head.bias.shape[-1])

    def critic_loss(self, critic, batch, y, weight):
        """(L_Q, (its Bellman part, the values of the logged actions (n,), the gap)) for targets (n,) and alpha_c."""
        every = jax.vmap(critic)(*batch.observation)
        value = jnp.take_along_axis(every, batch.action[:, None], axis=1)[:, 0]
        bellman = jnp.mean(batch.weight * values.squared(value, y))
        gap = conservative_gap(jax.nn.logsumexp(every, axis=1)[:, None], value[:, None])
        return bellman + weight * jnp.sum(gap), (bellman, value, gap)

    def update(self, learner, batch, progress, key):
        slow, online = (jax.vmap(critic)(*batch.next_observation) for critic in (learner.target_critic, learner.critic))
        y = jax.lax.stop_gradient(backup(batch.reward, batch.discount, slow, online, True))
        weight = self.weight.value(learner.extra)
        (_, (loss, value, gap)), gradient = jax.value_and_grad(self.critic_loss, has_aux=True)(learner.critic, batch, y, weight)
        critic, optimisers = descend(self.step, gradient, learner.optimisers, "critic", learner.critic, progress)
        target = polyak(learner.target_critic, critic, self.tau)
        learner = ActorCritic((), critic, (), target, self.weight.update(learner.extra, gap, progress), optimisers, learner.count + 1)
        return learner, y - value, {"loss/critic": loss, "gap": jnp.mean(gap), "weight": weight, "value": jnp.mean(value)}


@composition
def cql(task: DataTask | None = None) -> Offline:
    """CQL(H) for actions of a box."""
    return Offline(Conservative())


@composition
def lagrange(task: DataTask | None = None) -> Offline:
    """CQL(H) for actions of a box, with a learnt weight."""
    return Offline(Conservative(weight=Lagrange()))


@composition
def discrete(task: DataTask | None = None) -> Offline:
    """CQL(H) for whole-number actions."""
    return Offline(ConservativeDiscrete())
