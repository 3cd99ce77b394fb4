"""Hundreds Guide Millions: Adaptive Offline Reinforcement Learning with Expert Guidance.

Qisen Yang, Shenzhi Wang, Qihang Zhang, Gao Huang, Shiji Song. 2023. arXiv:2309.01448

How strongly a policy is held to its log is one number in most methods, though some samples deserve to be imitated and others do not. Here a small
network weighs the constraint of each sample, and learns to do so from a few expert pairs: such that a step of the policy with its weights brings
it nearer to what the expert does.

With a host whose actor minimises l_imp + l_con, here TD3+BC's  -lambda Q_1(s, pi(s))  and  |pi(s) - a|^2, and x_i = (l_imp, l_con) of a sample:

    w_i    = w_phi(x_i),   theta'(phi) = theta - beta grad_theta mean_i[ l_imp,i + w_i l_con,i ]
    L_G    = E_expert[ |pi_theta'(phi)(s) - a|^2 ],    phi <- phi - step grad_phi L_G,   through theta'
    theta <- theta - step grad_theta mean_i[ l_imp,i + w_phi(x_i) l_con,i ],   weights held fixed

    dL_G / dw_i = -(beta / n) < grad L_G(theta'), grad l_con,i(theta) >

The last line is why it works: a weight grows where imitating the sample moves the policy as the expert's pairs want. As a sample is known to the
guide by its two losses only, hundreds of pairs suffice. A trial step is one of plain gradient descent, whatever step the actor makes.

Where no file of expert pairs is given, the transitions of the best logged episodes stand for them. Our choices: weights between 0 and `cap` that
start near the host's own, 1; Adam 1e-3 for the guide; the guide learns just before the critic's update rather than just after. Defaults of
the paper: one hidden layer of 100 units, 200 pairs, the host as it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.actions import to_unit
from polopt.core.networks import Feedforward, Linear, Torso
from polopt.core.parts import hyper, part, replace
from polopt.data import files
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import STEP, ActorCritic, Hosted, descend
from polopt.loops.descent import Step
from polopt.loops.offline import Offline, State
from polopt.loops.windows import episode_outcomes
from polopt.methods.actor_critic.ddpg import Deterministic
from polopt.methods.actor_critic.td3 import Smoothed
from polopt.methods.offline.td3_bc import ClimbNear, distance
from polopt.methods.registry import composition


class GuideNetwork(eqx.Module):
    """w_phi: maps the two losses of a sample (2,) to a number, from which `weights` makes its weight."""

    torso: Torso
    head: Linear

    def __init__(self, spec: Feedforward, key):
        k_torso, k_head = jax.random.split(key)
        self.torso = Torso(spec, 2, (), k_torso)
        self.head = Linear(self.torso.features, 1, k_head, gain=0.01)

    def __call__(self, losses):
        return self.head(self.torso((), losses, ())[1])[0]


class Guidance(eqx.Module):
    """The guide, and the expert's pairs as network inputs and unit actions, with a leading axis."""

    network: GuideNetwork
    inputs: Any
    action: Any


def weights(network, improvement, constraint, cap):
    """(n,) between 0 and cap, from losses (n,) that are held fixed; an output of 0 is the weight 1."""
    losses = jax.lax.stop_gradient(jnp.stack([improvement, constraint], axis=1))
    return cap * jax.nn.sigmoid(jax.vmap(network)(losses) - jnp.log(cap - 1))


def terms(objective: ClimbNear, critic, action, batch):
    """(l_imp, l_con) of each sample, (n,) each, whose sum TD3+BC's objective averages."""
    value = critic(action)
    scale = objective.alpha / jnp.maximum(jax.lax.stop_gradient(jnp.mean(jnp.abs(value))), 1e-8)
    anchor, strength = objective.anchor(critic, action, batch)
    return -scale * value, strength * distance(action, anchor)


def guide_loss(network, actor, losses, guidance: Guidance, rate, cap):
    """L_G: what the actor loses on the expert's pairs after a trial step; `losses(actor)` gives (l_imp, l_con)."""
    weight = weights(network, *losses(actor), cap)

    def trial(actor):
        improvement, constraint = losses(actor)
        return jnp.mean(improvement + weight * constraint)

    moved = jax.tree.map(lambda p, g: p - rate * g, actor, jax.grad(trial)(actor))
    return jnp.mean(distance(jax.vmap(moved)(*guidance.inputs), guidance.action))


@part
class Guided(Hosted):
    """TD3+BC whose constraint is weighed by a guide."""

    host: Deterministic = Deterministic(Smoothed(), ClimbNear(), critic_step=STEP, critics=2, delay=2)
    guide_network: Feedforward = Feedforward(hidden=(100,), activation="relu")
    guide_step: Step = replace(STEP, {"learning_rate": 1e-3})
    trial_rate: float = hyper(1e-2, above=0)  # beta: size of the trial step
    cap: float = hyper(10.0, above=1)  # largest weight; 1 is the host's

    def init(self, env, key) -> ActorCritic:
        k_host, k_guide = jax.random.split(key)
        learner, network = self.host.init(env, k_host), GuideNetwork(self.guide_network, k_guide)
        optimisers = {**learner.optimisers, "guide": self.guide_step.init(network)}
        return dataclasses.replace(learner, extra=Guidance(network, (), ()), optimisers=optimisers)

    def update(self, learner, batch, progress, key):
        first = learner.critic.members[0]

        def losses(actor):
            action = jax.vmap(actor)(*batch.observation)
            return terms(self.host.objective, lambda a: jax.vmap(first)(*batch.observation, a), action, batch)

        given = learner.actor, losses, learner.extra, self.trial_rate, self.cap
        loss, gradient = jax.value_and_grad(guide_loss)(learner.extra.network, *given)
        network, optimisers = descend(self.guide_step, gradient, learner.optimisers, "guide", learner.extra.network, progress)

        def weighted(critic, action, batch):
            improvement, constraint = terms(self.host.objective, critic, action, batch)
            return jnp.mean(improvement + weights(network, improvement, constraint, self.cap) * constraint)

        host = dataclasses.replace(self.host, objective=weighted)
        after, error, metrics = host.update(dataclasses.replace(learner, optimisers=optimisers), batch, progress, key)
        weight = weights(network, *losses(learner.actor), self.cap)
        metrics |= {"loss/guide": loss, "weight": jnp.mean(weight), "weight/deviation": jnp.std(weight)}
        return dataclasses.replace(after, extra=dataclasses.replace(learner.extra, network=network)), error, metrics


@part
class OfflineGuided:
    """The offline loop with expert pairs beside the log. A step of the run is an update."""

    loop: Offline
    guides: int = hyper(200, at_least=1)  # expert pairs, at most
    guide: str | None = None  # file of the expert's transitions; none for those of the best logged episodes

    takes = DataTask
    needs = "a dataset (--data)"

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        return self.loop.refuse(task)

    @property
    def steps_per_iteration(self) -> int:
        return self.loop.steps_per_iteration

    def expert(self, data):
        """The dataset that the expert's pairs are taken from."""
        if self.guide is None:
            return data
        return files.read(self.guide, observation_space=data.observation_space, action_space=data.action_space)

    def init(self, task: DataTask, key) -> State:
        state, expert = self.loop.init(task, key), self.expert(task.dataset)
        row = jax.lax.top_k(episode_outcomes(expert)[0], min(self.guides, len(expert)))[1]
        seen, taken = jax.tree.map(lambda x: jnp.asarray(x)[row], (expert.observation, expert.action))
        unit = jax.vmap(lambda action: to_unit(expert.action_space, action))(taken)
        guidance = Guidance(state.learner.extra.network, jax.vmap(state.normaliser)(seen), unit)
        return dataclasses.replace(state, learner=dataclasses.replace(state.learner, extra=guidance))

    def step(self, task: DataTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        return self.loop.step(task, state)

    def policy(self, state: State):
        return self.loop.policy(state)


@composition
def gorl_guided(task: DataTask | None = None) -> OfflineGuided:
    """GORL on TD3+BC."""
    return OfflineGuided(Offline(Guided(), normalise_observations=True))
