"""Reward models learnt from preferences, one or an ensemble.

    r_i(x, y) = head_i( trunk(x, y) )          i = 1 ... k

The trunk is the task's model, read on the last token of a response (`embed`); the heads are new. Members share the data and the trunk they
start from, and differ in the head's first weights and in the order of the data. Comparisons leave a constant and, between members, a scale
free, so each member's rewards are brought to mean 0 and deviation 1 on the responses of the last iteration before they are put together.
"""

from __future__ import annotations

from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.networks import Feedforward, Linear, Torso
from polopt.core.parts import hyper, part
from polopt.data.prompts import Graded
from polopt.loops.preference import AllPairs, Columns, Data, Fit, Groups, Link, Minibatches
from polopt.loops.preference_sources import Logged
from polopt.objectives.preferences import bradley_terry
from polopt.optim.adam import Adam
from polopt.policies.language.protocol import trainable


class Member(eqx.Module):
    """One reward model."""

    trunk: Any
    torso: Torso
    head: Linear

    def __call__(self, prompts, index, tokens, mask) -> jax.Array:
        """(N,): the rewards of completions of prompts `index`."""
        read = self.trunk.embed(prompts.tokens[index], prompts.mask[index], tokens, mask)
        return jax.vmap(lambda x: self.head(self.torso((), x, ())[1])[0])(read.astype(jnp.float32))


class Aggregate(Protocol):
    """One reward (N,) from those of k members (k, N)."""

    def __call__(self, rewards) -> jax.Array: ...


@part
class First:
    """The first member's reward."""

    def __call__(self, rewards):
        return rewards[0]


class RewardEnsemble(eqx.Module):
    """A verifier made of reward models: parameters of k members along the first axis, the rest shared."""

    params: Any
    rest: Any
    mean: jax.Array  # (k,)
    deviation: jax.Array  # (k,)
    aggregate: Aggregate
    host = False

    def members(self, prompts, index, tokens, mask) -> jax.Array:
        """(k, N): the rewards of each member, on the common scale."""
        raw = jax.vmap(lambda params: eqx.combine(params, self.rest)(prompts, index, tokens, mask))(self.params)
        return (raw - self.mean[:, None]) / self.deviation[:, None]

    def __call__(self, prompts, index, tokens, mask) -> Graded:
        reward = self.aggregate(self.members(prompts, index, tokens, mask))
        return Graded(reward, jnp.isfinite(reward))


@part
class BradleyTerry:
    """-log sigmoid(r_w - r_l - offset) + penalty (r_w^2 + r_l^2) of pairs; equal ones count as half of each order."""

    offset: float = 0.0  # by how much the better response must be better
    penalty: float = hyper(1e-3, at_least=0)  # pins the scale, and the constant that comparisons leave free

    anchors = ()
    responses = 2

    def __call__(self, columns: Columns):
        first, second = columns.log_prob[:, 0], columns.log_prob[:, 1]
        won = 0.5 + 0.5 * columns.order
        terms = (bradley_terry(a, b, offset=self.offset, penalty=self.penalty) for a, b in ((first, second), (second, first)))
        return won * next(terms) + (1 - won) * next(terms)

    def metrics(self, columns, real):
        ordered = real & (columns.order != 0)
        h = columns.order * (columns.log_prob[:, 0] - columns.log_prob[:, 1])
        count = jnp.maximum(ordered.sum(), 1)
        return {"margin": jnp.sum(jnp.where(ordered, h, 0)) / count, "accuracy": jnp.sum(ordered & (h > 0)) / count}


class State(eqx.Module):
    """Of all members: parameters, optimisers, mean and deviation of the rewards; `held` is what the source keeps."""

    params: Any
    rest: Any
    optimiser: Any
    mean: jax.Array
    deviation: jax.Array
    held: Any
    iteration: jax.Array
    key: jax.Array


@part
class RewardModelling:
    """A method that learns reward models; its policy is the `RewardEnsemble`, a verifier. A step of the run is an iteration."""

    source: Logged = Logged(pairs=AllPairs())
    link: Link = BradleyTerry()
    fit: Fit = Minibatches(Adam(learning_rate=1e-5, max_grad_norm=1.0, epsilon=1e-8))
    head: Feedforward = Feedforward(())
    members: int = hyper(1, at_least=1)  # k: models in the ensemble
    aggregate: Aggregate = First()
    tune_trunk: bool = True  # the trunk learns with the head, a copy for each member; false: the heads alone
    steps_per_iteration = 1

    # -- the protocol of methods ---------------------------------------------------------------------------------------

    @property
    def takes(self):
        return self.source.takes

    @property
    def needs(self) -> str:
        return self.source.needs

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        if not hasattr(task.model, "embed"):
            return f"reads responses by the model's `embed`, which {type(task.model).__name__} does not have"
        return self.source.refuse(task, self.link) or self.fit.refuse(self.link, self.source.count(task))

    def init(self, task, key) -> State:
        k_members, key = jax.random.split(key)
        made = [self.parted(self.member(task, jax.random.fold_in(k_members, i))) for i in range(self.members)]
        params, rest = jax.tree.map(lambda *x: jnp.stack(x), *(p for p, _ in made)), made[0][1]
        optimiser = jax.vmap(self.fit.init)(params)
        one = jnp.ones(self.members)
        return State(params, rest, optimiser, 0 * one, one, self.source.init(self, task), jnp.zeros((), jnp.int32), key)

    def step(self, task, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_members = jax.random.split(state.key)
        progress = jnp.clip(state.iteration / task.steps, 0.0, 1.0)
        prompts = self.source.prompts(task)

        def columns_of(params, data):
            rewards = self.rewards(eqx.combine(params, state.rest), prompts, data.groups)
            real = jnp.isfinite(data.groups.score).all(1)
            return Columns(rewards, {}, jnp.where(real[:, None], data.groups.score, 0), data.groups.mask.sum(-1)), real

        def learn(params, optimiser, key):
            k_draw, k_fit = jax.random.split(key)
            drawn = self.source.draw(self, task, state.held, {}, k_draw)
            params, optimiser, metrics = self.fit(columns_of, self.link, params, optimiser, Data(drawn.groups, {}), {}, progress, k_fit)
            rewards = self.rewards(eqx.combine(params, state.rest), prompts, drawn.groups)
            return params, optimiser, rewards.mean(), jnp.maximum(rewards.std(), 1e-6), metrics

        params, optimiser, mean, deviation, metrics = jax.vmap(learn)(state.params, state.optimiser, jax.random.split(k_members, self.members))
        after = State(params, state.rest, optimiser, mean, deviation, state.held, state.iteration + 1, key)
        return after, jax.tree.map(jnp.mean, metrics)

    def policy(self, state: State) -> RewardEnsemble:
        return RewardEnsemble(state.params, state.rest, state.mean, state.deviation, self.aggregate)

    # -- its pieces ----------------------------------------------------------------------------------------------------

    def member(self, task, key) -> Member:
        """A new head on the task's model."""
        k_torso, k_head = jax.random.split(key)
        prompts, log = self.source.prompts(task), task.preferences
        one = (prompts.tokens[:1], prompts.mask[:1], log.responses[:1, 0], log.mask[:1, 0])
        size = jax.eval_shape(task.model.embed, *one).shape[-1]
        torso = Torso(self.head, size, (), k_torso)
        return Member(task.model, torso, Linear(torso.features, 1, k_head, gain=1.0))

    def parted(self, member: Member):
        """What learns of a member, and the rest."""
        learns = jax.tree.map(eqx.is_inexact_array, member)
        trunk = trainable(member.trunk) if self.tune_trunk else jax.tree.map(lambda _: False, member.trunk)
        return eqx.partition(member, eqx.tree_at(lambda m: m.trunk, learns, trunk))

    def rewards(self, member: Member, prompts, groups: Groups):
        """(B, K): of every response."""
        size, count, length = groups.tokens.shape
        flat = groups.tokens.reshape(-1, length), groups.mask.reshape(-1, length)
        return member(prompts, jnp.repeat(groups.index, count), *flat).reshape(size, count)
