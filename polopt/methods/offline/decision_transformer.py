"""Decision Transformer: Reinforcement Learning via Sequence Modeling.

Lili Chen, Kevin Lu, Aravind Rajeswaran, Kimin Lee, Aditya Grover, Michael Laskin, et al. 2021. arXiv:2106.01345

A causal transformer continues logged sequences of returns to go, states and actions. In deployment it is asked for a return, and continues with the
actions that led to such returns.

    R_t = sum_{u >= t} r_u,    tokens  R_{t-K+1}, s_{t-K+1}, a_{t-K+1}, ..., R_t, s_t
    L_pi = -log pi(a_u | tokens up to s_u), averaged over the K steps
    deployed:  R_1 = target,   R_{t+1} = R_t - r_t

A deployed policy sees no reward here, only what follows its action; so r_t is that of a model r(s, a, s'), which is fitted to the log beside
the transformer and carried in the policy. Other choices than the paper's: sines of the step rather than a learnt table, no dropout, a Gaussian of
a learnt deviation for a box (the paper has the squared loss of its mean), returns divided by the largest of the log. Defaults: K = 20, 3 blocks of
width 128 and one head, Adam 1e-4, gradients clipped at .25, minibatches of 64. Without a target it is the return of the best logged episode.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import encoded
from polopt.core.attention import Transformer
from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import STEP, ActorCritic, descend
from polopt.loops.descent import Step
from polopt.loops.windows import OfflineWindows, episode_outcomes, outcomes
from polopt.methods.offline.bc import one_action
from polopt.methods.registry import composition
from polopt.objectives import values
from polopt.policies.conditioned import RewardModel, SequenceActor, SequencePolicy


class Asked(NamedTuple):
    """The return to ask for, and what returns are divided by."""

    target: jax.Array
    scale: jax.Array


def asked(data, target: float | None) -> Asked:
    """The target, by default the return of the best episode, and the largest return to go of the log."""
    best = jnp.max(episode_outcomes(data)[0]) if target is None else jnp.asarray(target, jnp.float32)
    return Asked(best, jnp.max(jnp.abs(outcomes(data.reward, data.ended)[0])) + 1e-6)


def vectors_only(data) -> str | None:
    """Why a model of sequences of vectors cannot learn from a dataset; None when it can."""
    if spaces.images(data.observation_space):
        return f"takes vectors, but {data.name} has pictures. Take bc or rvs"
    return one_action(data)


def encoded_actions(actor, action):
    """(n, K, k) actions as tokens take them."""
    return jax.vmap(jax.vmap(lambda a: jnp.ravel(encoded(actor.action_space, a)).astype(jnp.float32)))(action)


def sequence_loss(actor, batch, scale):
    """-log pi(a_u | tokens up to s_u), averaged over the steps that are inside their episode."""

    def one(to_go, states, action, tokens, step, mask):
        found = actor(to_go / scale, states, tokens, step, mask)
        return jax.vmap(lambda d, a: d.log_prob(a))(found, action)

    given = batch.to_go, batch.inputs[0], batch.action, encoded_actions(actor, batch.action), batch.step, batch.mask
    return -jnp.sum(batch.mask * jax.vmap(one)(*given)) / jnp.sum(batch.mask)


def reward_loss(model, actor, batch):
    """The squared error of the reward model over the same steps."""
    said = jax.vmap(jax.vmap(model))(batch.inputs[0], encoded_actions(actor, batch.action), batch.next_inputs[0])
    return jnp.sum(values.squared(said, batch.reward, mask=batch.mask)) / jnp.sum(batch.mask)


@part
class ReturnToGo:
    """A transformer over returns to go, states and actions, and a model of the reward."""

    context: int = hyper(20, at_least=1)  # K: steps that it sees
    width: int = hyper(128, at_least=2)  # of a token
    layers: int = hyper(3, at_least=1)  # blocks
    heads: int = hyper(1, at_least=1)  # of attention
    reward_network: Feedforward = Feedforward(hidden=(128, 128), activation="relu")
    step: Step = replace(STEP, {"learning_rate": 1e-4, "max_grad_norm": 0.25})
    reward_step: Step = STEP
    target: float | None = None  # return to ask for; none for the best logged episode's

    def refuse(self, data) -> str | None:
        if self.width % (2 * self.heads):
            return f"has tokens of width {self.width}, but {self.heads} heads need a multiple of {2 * self.heads}. Set another width"
        return vectors_only(data)

    def init(self, data, key) -> ActorCritic:
        k_actor, k_reward = jax.random.split(key)
        network = lambda key: Transformer(self.width, self.layers, self.heads, key)  # noqa: E731
        actor = SequenceActor(data.observation_space, data.action_space, self.width, network, k_actor)
        model = RewardModel(self.reward_network, data.observation_space, data.action_space, k_reward)
        optimisers = {"actor": self.step.init(actor), "reward": self.reward_step.init(model)}
        return ActorCritic(actor, model, (), (), asked(data, self.target), optimisers, jnp.zeros((), jnp.int32))

    def policy(self, learner, normaliser):
        return SequencePolicy(learner.actor, normaliser, learner.critic, learner.extra.target, learner.extra.scale, self.context)

    def update(self, learner, batch, progress, key):
        loss, gradient = jax.value_and_grad(sequence_loss)(learner.actor, batch, learner.extra.scale)
        actor, optimisers = descend(self.step, gradient, learner.optimisers, "actor", learner.actor, progress)
        error, gradient = jax.value_and_grad(reward_loss)(learner.critic, learner.actor, batch)
        model, optimisers = descend(self.reward_step, gradient, optimisers, "reward", learner.critic, progress)
        learner = ActorCritic(actor, model, (), (), learner.extra, optimisers, learner.count + 1)
        return learner, {"loss/policy": loss, "loss/reward": error}


@composition
def decision_transformer(task: DataTask | None = None) -> OfflineWindows:
    """Decision Transformer."""
    return OfflineWindows(ReturnToGo())
