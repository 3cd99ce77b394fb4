"""The offline loop that learns from more than its log: a diffusion model of the log's sequences makes others, such as the policy in training wants.

The first `preparation` updates fit the model, those left are the host's. Anew after each `lifetime` of these, rounded up to whole iterations,
sequences are drawn; the first ones without guidance, as the policy has learnt nothing yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import to_unit
from polopt.core.parts import hyper, part, replace
from polopt.critics.action_value import polyak
from polopt.data.dataset import DataTask
from polopt.data.replay import Transitions
from polopt.data.segments import Drawn, Segments, longest_piece
from polopt.loops.actor_critic import STEP, needs_box
from polopt.loops.descent import Step
from polopt.loops.offline import FromLog, Offline, State, knowing
from polopt.optim.cosine import Cosine
from polopt.policies.diffusion import Churned, denoise, matching_loss
from polopt.policies.temporal import TemporalUNet

PREPARATION, LENGTH = 100_000, 32  # updates of the model and rows of a sequence, where run and log are long enough
TOGETHER = 64  # sequences drawn at once


class Guidance(Protocol):
    """Where drawn sequences are moved while noise is undone."""

    def __call__(self, denoiser: Callable, likelihood: Callable, is_action, steps: int) -> Callable:
        """The guide of a sampler (see `undone`) from the likelihood of a row; is_action: (d,) which of its columns are the action's."""
        ...


def log_likelihood(actor, vector, action):
    """log pi(a|s) of a unit action; a deterministic actor's is a Gaussian's of deviation 1, but for a constant."""
    found = actor(vector, ())
    return found.log_prob(action) if hasattr(found, "log_prob") else -0.5 * jnp.sum((action - found) ** 2)


class Learner(eqx.Module):
    """The host's learner, the model and its slow copy, what was drawn, how often, and for how many updates; the last losses of the model."""

    host: Any
    network: TemporalUNet
    slow: TemporalUNet
    optimiser: Any
    drawn: Drawn
    sets: jax.Array
    age: jax.Array
    loss: jax.Array


@part
class Augmented(FromLog):
    """A host that learns from the log and from sequences of a model of it, drawn anew as its policy changes. A step of the run is an update."""

    loop: Offline
    guidance: Guidance
    sampler: Churned = Churned()
    channels: int = hyper(1024, at_least=1)  # of the model's first level, twice as many on each further one
    blocks: int = hyper(3, at_least=1)  # its levels
    model_step: Step = Cosine(replace(STEP, {"learning_rate": 2e-3}))
    model_batch: int = hyper(32, at_least=1)  # sequences that the model learns from in an update
    model_tau: float = hyper(0.005, above=0, at_most=1)  # share of the model that its slow copy, which is drawn from, takes in an update
    preparation: int = hyper(PREPARATION, at_least=1)  # updates of the model
    length: int = hyper(LENGTH, at_least=2)  # H + 1: rows of a sequence
    segments: int = hyper(8192, at_least=1)  # sequences in a set
    lifetime: int = hyper(10_000, at_least=1)  # updates of the host after which a new set is drawn
    share: float = hyper(0.9375, at_least=0, at_most=1)  # of each minibatch, that is drawn from the set

    @property
    def rule(self):
        return self.loop.rule

    @property
    def updates(self) -> int:
        return self.loop.updates

    def refuse(self, task) -> str | None:
        data = task.dataset
        if self.preparation >= task.steps:
            return f"fits its model for {self.preparation} updates, but the run has {task.steps}. Give more steps, or set a shorter preparation"
        if spaces.images(data.observation_space):
            return f"models vectors, but {data.name} has pictures. Take bc or iql"
        if self.loop.rewards.n_step > 1:
            return f"draws single steps, but sums rewards over {self.loop.rewards.n_step}. Set n_step to 1"
        if self.length < 2 ** (self.blocks - 1):
            return f"has {self.blocks} blocks, which need sequences of {2 ** (self.blocks - 1)} rows, but length is {self.length}. Set fewer blocks"
        if longest_piece(data.truncated) < self.length:
            return f"takes sequences of {self.length} rows, but {data.name} has none so long without a cut inside. Set a smaller length"
        return needs_box(data) or super().refuse(task)

    def init(self, task: DataTask, key) -> State:
        k_host, k_model = jax.random.split(key)
        state, data = self.loop.init(task, k_host), task.dataset
        size, numbers = spaces.size(data.observation_space), spaces.size(data.action_space)
        network, m = TemporalUNet(size + numbers + 2, self.channels, self.blocks, k_model), self.segments * (self.length - 1)
        drawn = Drawn(jnp.zeros((m, size)), jnp.zeros((m, numbers)), jnp.zeros(m), jnp.zeros(m, bool), jnp.zeros((m, size)))
        counts = jnp.zeros((), jnp.int32), jnp.full((), self.lifetime, jnp.int32)
        learner = Learner(state.learner, network, network, self.model_step.init(network), drawn, *counts, jnp.zeros(()))
        return dataclasses.replace(state, learner=learner)

    def policy(self, state: State):
        return self.rule.policy(state.learner.host, state.normaliser)

    def segmented(self, data, normaliser) -> Segments:
        """The log as the model sees it."""
        vector = jax.vmap(lambda o: normaliser(o)[0])(data.observation)
        action = jax.vmap(lambda a: to_unit(data.action_space, a))(jnp.asarray(data.action))
        return Segments.of(vector, action, self.loop.rewards(data), data.terminated, data.truncated, self.length)

    def fit(self, learner: Learner, segments: Segments, progress, key) -> Learner:
        """One update of the model."""
        k_draw, k_noise = jax.random.split(key)
        clean, keys = segments.drawn(k_draw, self.model_batch), jax.random.split(k_noise, self.model_batch)
        loss, gradient = jax.value_and_grad(lambda f: jnp.mean(jax.vmap(lambda x, k: matching_loss(f, x, k))(clean, keys)))(learner.network)
        network, optimiser = self.model_step.update(gradient, learner.optimiser, learner.network, progress)
        slow = polyak(learner.slow, network, self.model_tau)
        return dataclasses.replace(learner, network=network, slow=slow, optimiser=optimiser, loss=loss)

    def draw(self, learner: Learner, segments: Segments, shape, key) -> Learner:
        """A new set of sequences, guided by the host's actor, whose actions have a shape."""

        def likelihood(row):
            vector, action, *_ = segments.read(row)
            return log_likelihood(learner.host.actor, vector, action.reshape(shape))

        denoiser = lambda x, sigma: denoise(learner.slow, x, sigma)  # noqa: E731
        moved = self.guidance(denoiser, likelihood, segments.is_action, self.sampler.levels)
        guide = lambda i, x, sigma: jnp.where(learner.sets > 0, moved(i, x, sigma), x)  # noqa: E731
        size = self.length, segments.rows.shape[1]
        made = jax.lax.map(lambda k: self.sampler(denoiser, size, k, guide), jax.random.split(key, self.segments), batch_size=TOGETHER)
        return dataclasses.replace(learner, drawn=segments.transitions(made), sets=learner.sets + 1, age=jnp.zeros((), jnp.int32))

    def mixed(self, batch: Transitions, drawn: Drawn, key) -> Transitions:
        """A minibatch of the log with a share of drawn transitions at its head."""
        n = batch.reward.shape[0]
        row, ours = jax.random.randint(key, (n,), 0, drawn.reward.shape[0]), jnp.arange(n) < self.share * n
        some = jax.tree.map(lambda x: x[row], drawn)
        going = self.rule.discount * (1.0 - some.ends)
        made = (some.vector, ()), some.action.reshape(batch.action.shape), some.reward, going, (some.following, ())
        chosen = jax.tree.map(lambda new, old: jnp.where(ours.reshape(n, *(1,) * (old.ndim - 1)), new, old), made, batch[:5])
        return Transitions(*chosen, *batch[5:])

    def step(self, task: DataTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_fit, k_draw, k_learn = jax.random.split(state.key, 4)
        data, done = task.dataset, state.iteration * self.updates
        segments, from_log = self.segmented(data, state.normaliser), self.loop.minibatches(data, state.normaliser)
        rule, progress = knowing(self.rule, data, state.normaliser), jnp.clip(done / task.steps, 0.0, 1.0)
        fits, fitted = jnp.clip(self.preparation - done, 0, self.updates), jnp.clip(done / self.preparation, 0.0, 1.0)

        def learn(i, carry):
            learner, _ = carry
            k_log, k_mix, k_update = jax.random.split(jax.random.fold_in(k_learn, i), 3)
            batch = self.mixed(from_log(k_log), learner.drawn, k_mix)
            host, _, metrics = rule.update(learner.host, batch, progress, k_update)
            return dataclasses.replace(learner, host=host, age=learner.age + 1), metrics

        # Loops of a length that only the program knows, rather than branches, of which seeds that run together would compute both.
        learner = jax.lax.fori_loop(0, fits, lambda i, x: self.fit(x, segments, fitted, jax.random.fold_in(k_fit, i)), state.learner)
        due = ((fits < self.updates) & (learner.age >= self.lifetime)).astype(jnp.int32)
        learner = jax.lax.fori_loop(0, due, lambda _, x: self.draw(x, segments, data.action_space.shape, k_draw), learner)
        none = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), jax.eval_shape(learn, 0, (learner, None))[1])
        learner, metrics = jax.lax.fori_loop(0, self.updates - fits, learn, (learner, none))
        metrics = {**metrics, "loss/model": learner.loss, "sets": learner.sets.astype(jnp.float32)}
        return State(learner, state.normaliser, state.iteration + 1, key), metrics


def augmented(loop: Offline, guidance: Guidance, task: DataTask | None) -> Augmented:
    """A host with a model that is fitted for half of the run at most, to sequences no longer than the log has."""
    if task is None:
        return Augmented(loop, guidance)
    length = max(2, min(LENGTH, longest_piece(task.dataset.truncated)))
    return Augmented(loop, guidance, preparation=min(PREPARATION, max(1, task.steps // 2)), length=length)
