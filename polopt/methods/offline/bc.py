"""Efficient Training of Artificial Neural Networks for Autonomous Navigation.

Dean A. Pomerleau. 1991. Neural Computation 3.

Behavioural cloning: do what the log did. No reward is read, so that the policy is at best as good as who made the data.

    L_pi = -E_D[ log pi(a|s) ]

pi is a Gaussian with tanh on its mean and a deviation that no state changes, or the categorical of the action space. It is the baseline
of every method of this family, and the weighted loss here is the step by which several of them extract their policy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.core.parts import part
from polopt.data.dataset import DataTask
from polopt.loops.actor_critic import NETWORK, STEP, ActorCritic, descend
from polopt.loops.descent import Step
from polopt.loops.offline import Offline, Unused
from polopt.methods.registry import composition
from polopt.policies.cloned import ClonedActor, ClonedPolicy


def cloning_loss(actor, batch, weight):
    """-E[ weight log pi(a|s) ], the weights (n,) held fixed."""
    log_prob = jax.vmap(lambda vector, pictures, action: actor(vector, pictures).log_prob(action))(*batch.observation, batch.action)
    return -jnp.mean(jax.lax.stop_gradient(weight) * log_prob)


def one_action(env) -> str | None:
    """Why a rule that fits a density of actions cannot learn from the data; None when it can."""
    if isinstance(env.action_space, spaces.Dict):
        return f"takes one action, but {env.name} has a dict of them. Make one array of them"
    return None


@part
class Cloning:
    """An actor of the highest likelihood."""

    network: Feedforward = NETWORK
    step: Step = STEP

    discount = 1.0

    def refuse(self, env) -> str | None:
        return one_action(env)

    def init(self, env, key) -> ActorCritic:
        actor = ClonedActor(self.network, env.observation_space, env.action_space, key)
        return ActorCritic(actor, (), (), (), (), {"actor": self.step.init(actor)}, jnp.zeros((), jnp.int32))

    def act(self, learner, inputs, key):
        return learner.actor(*inputs).sample(key)

    def policy(self, learner, normaliser):
        return ClonedPolicy(learner.actor, normaliser)

    def update(self, learner, batch, progress, key):
        loss, gradient = jax.value_and_grad(cloning_loss)(learner.actor, batch, batch.weight)
        actor, optimisers = descend(self.step, gradient, learner.optimisers, "actor", learner.actor, progress)
        return ActorCritic(actor, (), (), (), (), optimisers, learner.count + 1), jnp.zeros(batch.reward.shape), {"loss/policy": loss}


@composition
def bc(task: DataTask | None = None) -> Offline:
    """Behavioural cloning."""
    return Offline(Cloning(), Unused())
