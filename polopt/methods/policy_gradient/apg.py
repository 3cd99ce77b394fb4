"""Adaptive Policy Learning to Additional Tasks.

Wenjian Hao, Zehui Lu, Zihao Liang, Tianyu Zhou, Shaoshuai Mou. 2023. arXiv:2305.15193

A policy that was trained for one task is tuned so that it does another one too: by the deterministic policy gradient of a one-step Bellman
objective, and with a guard that keeps the first task. Only the paper's abstract was to be had, and it is reported as withdrawn by its
authors; the algorithm below is our choice throughout.

With the trained mu_0 fixed, costs c_0 = -reward of the first task and c_1 the environment's cost, and slow copies marked -:

    mu(x)    = mu_0(x) + rho(x),  rho starts at 0
    c        = c_0 + w c_1
    L_Q      = E[ (Q(x, u) - c - gamma Q-(x', mu-(x')))^2 ] / 2
    L_Q0     = E[ (Q_0(x, u) - c_0 - gamma Q_0-(x', mu_0(x')))^2 ] / 2           on data of mu_0 only, then fixed
    L_mu     = E[ Q(x, mu(x)) ] + kappa E[ max(0, Q_0(x, mu(x)) - Q_0(x, mu_0(x)) - slack |Q_0(x, mu_0(x))|) ]

First the critics learn from steps of mu_0 with noise; then Q_0 stands still and mu moves once in `critic_steps` updates of Q, until its
gradient is below `tolerance`. The environment's observation holds whatever parameters the additional task has. mu_0 is the best policy of
a run's folder; none stands for the middle of the box. The edges: observations that are a vector, no normalisation of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.critics.action_value import ActionValue, polyak
from polopt.envs.task import ControlTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, descend, needs_box
from polopt.loops.descent import Step
from polopt.loops.exploration import GaussianNoise
from polopt.loops.off_policy import OffPolicy
from polopt.methods.registry import composition
from polopt.objectives import values
from polopt.policies.residual import FromRun, ResidualActor, Trained
from polopt.policies.unit import UnitPolicy


def guard(cost, cost_before, slack):
    """max(0, Q_0(x, mu) - Q_0(x, mu_0) - slack |Q_0(x, mu_0)|): what the first task loses beyond the slack."""
    return jnp.maximum(cost - cost_before - slack * jnp.abs(cost_before), 0.0)


@part
class Adaptation:
    """The critics, and the residual that one of them moves."""

    trained: Trained = FromRun()
    actor_network: Feedforward = NETWORK
    critic_network: Feedforward = NETWORK
    actor_step: Step = replace(STEP, {"learning_rate": 1e-3})
    critic_step: Step = replace(STEP, {"learning_rate": 1e-3})
    additional: float = hyper(1.0, at_least=0)  # w: weight of the additional task's cost
    kappa: float = hyper(1.0, at_least=0)  # weight of the guard
    slack: float = hyper(0.05, at_least=0)  # share of its cost that the first task may lose
    preparation: int = hyper(1_000, at_least=1)  # updates in which only the critics learn, from what mu_0 does
    critic_steps: int = hyper(5, at_least=1)  # updates of the critic for one of the actor
    tolerance: float = hyper(0.0, at_least=0)  # the actor stays where its gradient is not longer than this
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    tau: float = hyper(0.01, above=0, at_most=1)  # share of the online networks that the targets take in an update

    def refuse(self, env) -> str | None:
        if env.costs != 1:
            return f"adds a task that the environment states as its cost, but {env.name} bears {env.costs} costs. Take an environment with one"
        if not isinstance(env.observation_space, spaces.Box) or spaces.images(env.observation_space):
            return f"takes vector observations, but {env.name} has {env.observation_space}"
        return needs_box(env)

    def init(self, env, key) -> ActorCritic:
        k_actor, k_critic, k_first = jax.random.split(key, 3)
        actor = ResidualActor(self.trained.open(env), self.actor_network, env.observation_space, env.action_space, k_actor)
        critic, first = (ActionValue(self.critic_network, env.observation_space, env.action_space, k) for k in (k_critic, k_first))
        optimisers = {"actor": self.actor_step.init(actor), "critic": self.critic_step.init(critic), "first": self.critic_step.init(first)}
        return ActorCritic(actor, critic, actor, critic, (first, first), optimisers, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return learner.actor(*inputs)

    def policy(self, learner, normaliser):
        return UnitPolicy(learner.actor, normaliser)

    def actor_loss(self, actor, critic, first, batch):
        """L_mu, and the share of states in which the guard acts."""
        action, before = jax.vmap(actor)(*batch.observation), jax.vmap(actor.before)(batch.observation[0])
        cost, lost = (jax.vmap(q)(*batch.observation, action) for q in (critic, first))
        guarded = guard(lost, jax.vmap(first)(*batch.observation, before), self.slack)
        return jnp.mean(cost) + self.kappa * jnp.mean(guarded), jnp.mean((guarded > 0).astype(jnp.float32))

    def update(self, learner, batch, progress, key):
        first, first_target = learner.extra
        count, preparing = learner.count + 1, learner.count < self.preparation

        def fit(critic, target_critic, cost, next_action):
            y = cost + batch.discount * jax.vmap(target_critic)(*batch.next_observation, next_action)

            def loss(q):
                value = jax.vmap(q)(*batch.observation, batch.action)
                return jnp.mean(batch.weight * values.squared(value, y)), y - value

            return jax.value_and_grad(loss, has_aux=True)(critic)

        cost = -batch.reward + self.additional * batch.cost[:, 0]
        (loss, error), gradient = fit(learner.critic, learner.target_critic, cost, jax.vmap(learner.target_actor)(*batch.next_observation))
        before = jax.vmap(learner.actor.before)(batch.next_observation[0])
        _, first_gradient = fit(first, first_target, -batch.reward, before)
        critic, optimisers = descend(self.critic_step, gradient, learner.optimisers, "critic", learner.critic, progress)
        moved, with_first = descend(self.critic_step, first_gradient, optimisers, "first", first, progress)
        moved = (moved, polyak(first_target, moved, self.tau)), with_first
        extra, optimisers = _where(preparing, moved, (learner.extra, optimisers))

        (_, guarded), gradient = jax.value_and_grad(self.actor_loss, has_aux=True)(learner.actor, critic, extra[0], batch)
        length = optax.tree.norm(gradient)
        due = ~preparing & (count % self.critic_steps == 0) & (length > self.tolerance)
        moved = descend(self.actor_step, gradient, optimisers, "actor", learner.actor, progress)
        actor, optimisers = _where(due, moved, (learner.actor, optimisers))
        targets = polyak(learner.target_actor, actor, self.tau), polyak(learner.target_critic, critic, self.tau)
        metrics = {"loss/critic": loss, "gradient_norm": length, "guard": guarded}
        return ActorCritic(actor, critic, *targets, extra, optimisers, count), error, metrics


def _where(choice, a, b):
    return jax.tree.map(lambda x, y: jnp.where(choice, x, y), a, b)


@composition
def apg(task: ControlTask | None = None) -> OffPolicy:
    """APG: learn from the trained policy's steps first, then adapt."""
    return OffPolicy(Adaptation(), GaussianNoise(0.05), warmup=1_000, warmup_actions="policy")
