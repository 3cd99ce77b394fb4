"""The on-policy loop: collect, judge, improve.

One iteration acts `num_steps` steps in `num_envs` copies of the environment, estimates advantages, and improves actor and critic
on that data. What a paper changes is a part: the surrogate, the advantage, the improver.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.networks import Network
from polopt.core.normalise import RunningStatistics
from polopt.core.parts import hyper, part
from polopt.critics.value import ValueNetwork
from polopt.envs.task import ControlTask
from polopt.loops.behaviour import Behaviour, Itself
from polopt.loops.layout import each, flat, restart, swap, unroll
from polopt.loops.memory import Memory, NoMemory
from polopt.loops.refusals import several_actions, several_objectives, squashed_without_bounds
from polopt.objectives import divergences, reduction, values
from polopt.policies.actor import Actor, Normaliser, Policy


class Update(NamedTuple):
    """What a surrogate sees of a minibatch of n samples; distributions are batched, `old_` is the policy that collected.

    `multipliers` is what the surrogate itself has learnt by now, () where it learns nothing.
    """

    log_prob: jax.Array
    old_log_prob: jax.Array
    advantage: jax.Array
    distribution: Any
    old_distribution: Any
    multipliers: Any = ()


class Surrogate(Protocol):
    """The policy's loss. `init` gives the state of what adapts, () where nothing does.

    `adapt` gives it for the next iteration, from the mean KL(old || new) of this one and the fraction of the run that is then done.

    A surrogate that learns temperatures or multipliers by the gradient of its own loss also has `multipliers()`, their first values, and
    `project(multipliers)`, which keeps them in their range after each step.
    """

    def init(self) -> Any: ...

    def loss(self, state, update: Update) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of each sample (n,), and diagnostics."""
        ...

    def adapt(self, state, kl: jax.Array, progress: jax.Array) -> Any: ...


class Advantage(Protocol):
    """From time-major (steps, envs) arrays to (advantages, value targets)."""

    discount: float

    def __call__(self, rewards, values, next_values, terminated, ended) -> tuple[jax.Array, jax.Array]: ...


class Improver(Protocol):
    """How the learner is improved on a batch. `init` gives its state: an optimiser's, or () without one.

    The loop gives it what can be differentiated: `loop.loss` of the whole learner, and apart `loop.policy_loss`, `loop.mean_kl`
    and `loop.value_loss`.
    """

    def init(self, learner: Learner) -> Any: ...

    def refuse(self, samples: int) -> str | None:
        """Why it cannot split a batch of so many samples (or sequences); None when it can."""
        ...

    def __call__(self, loop: OnPolicy, state, learner: Learner, surrogate_state, batch: Batch, progress, key) -> tuple[Learner, Any, dict]:
        """(learner, state, diagnostics averaged over the steps)."""
        ...


class Rollout(NamedTuple):
    """Time-major (steps, envs) data; `start` marks the first step of an episode."""

    observation: Any
    final_observation: Any
    raw_action: Any
    distribution: Any
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    start: jax.Array


class Batch(NamedTuple):
    """What the learner learns from: samples (n, ...), or with a recurrent network sequences (envs, steps, ...).

    `memory` (envs, ...) is what the cores remembered at the start of each sequence.
    """

    memory: Any
    inputs: Any
    start: jax.Array
    raw_action: Any
    log_prob: jax.Array
    distribution: Any
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


class Learner(eqx.Module):
    """What the step moves."""

    actor: Actor
    critic: ValueNetwork | None
    multipliers: Any = ()  # the surrogate's, where it learns any


class Acting(NamedTuple):
    """Where acting stands: environments, what each policy core remembers, and the episodes in progress."""

    env: Any
    observation: Any
    start: jax.Array
    memory: Any
    episode_return: jax.Array
    episode_length: jax.Array
    discounted_return: jax.Array


class State(eqx.Module):
    learner: Learner
    improver: Any
    surrogate: Any
    normaliser: Normaliser
    reward_statistics: RunningStatistics
    acting: Acting
    iteration: jax.Array
    key: jax.Array
    behaviour: Any = ()


@part
class OnPolicy:
    """A method of the on-policy family: its parts and its hyperparameters."""

    surrogate: Surrogate
    advantage: Advantage
    improver: Improver
    network: Network = Network()
    critic_network: Network = Network()
    num_envs: int = hyper(8, at_least=1)  # copies of the environment that act at once
    num_steps: int = hyper(128, at_least=1)  # steps each copy acts in an iteration
    critic: bool = True  # learn a value function as baseline
    value_clip: float | None = hyper(None, above=0)  # keep the new value this close to the old one; none to leave it free
    entropy_coefficient: float = hyper(0.0, at_least=0)  # weight of the entropy bonus
    standardise: str = hyper("minibatch", choices=("minibatch", "batch", "none"))  # over what advantages get mean 0 and deviation 1
    normalise_observations: bool = False  # running mean and variance of observations
    normalise_rewards: bool = False  # divide rewards by the running deviation of the discounted return
    bounds: str = hyper("clip", choices=("clip", "squash"))  # how actions are kept inside a box
    log_std: float = 0.0  # initial log standard deviation of continuous actions
    memory: Memory = NoMemory()
    behaviour: Behaviour = Itself()
    measure_kl: bool = False  # report the exact mean KL(old || new) that each iteration spends, at the price of a pass over its data

    # -- the protocol of methods ---------------------------------------------------------------------------------------

    takes = ControlTask
    needs = "an environment (--env)"

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        reason = several_objectives(task.env) or several_actions(task.env) or squashed_without_bounds(task.env, self.bounds)
        if reason:
            return reason
        reason = self.improver.refuse(self.behaviour.batches * (self.num_envs if self.recurrent else self.steps_per_iteration))
        if reason:
            return reason + (" of whole environments, as a recurrent network needs" if self.recurrent else "")
        return None

    @property
    def recurrent(self) -> bool:
        return self.network.core != "none" or (self.critic and self.critic_network.core != "none")

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    def init(self, task: ControlTask, key) -> State:
        k_actor, k_critic, k_env, key = jax.random.split(key, 4)
        env = self.memory.environment(task.env)
        actor = Actor(self.network, env.observation_space, task.env.action_space, self.bounds, self.log_std, k_actor)
        critic = ValueNetwork(self.critic_network, env.observation_space, k_critic) if self.critic else None
        learner = Learner(self.memory.actor(actor, k_actor), critic, self.surrogate.multipliers() if hasattr(self.surrogate, "multipliers") else ())
        statistics = RunningStatistics.start(spaces.size(task.env.observation_space)) if self.normalise_observations else None
        state = State(
            learner=learner,
            improver=self.improver.init(learner),
            surrogate=self.surrogate.init(),
            normaliser=Normaliser(env.observation_space, statistics),
            reward_statistics=RunningStatistics.start(1),
            acting=self._start_acting(task.env, learner, k_env),
            iteration=jnp.zeros((), jnp.int32),
            key=key,
        )
        return dataclasses.replace(state, behaviour=self.behaviour.init(self, task.env, state))

    def step(self, task: ControlTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_collect, k_improve = jax.random.split(state.key, 3)
        before = state.acting
        acting, fresh, episodes = self.behaviour.collect(self, task.env, state, k_collect)
        memory, rollout, behaviour = self.behaviour.recall(self, state, before.memory, fresh)
        batch, reward_statistics, discounted_return, explained = self.judge(state, before._replace(memory=memory), rollout)
        progress = self._progress(task, state.iteration)
        learner, improver, metrics = self.improver(self, state.improver, state.learner, state.surrogate, batch, progress, k_improve)
        if self.measure_kl:
            metrics["kl/iteration"] = self.mean_kl(learner.actor, batch)
        state = State(
            learner=learner,
            improver=improver,
            surrogate=self._adapt_surrogate(state.surrogate, learner, batch, self._progress(task, state.iteration + 1)),
            normaliser=state.normaliser.update(jax.tree.map(flat, fresh.observation)),
            reward_statistics=reward_statistics,
            acting=acting._replace(discounted_return=discounted_return),
            iteration=state.iteration + 1,
            key=key,
            behaviour=behaviour,
        )
        return state, {**episodes, **metrics, "explained_variance": explained}

    def policy(self, state: State) -> Policy:
        return self.memory.policy(state.learner.actor, state.normaliser)

    def refresh(self, task: ControlTask, state: State) -> State:
        """The state with new episodes begun from its own key: what follows a checkpoint where environments live on the host."""
        key, k_env = jax.random.split(state.key)
        return eqx.tree_at(lambda s: (s.acting, s.key), state, (self._start_acting(task.env, state.learner, k_env), key))

    # -- one iteration -------------------------------------------------------------------------------------------------

    def _start_acting(self, env, learner: Learner, key) -> Acting:
        env_state, observation = self.memory.environment(env).reset(key, self.num_envs)
        zeros = jnp.zeros((self.num_envs,))
        memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_envs, *x.shape)), _initial_memory(learner))
        return Acting(env_state, observation, jnp.ones((self.num_envs,), bool), memory, zeros, zeros, zeros)

    def collect(self, env, state: State, key) -> tuple[Acting, Rollout, dict[str, jax.Array]]:
        """Act for `num_steps` steps: where acting stands after it, the data, and sums over the episodes that ended."""
        env = self.memory.environment(env)
        keys = jax.random.split(key, (self.num_steps, 2))
        acting, (rollout, finished) = jax.lax.scan(lambda acting, k: self.act(env, state, state.learner.actor, acting, k), state.acting, keys)
        return acting, rollout, jax.tree.map(jnp.sum, finished)

    def act(self, env, state: State, actor: Actor, acting: Acting, keys):
        """One step of all copies with an actor's draws: where acting stands after it, and its data with sums over the episodes that ended.

        `env` is the environment as the memory has it.
        """
        k_action, k_env = keys
        critic = state.learner.critic
        memory = restart(acting.start, _initial_memory(state.learner), acting.memory)
        inputs = jax.vmap(state.normaliser)(acting.observation)
        actor_memory, distribution = jax.vmap(actor)(memory[0], *inputs)
        critic_memory = memory[1] if critic is None or not self.recurrent else jax.vmap(critic)(memory[1], *inputs)[0]
        raw = distribution.sample(k_action)
        env_state, after = env.step(acting.env, jax.vmap(lambda d, r: d.action(r))(distribution, raw), k_env)
        ended = after.terminated | after.truncated
        episode_return, length = acting.episode_return + after.reward, acting.episode_length + 1
        finished = {
            "episode/return": jnp.sum(jnp.where(ended, episode_return, 0.0)),
            "episode/length": jnp.sum(jnp.where(ended, length, 0.0)),
            "episode/count": jnp.sum(ended).astype(jnp.float32),
        }
        seen = (acting.observation, after.final_observation)
        rollout = Rollout(*seen, raw, distribution, after.reward, after.terminated, after.truncated, acting.start)
        zero = jnp.zeros_like(length)
        nxt = Acting(
            env_state,
            after.observation,
            ended,
            (actor_memory, critic_memory),
            jnp.where(ended, zero, episode_return),
            jnp.where(ended, zero, length),
            acting.discounted_return,
        )
        return nxt, (rollout, finished)

    def judge(self, state: State, before: Acting, rollout: Rollout):
        """Values, advantages and targets of a rollout, as the batch that `improve` learns from.

        A rollout may hold several batches beside each other; the first `num_envs` columns are the new one.
        """
        learner = state.learner
        inputs, final_inputs = (each(state.normaliser, seen) for seen in (rollout.observation, rollout.final_observation))
        memory = before.memory
        distribution = rollout.distribution
        ended = rollout.terminated | rollout.truncated
        if learner.critic is None:
            old_values = next_values = jnp.zeros_like(rollout.reward)
        else:
            memories, old_values = unroll(learner.critic, memory[1], inputs, rollout.start)
            next_values = each(lambda m, vector, pictures: learner.critic(m, vector, pictures)[1], memories, *final_inputs)
        rewards, statistics, discounted_return = self._scale_rewards(state.reward_statistics, before.discounted_return, rollout.reward, ended)
        advantages, targets = self.advantage(rewards, old_values, next_values, rollout.terminated, ended)
        log_prob = each(lambda d, raw: d.log_prob(raw), distribution, rollout.raw_action)
        if self.standardise == "batch":
            advantages = reduction.standardise(advantages)
        explained = 1 - jnp.var(targets - old_values) / (jnp.var(targets) + 1e-8)
        data = (inputs, rollout.start, rollout.raw_action, log_prob, distribution, old_values, advantages, targets)
        return Batch(memory if self.recurrent else (), *self.batch_major(data)), statistics, discounted_return, explained

    def _scale_rewards(self, statistics, discounted_return, rewards, ended):
        if not self.normalise_rewards:
            return rewards, statistics, discounted_return
        new = discounted_return.shape[0]

        def accumulate(running, step):
            reward, end = step
            running = running * self.advantage.discount + reward
            return jnp.where(end, 0.0, running), running

        discounted_return, returns = jax.lax.scan(accumulate, discounted_return, (rewards[:, :new], ended[:, :new]), unroll=8)
        statistics = statistics.update(returns.reshape(-1, 1))
        return jnp.clip(rewards / jnp.sqrt(statistics.variance[0] + 1e-8), -10.0, 10.0), statistics, discounted_return

    # -- what improvers differentiate ----------------------------------------------------------------------------------

    def loss(self, learner: Learner, surrogate_state, batch: Batch, value_coefficient) -> tuple[jax.Array, dict[str, jax.Array]]:
        """policy_loss + value_coefficient * value_loss, with diagnostics."""
        total, metrics = self.policy_loss(learner.actor, surrogate_state, batch, learner.multipliers)
        if learner.critic is not None:
            value_loss = self.value_loss(learner.critic, batch)
            total = total + value_coefficient * value_loss
            metrics["loss/value"] = value_loss
        return total, metrics

    def project(self, learner: Learner) -> Learner:
        """The learner with its multipliers in their range."""
        if not jax.tree.leaves(learner.multipliers):
            return learner
        return eqx.tree_at(lambda x: x.multipliers, learner, self.surrogate.project(learner.multipliers))

    def policy_loss(self, actor: Actor, surrogate_state, batch: Batch, multipliers=()) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean surrogate - entropy_coefficient * entropy, with diagnostics."""
        update = self.update(actor, batch)._replace(multipliers=multipliers)
        surrogate, metrics = self.surrogate.loss(surrogate_state, update)
        surrogate = jnp.mean(surrogate)
        entropy = jnp.mean(jax.vmap(lambda d: d.entropy())(self.memory.acting(update.distribution)))
        metrics = {
            "loss/policy": surrogate,
            "entropy": entropy,
            "kl": jnp.mean(divergences.k3(update.old_log_prob, update.log_prob)),
            "ratio_deviation": jnp.mean(jnp.abs(jnp.exp(update.log_prob - update.old_log_prob) - 1)),
            **metrics,
        }
        loss, more = self.memory.regularised(surrogate - self.entropy_coefficient * entropy, update.distribution)
        return loss, {**metrics, **more}

    def update(self, actor: Actor, batch: Batch) -> Update:
        """What a surrogate sees of a batch, as samples (n, ...)."""
        distribution = self.forward(actor, 0, batch)
        raw, old_log_prob, old_distribution, advantages = self.samples((batch.raw_action, batch.log_prob, batch.distribution, batch.advantage))
        if self.standardise == "minibatch":
            advantages = reduction.standardise(advantages)
        log_prob = jax.vmap(lambda d, r: d.log_prob(r))(distribution, raw)
        return Update(log_prob, old_log_prob, advantages, distribution, old_distribution)

    def value_loss(self, critic: ValueNetwork, batch: Batch) -> jax.Array:
        """Half the mean squared error to the targets, clipped around the old values if `value_clip` says so."""
        new_values = self.values(critic, batch)
        old_values, targets = self.samples((batch.value, batch.target))
        if self.value_clip is None:
            return jnp.mean(values.squared(new_values, targets))
        return jnp.mean(values.clipped_squared(new_values, old_values, targets, self.value_clip))

    def values(self, critic: ValueNetwork, batch: Batch) -> jax.Array:
        """The critic's values of the batch as samples (n,)."""
        return self.forward(critic, 1, batch)

    def mean_kl(self, actor: Actor, batch: Batch) -> jax.Array:
        """The exact KL(old || new), averaged over the states of the batch."""
        old, new = self.samples(batch.distribution), self.forward(actor, 0, batch)
        return jnp.mean(jax.vmap(lambda o, n: o.kl(n))(old, new))

    def _progress(self, task, iteration):
        """The fraction of the run that is done before an iteration."""
        return jnp.clip(iteration * self.steps_per_iteration / task.steps, 0.0, 1.0)

    def _adapt_surrogate(self, surrogate_state, learner: Learner, batch: Batch, progress):
        """What adapts in the surrogate, told the mean KL over the whole batch after the last step."""
        if not jax.tree.leaves(surrogate_state):
            return surrogate_state
        return self.surrogate.adapt(surrogate_state, self.mean_kl(learner.actor, batch), progress)

    def forward(self, model, which: int, batch: Batch):
        """A network's outputs on a batch as samples (n, ...); `which` of the remembered carries is its own."""
        if not self.recurrent:
            return jax.vmap(lambda vector, pictures: model((), vector, pictures)[1])(*batch.inputs)
        inputs, start = jax.tree.map(swap, (batch.inputs, batch.start))
        return jax.tree.map(flat, unroll(model, batch.memory[which], inputs, start)[1])

    def samples(self, data):
        """Data of a batch as samples (n, ...), in the order of `forward`."""
        return jax.tree.map(lambda x: flat(swap(x)), data) if self.recurrent else data

    def as_batch(self, samples):
        """Samples (n, ...) as a batch has them: the inverse of `samples`."""
        if not self.recurrent:
            return samples
        return jax.tree.map(lambda x: swap(x.reshape(self.num_steps, x.shape[0] // self.num_steps, *x.shape[1:])), samples)

    def time_major(self, data):
        """Data of a batch as (steps, envs, ...)."""
        return jax.tree.map(lambda x: swap(x) if self.recurrent else x.reshape(self.num_steps, x.shape[0] // self.num_steps, *x.shape[1:]), data)

    def batch_major(self, data):
        """Data (steps, envs, ...) as a batch has it."""
        return jax.tree.map(swap if self.recurrent else flat, data)


def _initial_memory(learner: Learner):
    return learner.actor.torso.initial(), () if learner.critic is None else learner.critic.torso.initial()
