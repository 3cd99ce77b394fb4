"""The loop of whole episodes, for policy gradients without a critic whose ascent decides at which parameters to act.

One iteration gives the ascent a function `sample`, which acts a batch of fresh episodes with any actor, and the estimators below. What a paper
changes is the ascent: where it samples, what it makes of the estimates, how far it goes. With tau an episode of the actor theta:

    G_t           = sum_{h>=t} gamma^h r_h                     from the start's point of view: gamma^h, not gamma^(h-t)
    Phi(tau)      = sum_t G_t log pi(a_t|s_t)
    gradient      = grad Phi(tau)                              GPOMDP; its mean is the gradient of J = E[ sum_t gamma^t r_t ]
    Hessian times u = (grad log p(tau) . u) grad Phi + (grad^2 Phi) u        log p(tau) = sum_t log pi(a_t|s_t), up to the environment's part

An episode ends where the environment ends it, by itself or by a time limit, or after `horizon` steps. There its return and its score end: no value
stands for what might have followed, and what the environment does behind it is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Network
from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops import layout
from polopt.loops.refusals import several_actions, several_objectives, squashed_without_bounds
from polopt.policies.actor import Actor, Normaliser
from polopt.policies.deployed import ActorPolicy


class Trajectories(NamedTuple):
    """N episodes of T steps each, (N, T, ...). Behind an episode's end everything is 0, and `mask` is False.

    inputs: what the actor saw, as (vector, pictures); action: what the environment got, as a vector; cost: (N, T, costs).
    """

    inputs: Any
    raw_action: Any
    action: jax.Array
    reward: jax.Array
    cost: jax.Array
    mask: jax.Array


Sample = Callable[[Actor, jax.Array], Trajectories]
"""`sample(actor, key)`: fresh episodes of an actor. To be called outside of transformed functions, as often as `batches` says."""


class Ascent(Protocol):
    """How parameters climb. `batches` is how many times it samples in an iteration."""

    batches: int

    def refuse(self, loop: Episodes, task: ControlTask) -> str | None:
        """Why it cannot take the task; None when it can."""
        ...

    def init(self, loop: Episodes, task: ControlTask, key) -> Any:
        """Its state, actors included; `loop.actor(task.env, key)` makes one."""
        ...

    def actor(self, state) -> Actor:
        """The actor that is deployed, as a part of the state: states of several seeds may come stacked."""
        ...

    def __call__(self, loop: Episodes, sample: Sample, state, progress, key) -> tuple[Any, dict[str, jax.Array]]:
        """(state, diagnostics); `progress` is the fraction of the run that is done."""
        ...


class State(eqx.Module):
    """`env` is the newest state of an environment on the host, None of one in JAX."""

    ascent: Any
    env: Any
    normaliser: Normaliser
    iteration: jax.Array
    key: jax.Array


@part
class Episodes:
    """A method that learns from whole episodes: its ascent and its hyperparameters."""

    ascent: Ascent
    network: Network = Network()
    num_envs: int = hyper(1, at_least=1)  # episodes in a batch
    horizon: int = hyper(200, at_least=1)  # steps after which an episode is cut
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma: weight of the next reward
    baseline: bool = False  # subtract the mean return from the same step on of the other episodes in the batch
    bounds: str = hyper("clip", choices=("clip", "squash"))  # how actions are kept inside a box
    log_std: float = 0.0  # initial log standard deviation of continuous actions

    # -- the protocol of methods ---------------------------------------------------------------------------------------

    takes = ControlTask
    needs = "an environment (--env)"

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        env = task.env
        reason = several_objectives(env) or several_actions(env) or squashed_without_bounds(env, self.bounds)
        if reason:
            return reason
        if self.baseline and self.num_envs < 2:
            return "has a baseline from the other episodes of a batch of one. Set num_envs to at least 2, or baseline to false"
        return self.ascent.refuse(self, task)

    @property
    def steps_per_iteration(self) -> int:
        """At most: an episode that ends early leaves the rest of its steps unused."""
        return self.ascent.batches * self.num_envs * self.horizon

    def init(self, task: ControlTask, key) -> State:
        k_ascent, k_env, key = jax.random.split(key, 3)
        env = task.env.reset(k_env, self.num_envs)[0] if task.env.host else None
        ascent = self.ascent.init(self, task, k_ascent)
        return State(ascent, env, Normaliser(task.env.observation_space, None), jnp.zeros((), jnp.int32), key)

    def step(self, task: ControlTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_ascent = jax.random.split(state.key)
        env, acted = state.env, []

        def sample(actor, key):
            nonlocal env
            env, trajectories = self.act(task.env, env, state.normaliser, actor, key)
            acted.append(trajectories)
            return trajectories

        progress = jnp.clip(state.iteration * self.steps_per_iteration / task.steps, 0.0, 1.0)
        ascent, metrics = self.ascent(self, sample, state.ascent, progress, k_ascent)
        episodes = {
            "episode/return": sum(jnp.sum(t.reward) for t in acted),
            "episode/length": sum(jnp.sum(t.mask) for t in acted).astype(jnp.float32),
            "episode/count": jnp.float32(len(acted) * self.num_envs),
        }
        return State(ascent, env, state.normaliser, state.iteration + 1, key), {**episodes, **metrics}

    def policy(self, state: State) -> ActorPolicy:
        return ActorPolicy(self.ascent.actor(state.ascent), state.normaliser)

    def refresh(self, task: ControlTask, state: State) -> State:
        """What follows a checkpoint: no episode is in progress between iterations, but simulators on the host must have been started."""
        if not task.env.host:
            return state
        key, k_env = jax.random.split(state.key)
        return eqx.tree_at(lambda s: (s.env, s.key), state, (task.env.reset(k_env, self.num_envs)[0], key))

    # -- acting --------------------------------------------------------------------------------------------------------

    def actor(self, env, key) -> Actor:
        return Actor(self.network, env.observation_space, env.action_space, self.bounds, self.log_std, key)

    def act(self, env, before, normaliser: Normaliser, actor: Actor, key) -> tuple[Any, Trajectories]:
        """One batch of fresh episodes, and the last state of an environment on the host; `before` is the one that these follow."""
        k_reset, k_act = jax.random.split(key)
        env_state, observation = env.reset(k_reset, self.num_envs, *((before,) if env.host else ()))
        memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_envs, *x.shape)), actor.torso.initial())

        def act(carry, keys):
            env_state, observation, memory, going = carry
            k_action, k_env = keys
            inputs = _where(going, jax.vmap(normaliser)(observation))
            memory, distribution = jax.vmap(actor)(memory, *inputs)
            raw = _where(going, distribution.sample(k_action))
            action = jax.vmap(lambda d, r: d.action(r))(distribution, raw)
            env_state, after = env.step(env_state, action, k_env)
            vector = jax.vmap(lambda a: spaces.flatten(env.action_space, a)[0])(action)
            reward, cost = _where(going, (after.reward, after.cost))
            going_on = going & ~(after.terminated | after.truncated)
            return (env_state, after.observation, memory, going_on), Trajectories(inputs, raw, _where(going, vector), reward, cost, going)

        start = (env_state, observation, memory, jnp.ones((self.num_envs,), bool))
        (env_state, *_), trajectories = jax.lax.scan(act, start, jax.random.split(k_act, (self.horizon, 2)))
        return env_state if env.host else None, jax.tree.map(layout.swap, trajectories)

    # -- estimators ----------------------------------------------------------------------------------------------------

    def distributions(self, actor: Actor, trajectories: Trajectories):
        """The actor's distribution at every step, (N, T)."""
        if actor.torso.core is None:
            return layout.each(lambda vector, pictures: actor((), vector, pictures)[1], *trajectories.inputs)
        return jax.vmap(lambda inputs: jax.lax.scan(lambda memory, x: actor(memory, *x), actor.torso.initial(), inputs)[1])(trajectories.inputs)

    def log_probs(self, actor: Actor, trajectories: Trajectories) -> jax.Array:
        """log pi(a_t|s_t), (N, T)."""
        found = jax.vmap(jax.vmap(lambda d, raw: d.log_prob(raw)))(self.distributions(actor, trajectories), trajectories.raw_action)
        return jnp.where(trajectories.mask, found, 0.0)

    def log_prob(self, actor: Actor, trajectories: Trajectories) -> jax.Array:
        """log p(tau) without the environment's part, (N,)."""
        return jnp.sum(self.log_probs(actor, trajectories), axis=1)

    def entropies(self, actor: Actor, trajectories: Trajectories) -> jax.Array:
        """The entropy of pi(.|s_t), (N, T)."""
        found = jax.vmap(jax.vmap(lambda d: d.entropy()))(self.distributions(actor, trajectories))
        return jnp.where(trajectories.mask, found, 0.0)

    def discounted(self, x: jax.Array) -> jax.Array:
        """gamma^t x_t of (N, T)."""
        return x * jnp.power(self.discount, jnp.arange(x.shape[1], dtype=x.dtype))[None]

    def value(self, trajectories: Trajectories, rewards=None) -> jax.Array:
        """J: the mean of sum_t gamma^t r_t."""
        return jnp.mean(jnp.sum(self.discounted(trajectories.reward if rewards is None else rewards), axis=1))

    def credit(self, trajectories: Trajectories, rewards=None) -> jax.Array:
        """G_t, less the baseline, (N, T)."""
        rewards = self.discounted(trajectories.reward if rewards is None else rewards)
        returns = jnp.flip(jnp.cumsum(jnp.flip(rewards, axis=1), axis=1), axis=1)
        if not self.baseline:
            return returns
        going = trajectories.mask.astype(returns.dtype)
        others = jnp.sum(going, axis=0, keepdims=True) - going
        return returns - (jnp.sum(returns * going, axis=0, keepdims=True) - returns * going) / jnp.maximum(others, 1.0)

    def gradient(self, actor: Actor, trajectories: Trajectories, rewards=None, weights=None) -> Actor:
        """The mean of weight grad Phi(tau) over the batch, at `actor`, an estimate of the gradient of J, or of the value of other rewards (N, T).

        weights: (N,), p_actor(tau) / p_sampled(tau) where another actor has acted; None for 1.
        """
        credit = jax.lax.stop_gradient(self.credit(trajectories, rewards))

        def phi(actor):
            found = jnp.sum(credit * self.log_probs(actor, trajectories), axis=1)
            return jnp.mean(found if weights is None else weights * found)

        return jax.grad(phi)(actor)

    def weights(self, actor: Actor, sampled: Actor, trajectories: Trajectories) -> jax.Array:
        """p_actor(tau) / p_sampled(tau), (N,), of episodes that `sampled` has acted."""
        return jnp.exp(self.log_prob(actor, trajectories) - self.log_prob(sampled, trajectories))

    def hessian_product(self, actor: Actor, trajectories: Trajectories, direction: Actor) -> Actor:
        """An estimate of the Hessian of J times `direction`, at the actor that has acted: the derivative of the weighted gradient along it."""

        def weighted(there):
            return self.gradient(there, trajectories, weights=self.weights(there, jax.lax.stop_gradient(actor), trajectories))

        return jax.jvp(weighted, (actor,), (direction,))[1]


def fitting_network(task: ControlTask | None) -> Network:
    """A softmax table where states are numbered, and the usual hidden layers else."""
    numbered = task is not None and isinstance(task.env.observation_space, spaces.Discrete)
    return Network(hidden=()) if numbered else Network()


def _where(going, tree):
    """The arrays of a tree with 0 where an episode is over."""
    return jax.tree.map(lambda x: jnp.where(going.reshape(going.shape + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x)), tree)
