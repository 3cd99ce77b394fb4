"""What actor-critic rules share: their learner, their default step and networks, and one step along a gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Feedforward
from polopt.objectives import values
from polopt.optim.adam import Adam

NETWORK = Feedforward(hidden=(256, 256), activation="relu")
STEP = Adam(learning_rate=3e-4, anneal=False, max_grad_norm=None, epsilon=1e-8)


class ActorCritic(eqx.Module):
    """Networks, their slow copies, what else a rule learns, the state of each optimiser by name, and how often it was updated."""

    actor: Any
    critic: Any
    target_actor: Any
    target_critic: Any
    extra: Any
    optimisers: dict[str, Any]
    count: jax.Array


def needs_box(env) -> str | None:
    """Why a rule of continuous actions cannot learn in an environment or from a dataset; None when it can."""
    if isinstance(env.action_space, spaces.Box):
        return None
    others = "dqn or ppo" if hasattr(env, "reset") else "bc, iql or cql"  # a dataset has spaces and a name, but nothing to act in
    return f"takes actions of a box, but {env.name} has {env.action_space}. Take {others}"


def descend(step, gradient, optimisers: dict, name: str, params, progress):
    """One step of the parameters called `name`: (params, optimisers)."""
    params, state = step.update(gradient, optimisers[name], params, progress)
    return params, {**optimisers, name: state}


def regress(critic, batch, target):
    """The weighted loss of an ensemble Q(s, a) against targets (n,), and the values (n, members)."""
    value = jax.vmap(critic)(*batch.observation, batch.action)
    loss = values.squared(value, jax.lax.stop_gradient(target)[:, None])
    return jnp.mean(batch.weight * jnp.sum(loss, axis=1)), value


class Hosted:
    """Base of a rule that learns beside another one, its `host`, which acts and is deployed."""

    host: Any

    @property
    def discount(self):
        return self.host.discount

    def refuse(self, env) -> str | None:
        return self.host.refuse(env)

    def act(self, learner, inputs, key):
        return self.host.act(learner, inputs, key)

    def policy(self, learner, normaliser):
        return self.host.policy(learner, normaliser)


class Draw(NamedTuple):
    """What a stochastic actor does in n states: unit actions, what they were before tanh, their log-probabilities, and the distributions."""

    action: jax.Array
    raw: jax.Array
    log_prob: jax.Array
    distribution: Any


def draw(actor, inputs, key) -> Draw:
    """Reparameterised actions of a stochastic actor for network inputs with a leading axis."""

    def one(key, vector, pictures):
        distribution = actor(vector, pictures)
        raw = distribution.sample(key)
        return Draw(distribution.action(raw), raw, distribution.log_prob(raw), distribution)

    return jax.vmap(one)(jax.random.split(key, inputs[0].shape[0]), *inputs)
