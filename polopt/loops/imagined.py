"""Rollouts of who made a log in learnt models of its environment.

The models see vectors as the normaliser gives them, rewards less their mean and divided by their deviation, and actions as learners see them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.actions import as_vector, to_unit
from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part, replace
from polopt.critics.dynamics import Dynamics, surprise
from polopt.data.dataset import Dataset
from polopt.data.rollouts import Rollouts
from polopt.loops.actor_critic import NETWORK, STEP, descend
from polopt.loops.descent import Step
from polopt.loops.windows import first_rows
from polopt.policies.actor import Normaliser
from polopt.policies.clones import faithful_actor

HELD_OUT = 0.1  # share of the rows by which members are judged
FURTHEST = 10.0  # no entry of a vector is further from 0, as with normalised observations


class Ensemble(eqx.Module):
    """Models of the environment, stacked, and how often each is asked; mean and deviation of the logged rewards."""

    members: Dynamics
    share: jax.Array
    pay: jax.Array

    def foreseen(self, vector, action):
        """What every member says of a vector and an encoded action."""
        return jax.vmap(lambda member: member(vector, action))(self.members)

    def paid(self, foreseen):
        """The mean reward of those that are asked."""
        return self.pay[0] + self.pay[1] * jnp.sum(self.share * foreseen.mean[:, -1])

    def reward(self, vector, action):
        """What an encoded action pays."""
        return self.paid(self.foreseen(vector, action))


class Fitted(eqx.Module):
    """The models, who made the log, the state of each optimiser, and the key by which rows are divided among members."""

    models: Ensemble
    behaviour: Any
    optimisers: dict[str, Any]
    division: jax.Array


class Rows(NamedTuple):
    """The log as the models see it, (n, ...) each: vectors, actions as drawn and as encoded, changes with the reward last, ends before the horizon.

    start: (n,) the first row of an episode, each episode alike, for whole numbers below `episodes`.
    drawn: (members, m) the rows of each member; held: those by which they are judged.
    """

    vector: jax.Array
    action: jax.Array
    encoded: jax.Array
    change: jax.Array
    end: jax.Array
    start: jax.Array
    episodes: jax.Array
    drawn: jax.Array
    held: jax.Array


@part
class Imagination:
    """An ensemble of models, each fitted to a bootstrap of its own, and a clone of who made the log: a diffusion for a box, else a categorical."""

    dynamics_network: Feedforward = Feedforward(hidden=(200, 200, 200, 200), activation="swish")
    behaviour_network: Feedforward = NETWORK
    model_step: Step = replace(STEP, {"learning_rate": 1e-3})
    behaviour_step: Step = STEP
    members: int = hyper(7, at_least=1)  # models
    elites: int = hyper(5, at_least=1)  # best models, which are rolled out
    decay: float = hyper(5e-5, at_least=0)  # weight of half the squared length of a model's parameters in its loss
    diffusion: int = hyper(10, at_least=1)  # steps in which an action of a box is drawn
    batch_size: int = hyper(256, at_least=1)  # rows that a model, and the behaviour, learn from in an update

    def refuse(self, data) -> str | None:
        """Why no models can be fitted to a log; None when they can."""
        if spaces.images(data.observation_space):
            return f"models vectors, but {data.name} has pictures. Take bc or rvs"
        if self.elites > self.members:
            return f"takes the best {self.elites} models, but has {self.members}. Set fewer elites"
        if len(data) < 2:
            return f"needs rows to fit models to and rows to judge them by, but {data.name} has one. Take a larger log"
        return None

    def init(self, data: Dataset, key) -> Fitted:
        k_models, k_behaviour, division = jax.random.split(key, 3)
        space, size = data.action_space, spaces.size(data.observation_space)
        numbers = math.prod(space.shape) if isinstance(space, spaces.Box) else spaces.size(space)
        members = [Dynamics(self.dynamics_network, size, numbers, k) for k in jax.random.split(k_models, self.members)]
        behaviour = faithful_actor(self.behaviour_network, data.observation_space, space, self.diffusion, k_behaviour)
        pay = jnp.stack([jnp.mean(data.reward), jnp.std(data.reward) + 1e-3])
        models = Ensemble(jax.tree.map(lambda *x: jnp.stack(x), *members), jnp.full(self.members, 1 / self.members), pay)
        optimisers = {"models": self.model_step.init(models.members), "behaviour": self.behaviour_step.init(behaviour)}
        return Fitted(models, behaviour, optimisers, division)

    def rows(self, fitted: Fitted, data: Dataset, normaliser: Normaliser, horizon: int) -> Rows:
        vector, following = (jax.vmap(normaliser)(o)[0] for o in (data.observation, data.next_observation))
        space, action, n = data.action_space, jnp.asarray(data.action), len(data)
        action = jax.vmap(lambda a: to_unit(space, a))(action) if isinstance(space, spaces.Box) else action
        paid = (jnp.asarray(data.reward) - fitted.models.pay[0]) / fitted.models.pay[1]
        ended, row = jnp.asarray(data.ended), jnp.arange(n)
        first = first_rows(ended)
        start = jnp.nonzero(first == row, size=n, fill_value=0)[0]
        early = (ended & (row - first + 1 < horizon)).astype(jnp.float32)
        k_order, k_draw = jax.random.split(fitted.division)
        order, held = jax.random.permutation(k_order, n), min(max(1, round(HELD_OUT * n)), n - 1)
        drawn = order[held:][jax.random.randint(k_draw, (self.members, n - held), 0, n - held)]
        change = jnp.concatenate([following - vector, paid[:, None]], axis=1)
        taken = jax.vmap(lambda a: as_vector(space, a))(action)
        return Rows(vector, action, taken, change, early, start, jnp.sum(first == row), drawn, order[:held])

    def fit(self, fitted: Fitted, rows: Rows, progress, key) -> tuple[Fitted, dict[str, jax.Array]]:
        """One update of every model and of the behaviour."""
        k_models, k_rows, k_noise = jax.random.split(key, 3)
        place = jax.random.randint(k_models, (self.members, self.batch_size), 0, rows.drawn.shape[1])
        chosen = jnp.take_along_axis(rows.drawn, place, axis=1)
        batch = [x[chosen] for x in (rows.vector, rows.encoded, rows.change, rows.end)]

        def model_loss(members):
            one = lambda member, v, a, c, e: surprise(member(v, a), c, e)  # noqa: E731
            each = jax.vmap(jax.vmap(one, in_axes=(None, 0, 0, 0, 0)))(members, *batch)
            return jnp.sum(jnp.mean(each, axis=1)) + 0.5 * self.decay * sum(jnp.sum(x**2) for x in jax.tree.leaves(members))

        row = jax.random.randint(k_rows, (self.batch_size,), 0, rows.vector.shape[0])
        given = rows.vector[row], rows.action[row], jax.random.split(k_noise, self.batch_size)
        surprised, gradient = jax.value_and_grad(model_loss)(fitted.models.members)
        members, optimisers = descend(self.model_step, gradient, fitted.optimisers, "models", fitted.models.members, progress)
        cloned, gradient = jax.value_and_grad(lambda behaviour: jnp.mean(jax.vmap(behaviour.loss)(*given)))(fitted.behaviour)
        behaviour, optimisers = descend(self.behaviour_step, gradient, optimisers, "behaviour", fitted.behaviour, progress)
        models = dataclasses.replace(fitted.models, members=members)
        return Fitted(models, behaviour, optimisers, fitted.division), {"loss/models": surprised / self.members, "loss/behaviour": cloned}

    def judged(self, fitted: Fitted, rows: Rows) -> Fitted:
        """With only those members asked whose squared error on held-out rows is least."""
        held = [x[rows.held] for x in (rows.vector, rows.encoded, rows.change)]
        foreseen = jax.vmap(fitted.models.foreseen)(*held[:2])
        error = jnp.mean((foreseen.mean - held[2][:, None]) ** 2, axis=(0, 2))
        share = jnp.zeros(self.members).at[jnp.argsort(error)[: self.elites]].set(1 / self.elites)
        return dataclasses.replace(fitted, models=dataclasses.replace(fitted.models, share=share))

    def roll(self, fitted: Fitted, rows: Rows, space, count: int, horizon: int, key) -> Rollouts:
        """Rollouts from logged beginnings; each step of each is made by one of the models that are asked, and pays what they say on average."""
        models, (k_begin, k_steps) = fitted.models, jax.random.split(key)
        start = rows.start[jax.random.randint(k_begin, (count,), 0, rows.episodes)]

        def move(vector, key):
            k_act, k_member, k_noise, k_end = jax.random.split(key, 4)
            action = fitted.behaviour.draw(vector, k_act)
            said = models.foreseen(vector, as_vector(space, action))
            one = jax.tree.map(lambda x: x[jax.random.categorical(k_member, jnp.log(models.share))], said)
            change = one.mean + jnp.exp(0.5 * one.log_variance) * jax.random.normal(k_noise, one.mean.shape)
            after = jnp.clip(vector + change[:-1], -FURTHEST, FURTHEST)
            return after, action, models.paid(said), jax.random.bernoulli(k_end, jax.nn.sigmoid(one.end))

        def step(carry, key):
            vector, going = carry
            after, action, reward, ends = jax.vmap(move)(vector, jax.random.split(key, count))
            return (after, going & ~ends), Rollouts(vector, action, reward, going)

        begin = rows.vector[start], jnp.ones(count, bool)
        made = jax.lax.scan(step, begin, jax.random.split(k_steps, horizon))[1]
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), made)
