"""PG-Rainbow: Using Distributional Reinforcement Learning in Policy Gradient Methods.

WooJae Jeon, KangJun Lee, Jeewoo Lee. 2024. arXiv:2407.13146

PPO's critic is told of the distribution of returns: an implicit quantile network learns off-policy from a replay of what PPO collects, and a
small network distils its quantiles and PPO's own value into the value that PPO uses.

    V_psi(s) = f_psi( V_theta(s) * q_phi(s) ),    q_phi(s)_i = sum_a pi(a|s) Z_{tau_i}(s, a),    tau_i = (2i - 1) / (2N)
    Z        = head( features(s) * relu( sum_j cos(pi j tau) w_j + b ) )
    d_ij     = r + gamma (1 - term) Z-_{tau'_j}(s', a') - Z_{tau_i}(s, a)
    L_phi    = (1/N') sum_ij |tau_i - 1[d_ij < 0]| Huber_kappa(d_ij) / kappa

V_psi takes V's place in the advantages and in the value loss, whose gradient reaches psi and theta and not phi. What is known of the paper is
this form of the critic; our choices are: f_psi is a network of one hidden layer added to the mean of its N inputs, V_theta starts at 1 so that
V_psi starts as the mean quantile, q_phi is read with the quantile network and the policy of the last refresh, a' is drawn by the present
policy (`on_policy`; else the greedy action of the mean over K fractions, as in the quantile network's own paper), rewards are scaled as PPO's
are, and a continuous action enters the quantile network beside the state, q_phi being read at the policy's mode. The edges: actions
that are one whole number or a box, and no recurrent networks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward, Linear
from polopt.core.parts import hyper, part, replace
from polopt.critics.distilled import Distilled
from polopt.critics.quantile import QuantileNetwork, quantile_regression
from polopt.data.replay import Replay, Ring, Steps, Transitions
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import STEP
from polopt.loops.behaviour import Itself
from polopt.loops.descent import Step
from polopt.loops.on_policy import OnPolicy
from polopt.loops.on_policy import State as PPOState
from polopt.methods.policy_gradient.ppo import ppo
from polopt.methods.registry import composition
from polopt.policies.actor import Actor


@part
class Recorded(Itself):
    """The learner collects, learns from what it has just collected, and the rollout is kept until the next one."""

    def init(self, loop, env, state):
        shapes = jax.eval_shape(lambda s: loop.collect(env, s, s.key)[1], state)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def recall(self, loop, state, memory, rollout):
        return memory, rollout, rollout


class Quantiles(eqx.Module):
    """What learns off-policy: the network, its slow copy, the optimiser, and updates made."""

    network: QuantileNetwork
    target: QuantileNetwork
    optimiser: Any
    count: jax.Array


class State(eqx.Module):
    ppo: PPOState
    quantiles: Quantiles
    ring: Ring


@part
class Rainbow:
    """PPO with a critic that reads quantiles."""

    ppo: OnPolicy
    replay: Replay = Replay(capacity=100_000)
    quantile_network: Feedforward = Feedforward((64, 64), "relu")
    quantile_step: Step = replace(STEP, {"learning_rate": 1e-4})
    quantiles: int = hyper(16, at_least=1)  # N: fractions that the critic reads
    samples: int = hyper(16, at_least=1)  # fractions drawn for each side of the loss
    greedy_samples: int = hyper(32, at_least=1)  # K: fractions over which a greedy action averages, where not on_policy
    cosines: int = hyper(64, at_least=1)  # in the embedding of a fraction
    kappa: float = hyper(1.0, above=0)  # where the Huber loss turns linear
    on_policy: bool = True  # the next action is drawn by the present policy; without it it is the greedy one
    updates: int = hyper(64, at_least=1)  # of the quantile network in an iteration
    batch_size: int = hyper(64, at_least=1)  # transitions of an update
    target_every: int = hyper(500, at_least=1)  # updates between two copies of the network to the target
    refresh_every: int = hyper(4, at_least=1)  # iterations between two refreshes of what the critic reads
    distil_hidden: int = hyper(64, at_least=1)  # units of f_psi's hidden layer

    takes = ControlTask
    needs = "an environment (--env)"

    @property
    def steps_per_iteration(self) -> int:
        return self.ppo.steps_per_iteration

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        space = task.env.action_space
        if not isinstance(space, (spaces.Discrete, spaces.Box)):
            return f"takes one whole number or a box as action, but {task.env.name} has {space}. Take ppo"
        if isinstance(space, spaces.Box) and not self.on_policy:
            return f"has no greedy action in the box of {task.env.name}. Set on_policy to true"
        if self.ppo.recurrent:
            return "has no recurrent networks. Set network.core and critic_network.core to none"
        if not self.ppo.critic:
            return "distils into a critic. Set critic to true, or take ppo"
        if not isinstance(self.ppo.behaviour, Recorded):
            return f"learns from rollouts that PPO records, but its behaviour is {type(self.ppo.behaviour).__name__}. Compose it with Recorded()"
        return self.ppo.refuse(task)

    def init(self, task: ControlTask, key) -> State:
        k_ppo, k_quantiles, k_inner, k_outer = jax.random.split(key, 4)
        state, env = self.ppo.init(task, k_ppo), task.env
        network = QuantileNetwork(self.quantile_network, env.observation_space, env.action_space, self.cosines, k_quantiles)
        value = eqx.tree_at(lambda v: v.head.bias, state.learner.critic, jnp.ones((1,)))
        mix = Linear(self.quantiles, self.distil_hidden, k_inner), Linear(self.distil_hidden, 1, k_outer, gain=0.01)
        learner = dataclasses.replace(state.learner, critic=Distilled(value, *mix, (network, state.learner.actor)))
        state = dataclasses.replace(state, learner=learner, improver=self.ppo.improver.init(learner))
        quantiles = Quantiles(network, network, self.quantile_step.init(network), jnp.zeros((), jnp.int32))
        return State(state, quantiles, self.replay.start(recorded(state), task.steps))

    def step(self, task: ControlTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        after, metrics = self.ppo.step(task, state.ppo)
        progress = jnp.clip(state.ppo.iteration * self.steps_per_iteration / task.steps, 0.0, 1.0)
        key, k_learn = jax.random.split(after.key)
        ring = self.replay.add(state.ring, recorded(after))
        quantiles, ring, loss = self.learn(state.quantiles, ring, after, progress, k_learn)
        due = after.iteration % self.refresh_every == 0
        critic = after.learner.critic
        reader = jax.tree.map(lambda new, old: jnp.where(due, new, old), (quantiles.network, after.learner.actor), critic.reader)
        learner = dataclasses.replace(after.learner, critic=dataclasses.replace(critic, reader=reader))
        return State(dataclasses.replace(after, learner=learner, key=key), quantiles, ring), {**metrics, "loss/quantiles": loss}

    def policy(self, state: State):
        return self.ppo.policy(state.ppo)

    def refresh(self, task: ControlTask, state: State) -> State:
        """The state with new episodes begun from its own key: what follows a checkpoint where environments live on the host."""
        return State(self.ppo.refresh(task, state.ppo), state.quantiles, self.replay.cut(state.ring))

    # -- the quantiles ---------------------------------------------------------------------------------------------------

    def learn(self, quantiles: Quantiles, ring: Ring, now: PPOState, progress, key):
        """`updates` updates from the replay: (quantiles, ring, mean loss)."""
        inputs = jax.vmap(now.normaliser)
        scale = jnp.sqrt(now.reward_statistics.variance[0] + 1e-8) if self.ppo.normalise_rewards else 1.0

        def update(carry, key):
            quantiles, ring = carry
            k_sample, k_loss = jax.random.split(key)
            batch = self.replay.sample(ring, k_sample, self.batch_size, self.ppo.advantage.discount)
            batch = batch._replace(observation=inputs(batch.observation), next_observation=inputs(batch.next_observation))
            batch = batch._replace(reward=batch.reward / scale)
            keys = jax.random.split(k_loss, self.batch_size)

            def loss(network):
                each = jax.vmap(lambda one, k: self.loss(network, quantiles.target, now.learner.actor, one, k))(batch, keys)
                return jnp.mean(batch.weight * each), each

            (total, each), gradient = jax.value_and_grad(loss, has_aux=True)(quantiles.network)
            network, optimiser = self.quantile_step.update(gradient, quantiles.optimiser, quantiles.network, progress)
            count = quantiles.count + 1
            target = jax.tree.map(lambda old, new: jnp.where(count % self.target_every == 0, new, old), quantiles.target, network)
            return (Quantiles(network, target, optimiser, count), self.replay.judged(ring, batch.index, each)), total

        (quantiles, ring), losses = jax.lax.scan(update, (quantiles, ring), jax.random.split(key, self.updates))
        return quantiles, ring, jnp.mean(losses)

    def loss(self, network: QuantileNetwork, target: QuantileNetwork, actor: Actor, one: Transitions, key):
        """L_phi of one transition."""
        k_tau, k_next, k_action = jax.random.split(key, 3)
        tau, tau_next = (jax.random.uniform(k, (self.samples,)) for k in (k_tau, k_next))
        if self.on_policy:
            action = actor((), *one.next_observation)[1].sample(k_action)
        else:
            fractions, features = jax.random.uniform(k_action, (self.greedy_samples,)), target.features(*one.next_observation)
            action = jnp.argmax(jnp.mean(jax.vmap(lambda t: target.quantiles(features, t))(fractions), axis=0))
        after = quantiles_of(target, one.next_observation, action, tau_next)
        here = quantiles_of(network, one.observation, one.action, tau)
        return quantile_regression(here, tau, one.reward + one.discount * after, self.kappa)


def quantiles_of(network: QuantileNetwork, inputs, action, tau):
    """Z_tau(s, a) at fractions (M,)."""
    vector, pictures = inputs
    whole = jnp.issubdtype(action.dtype, jnp.integer)
    features = network.features(vector if whole else jnp.concatenate([vector, action.ravel()]), pictures)
    return jax.vmap(lambda t: network.quantiles(features, t)[action if whole else 0])(tau)


def recorded(state: PPOState) -> Steps:
    """The last rollout as the replay keeps it."""
    rollout = state.behaviour
    ended = rollout.terminated | rollout.truncated
    return Steps(rollout.observation, rollout.raw_action, rollout.reward, rollout.final_observation, rollout.terminated, ended)


@composition
def pg_rainbow(task: ControlTask | None = None) -> Rainbow:
    """PG-Rainbow on this library's PPO."""
    return Rainbow(dataclasses.replace(ppo(task), network=Feedforward(), critic_network=Feedforward(), behaviour=Recorded()))
