"""Policy Regularization with Dataset Constraint for Offline Reinforcement Learning.

Yuhang Ran, Yi-Chen Li, Fuxiang Zhang, Zongzhang Zhang, Yang Yu. 2023. arXiv:2306.06569

TD3+BC pulls the actor to the logged action of the same state, be it good or bad. Here it is pulled to the action of whatever logged pair is nearest
to the state and the actor's own action, so that a good action that was logged at a neighbouring state may be used.

    i(s)   = argmin_i || (beta s, pi(s)) - (beta s_i, a_i) ||,  over the whole log, held fixed
    L_pi   = -lambda E_D[ Q_1(s, pi(s)) ] + E_D[ (pi(s) - a_i(s))^2 ],   lambda = alpha / E_D[ |Q_1(s, pi(s))| ], held fixed
    critic and states: TD3+BC's

The gradient of the pull is the action part of that of the squared distance to the log as a set of points. beta = 0 keeps to logged actions wherever
they were taken; with a large beta the nearest pair to a logged state is its own, and TD3+BC is left. Of several neighbours the mean action is taken
(our choice). Images count by their pixels. Defaults: the authors', with alpha for Hopper and Walker2d; 40 for HalfCheetah; mazes: 7.5, beta 7.5.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.actions import to_unit
from polopt.core.parts import hyper, part
from polopt.data.dataset import DataTask
from polopt.data.nearest import Keys
from polopt.loops.actor_critic import STEP
from polopt.loops.offline import Offline
from polopt.methods.actor_critic.ddpg import Deterministic
from polopt.methods.actor_critic.td3 import Smoothed
from polopt.methods.offline.td3_bc import ClimbNear
from polopt.methods.registry import composition


def keyed(inputs, action, beta):
    """(beta s, a) as vectors (n, d) for network inputs (vectors, pictures) and actions with a leading axis."""
    vectors, pictures = inputs
    flat = [x.reshape(x.shape[0], -1) for x in (vectors, *pictures, action)]
    return jnp.concatenate([*(beta * x for x in flat[:-1]), flat[-1]], axis=1)


class Neighbours(eqx.Module):
    """The action of the nearest pairs among `keys`, whose actions are (n, ...); all alike."""

    keys: Keys
    actions: jax.Array
    beta: jax.Array
    count: int = eqx.field(static=True)

    def __call__(self, critic, action, batch):
        query = jax.lax.stop_gradient(keyed(batch.observation, action, self.beta))
        rows = self.keys.nearest(query, self.count)
        return jnp.mean(self.actions[rows], axis=1), jnp.ones(batch.reward.shape)


@part
class NearestLogged:
    """The action of the logged pair that is nearest to the state and the actor's action."""

    beta: float = hyper(2.0, at_least=0)  # how much a distance between states counts beside one between actions
    neighbours: int = hyper(1, at_least=1, at_most=100)  # k: nearest pairs, whose actions are averaged

    def within(self, data, normaliser) -> Neighbours:
        inputs = jax.vmap(normaliser)(jax.tree.map(jnp.asarray, data.observation))
        action = jax.vmap(lambda a: to_unit(data.action_space, a))(jnp.asarray(data.action))
        return Neighbours(Keys.of(keyed(inputs, action, self.beta)), action, self.beta, min(self.neighbours, len(data)))


@composition
def prdc(task: DataTask | None = None) -> Offline:
    """PRDC."""
    objective = ClimbNear(NearestLogged())
    return Offline(Deterministic(Smoothed(), objective, critic_step=STEP, critics=2, delay=2), normalise_observations=True)
