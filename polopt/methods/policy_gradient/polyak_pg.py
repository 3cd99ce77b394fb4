"""Enhancing Policy Gradient with the Polyak Step-Size Adaption.

Yunxiang Li, Rui Yuan, Chen Fan, Mark Schmidt, Samuel Horvath, Robert M. Gower, Martin Takac. 2024. arXiv:2404.07525

The step size of policy gradient is the gap to the optimum divided by the squared norm of the gradient, so that no learning rate is to be tuned
and the scale of rewards does not matter. In the way stand an optimum that is unknown, noisy gradients, and plateaus that make the step explode.

    J_tau(theta) = E[ sum_t gamma^t (r_t + tau H(pi_theta(.|s_t))) ],    g its gradient, both estimated from the same episodes
    eta          = (target - J_tau) / ||g||^2,    theta <- theta + eta g,    no step where J_tau is not below the target

The target is J* where it is known (`polyak_pg:known`), in discounted reward: (1 - gamma^H) / (1 - gamma) for H steps of reward 1. Else two
policies learn side by side from different beginnings, and the better one's value tells the other how far it can get:

    T   = b + factor max(b - min(J_1, J_2), |b| / 1000),    b the best value seen of either,    eta_i = (T - J_i) / ||g_i||^2

The policy with the higher newest value is deployed. The twin rule's constants are our choice, and so is what keeps steps from exploding: eta is at
most `cap` times the first one, a step at most `longest` long, and tau falls linearly to 0 over the run. All but tau are free of scale. The exact
problems of the claim need no `longest`; networks and sampled episodes do: a gap of the whole return over a small gradient throws the policy onto a
plateau that it does not leave. No momentum belongs here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.episodes import Episodes, fitting_network
from polopt.methods.registry import composition
from polopt.optim.polyak import scale_by_polyak, twin_target


def estimate(loop, actor, episodes, tau):
    """J_tau and its gradient at the actor that has acted."""

    def bonus(actor):
        return loop.value(episodes, loop.entropies(actor, episodes))

    rewards = episodes.reward + tau * loop.entropies(actor, episodes)
    through_visits, through_entropy = loop.gradient(actor, episodes, rewards), jax.grad(bonus)(actor)
    return loop.value(episodes, rewards), jax.tree.map(lambda v, h: v + tau * h, through_visits, through_entropy)


class Single(NamedTuple):
    actor: Any
    polyak: Any


@part
class Known:
    """Polyak steps towards a known optimum."""

    optimum: float = 1.0  # J*: the highest discounted return
    cap: float = hyper(1e3, above=0)  # the largest step size, in first ones
    longest: float | None = hyper(0.3, above=0)  # the largest length of a step; none to leave it
    entropy: float = hyper(0.01, at_least=0)  # tau: weight of the entropy at the start; it falls to 0 over the run

    batches = 1

    def refuse(self, loop, task):
        return None

    def init(self, loop, task, key):
        actor = loop.actor(task.env, key)
        return Single(actor, scale_by_polyak(self.cap, self.longest).init(actor))

    def actor(self, state):
        return state.actor

    def __call__(self, loop, sample, state, progress, key):
        actor, polyak = state
        value, gradient = estimate(loop, actor, sample(actor, key), self.entropy * (1 - progress))
        move, polyak = scale_by_polyak(self.cap, self.longest).update(gradient, polyak, value=value, target=self.optimum)
        metrics = {"value": value, "gradient_norm": optax.tree.norm(gradient), "step": optax.tree.norm(move)}
        return Single(optax.apply_updates(actor, move), polyak), metrics


class Pair(NamedTuple):
    """The better actor, both, their Polyak states, the best value seen of either, and the newest value of each (2,)."""

    better: Any
    actors: tuple
    polyak: tuple
    best: jax.Array
    values: jax.Array


@part
class Twins:
    """Polyak steps of two policies that learn side by side, each aiming a little above the best of both."""

    factor: float = hyper(2.0, above=0)  # c: how far above the best value the target lies, in gaps between the two
    cap: float = hyper(1e3, above=0)  # the largest step size, in first ones
    longest: float | None = hyper(0.3, above=0)  # the largest length of a step; none to leave it
    entropy: float = hyper(0.01, at_least=0)  # tau: weight of the entropy at the start; it falls to 0 over the run

    batches = 2

    def refuse(self, loop, task):
        return None

    def init(self, loop, task, key):
        actors = tuple(loop.actor(task.env, k) for k in jax.random.split(key))
        polyak = tuple(scale_by_polyak(self.cap, self.longest).init(actor) for actor in actors)
        return Pair(actors[0], actors, polyak, jnp.array(-jnp.inf), jnp.zeros((2,)))

    def actor(self, state):
        return state.better

    def __call__(self, loop, sample, state, progress, key):
        tau = self.entropy * (1 - progress)
        found = [estimate(loop, actor, sample(actor, k), tau) for actor, k in zip(state.actors, jax.random.split(key))]
        values = jnp.stack([value for value, _ in found])
        best = jnp.maximum(state.best, jnp.max(values))
        target = twin_target(best, values, self.factor)
        rule = scale_by_polyak(self.cap, self.longest)
        moved = [rule.update(g, s, value=value, target=target) for (value, g), s in zip(found, state.polyak)]
        actors = tuple(optax.apply_updates(actor, move) for actor, (move, _) in zip(state.actors, moved))
        better = jax.tree.map(lambda x, y: jnp.where(values[0] >= values[1], x, y), *actors)
        metrics = {"value": jnp.max(values), "target": target, "step": optax.tree.norm([move for move, _ in moved])}
        return Pair(better, actors, tuple(s for _, s in moved), best, values), metrics


@composition
def polyak_pg(task: ControlTask | None = None) -> Episodes:
    """The optimum unknown: two policies side by side."""
    return Episodes(Twins(), network=fitting_network(task), num_envs=16, baseline=True)


@composition
def known(task: ControlTask | None = None) -> Episodes:
    """The optimum known: set `optimum` to the highest discounted return."""
    return Episodes(Known(), network=fitting_network(task), num_envs=16, baseline=True)
