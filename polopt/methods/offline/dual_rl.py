"""Dual RL: Unification and New Methods for Reinforcement and Imitation Learning.

Harshit Sikchi, Qinqing Zheng, Amy Zhang, Scott Niekum. 2023. arXiv:2302.08560

Much of offline learning is the dual of one problem: a high return from visits that stay near the log's in an f-divergence. f-DVL takes divergences
whose dual loss of V is stable where XQL's exponential is not; ReCOIL imitates an expert from any other data, without rewards or a discriminator.

With y = min_i Q-_i(s, a) - V(s), on logged pairs, and actor, targets and order of the updates as in IQL:

    f-DVL:   L_V = E_D[ (1 - lambda) V(s) + lambda phi(y) ],    L_Q = sum_i E_D[ Huber( r + gamma (1 - term) V(s') - Q_i(s, a) ) ]
             phi(y) = max(y, 0) for total variation, y + y^2 / 4 where y > 0 for Pearson's chi^2, and 0 below
    XQL:     L_V = E_D[ exp(z) - z - 1 ], z = y / b
    ReCOIL:  L_Q = sum_i beta ( E_S,pi[ Q_i(s, a~) ] - E_E[ Q_i(s, a) ] ) + E_mix[ (gamma V(s') - Q_i(s, a))^2 ] / 4

phi is the one-sided conjugate, cut at 0: read literally max(y + y^2 / 4, 0) would rise again below -4 and push V the wrong way. Total variation makes
V the quantile of Q above which a mass of (1 - lambda) / lambda lies.

S is the whole log, E the expert's part of it, its first `episodes`; a share beta of every minibatch is drawn from E, which is `mix`. The first
term comes from the start states by the flow of any visits, here S's (E's when beta = 1). Defaults: the authors' for locomotion; ReCOIL's constants
are our choice. Mazes: total variation, lambda .8, `rewards.shift` -1, beta 10.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core import spaces
from polopt.core.actions import encoded, to_unit
from polopt.core.parts import hyper, part
from polopt.data.dataset import DataTask
from polopt.loops.offline import Offline, Unused
from polopt.methods.offline.iql import ImplicitQ
from polopt.methods.registry import composition
from polopt.objectives import values
from polopt.objectives.divergences import F_DIVERGENCES


def total_variation(y):
    """max(y, 0)."""
    return array_namespace(y).clip(y, min=0)


def pearson_chi2(y):
    """y + y^2 / 4 where y > 0, else 0."""
    return array_namespace(y).clip(F_DIVERGENCES["chi2"].conjugate(y), min=0)


def dual_value_loss(value, target, weight, phi):
    """(1 - lambda) V + lambda phi(Q - V), element by element."""
    return (1 - weight) * value + weight * phi(target - value)


@part
class TotalVariation:
    """V lies so that a mass of (1 - lambda) / lambda of the values is above it."""

    weight: float = hyper(0.8, above=0, below=1)  # lambda: of the values above V; from a half (the least of them) to 1 (the largest)

    def __call__(self, value, target):
        return dual_value_loss(value, target, self.weight, total_variation)


@part
class Pearson:
    """As total variation, but what lies farther above V counts more."""

    weight: float = hyper(0.8, above=0, below=1)  # lambda: of the values above V

    def __call__(self, value, target):
        return dual_value_loss(value, target, self.weight, pearson_chi2)


@part
class Gumbel:
    """V is the soft maximum b log E exp(Q / b)."""

    temperature: float = hyper(1.0, above=0)  # b
    limit: float | None = hyper(7.0, above=0)  # of z, beyond which a value moves V no more; none for no limit

    def __call__(self, value, target):
        return values.gumbel(value, target, self.temperature, clip=self.limit)


@part
class Huber:
    """The targets, by least squares that are linear far away."""

    delta: float = hyper(20.0, above=0)  # where they become linear

    def refuse(self, data) -> str | None:
        return None

    def minibatch(self, batch, discount, key):
        return batch

    def __call__(self, critic, target, batch, actor, key):
        value = jax.vmap(critic)(*batch.observation, batch.action)
        loss = values.huber(value, jax.lax.stop_gradient(target)[:, None], self.delta)
        return jnp.mean(batch.weight * jnp.sum(loss, axis=1)), value


def matching_loss(value, drawn, target, expert, share):
    """ReCOIL's L_Q of one critic for a minibatch (n,): values of logged and of the policy's actions, gamma V(s'), and 1 where the expert's."""
    own = jnp.where(jnp.all(expert > 0), expert, 1 - expert)  # the rows of S
    gap = jnp.sum(own * drawn) / jnp.sum(own) - jnp.sum(expert * value) / jnp.maximum(jnp.sum(expert), 1)
    return share * gap + jnp.mean((target - value) ** 2) / 4


@part
class Imitate:
    """The expert's visits: Q is raised on its pairs and lowered on the policy's actions, with no reward."""

    episodes: int = hyper(1, at_least=1)  # at the head of the log that an expert made
    share: float = hyper(0.5, above=0, at_most=1)  # beta: of each minibatch, that is drawn from these

    def refuse(self, data) -> str | None:
        made = int(jnp.sum(jnp.asarray(data.ended)))
        if made > self.episodes:
            return None
        return f"takes the first {self.episodes} episodes for an expert's, but {data.name} has only {made}. Put other episodes behind the expert's"

    def within(self, data, normaliser) -> "Mixed":
        return Mixed(data, normaliser, self.share, self.episodes)


class Mixed(eqx.Module):
    """`Imitate` with the log."""

    data: eqx.Module
    normaliser: eqx.Module
    share: jax.Array
    episodes: int = eqx.field(static=True)

    def expert(self, n: int):
        """(n,): 1 for the rows of a minibatch that are the expert's."""
        return (jnp.arange(n) < self.share * n).astype(jnp.float32)

    def minibatch(self, batch, discount, key):
        data, n = self.data, batch.reward.shape[0]
        expert, ended = self.expert(n), jnp.asarray(data.ended)
        row = jax.random.randint(key, (n,), 0, jnp.sum(jnp.cumsum(ended) - ended < self.episodes))
        rows = jax.tree.map(lambda x: jnp.asarray(x)[row], (data.observation, data.action, data.next_observation))
        seen, after = (jax.vmap(self.normaliser)(o) for o in (rows[0], rows[2]))
        space = data.action_space
        action = jax.vmap(lambda a: to_unit(space, a))(rows[1]) if isinstance(space, spaces.Box) else rows[1]
        going = discount * (1 - jnp.asarray(data.terminated)[row])

        def chosen(theirs, own):
            return jnp.where(expert.reshape(n, *(1,) * (own.ndim - 1)) > 0, theirs, own)

        theirs, own = (seen, action, going, after), (batch.observation, batch.action, batch.discount, batch.next_observation)
        seen, action, going, after = jax.tree.map(chosen, theirs, own)
        return batch._replace(observation=seen, action=action, reward=jnp.zeros(n), discount=going, next_observation=after)

    def __call__(self, critic, target, batch, actor, key):
        def drawn(vector, pictures, key):
            distribution = actor(vector, pictures)
            return encoded(actor.action_space, distribution.action(distribution.sample(key)))

        n = batch.reward.shape[0]
        action = jax.vmap(drawn)(*batch.observation, jax.random.split(key, n))
        value = jax.vmap(critic)(*batch.observation, batch.action)
        other = jax.vmap(critic)(*batch.observation, jax.lax.stop_gradient(action))
        target = jax.lax.stop_gradient(target)
        of_each = jax.vmap(lambda v, d: matching_loss(v, d, target, self.expert(n), self.share), in_axes=1)
        return jnp.sum(of_each(value, other)), value


@composition
def dual_rl(task: DataTask | None = None) -> Offline:
    """f-DVL with total variation."""
    return Offline(ImplicitQ(TotalVariation(), Huber(), layer_norm=True), batch_size=1024)


@composition
def pearson(task: DataTask | None = None) -> Offline:
    """f-DVL with Pearson's chi^2."""
    return Offline(ImplicitQ(Pearson(), Huber(), layer_norm=True), batch_size=1024)


@composition
def xql(task: DataTask | None = None) -> Offline:
    """XQL (arXiv:2301.02328) in the same form."""
    return Offline(ImplicitQ(Gumbel(), Huber(), layer_norm=True), batch_size=1024)


@composition
def recoil(task: DataTask | None = None) -> Offline:
    """ReCOIL: imitation of the log's first episodes."""
    return Offline(ImplicitQ(TotalVariation(), Imitate(), layer_norm=True), Unused(), batch_size=1024)
