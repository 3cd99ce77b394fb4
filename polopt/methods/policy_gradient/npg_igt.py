"""Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies.

Ilyas Fatkhullin, Anas Barakat, Anastasia Kireeva, Niao He. 2023. arXiv:2302.01734

Two policy gradients that learn from one or two episodes an iteration, in a single loop and without importance weights: a normalised momentum
whose episodes are sampled ahead of the parameters (implicit gradient transport), and a recursive momentum corrected by a Hessian-vector product.

With g(tau, theta) = grad Phi the GPOMDP gradient of one episode, Phi = sum_t (sum_{h>=t} gamma^h r_h) log pi_theta(a_t|s_t), and eta_0 = 1:

  N-PG-IGT   theta~_t    = theta_t + (1 - eta_t) / eta_t (theta_t - theta_{t-1})        look-ahead
             d_t         = (1 - eta_t) d_{t-1} + eta_t g(tau~_t, theta~_t)              tau~_t ~ pi_{theta~_t}: data AND score are there
             theta_{t+1} = theta_t + gamma_t d_t / ||d_t||

  N-HARPG    theta^_t    = q_t theta_t + (1 - q_t) theta_{t-1}                          q_t uniform in [0, 1]
             d_t         = (1 - eta_t) (d_{t-1} + B(tau^_t, theta^_t) (theta_t - theta_{t-1})) + eta_t g(tau_t, theta_t)
             theta_{t+1} = theta_t + gamma_t d_t / ||d_t||                              HARPG itself: theta_t + gamma_t d_t
             B u         = grad Phi (grad log p(tau) . u) + (grad^2 Phi) u              an unbiased Hessian of J times u

Schedules: eta_t = (2 / (t + 2))^memory, with memory 4/5 for N-PG-IGT and 1 for N-HARPG. The paper's steps gamma_t depend on constants that
nobody knows; ours are step_size / (t + delay)^(1/2). `num_envs` episodes are averaged where the paper has one. The edges: at t = 0 there is no
displacement; memory = 0 forgets everything, which is normalised gradient ascent; episodes that all earn nothing move nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.episodes import Episodes, fitting_network
from polopt.methods.registry import composition
from polopt.optim.momentum import between, falling, hessian_aided, implicit_transport, lookahead, to_length


class Climb(NamedTuple):
    """theta_t, the momentum's state, and that of the steps' length."""

    actor: Any
    momentum: Any
    length: Any


@part
class Transported:
    """N-PG-IGT: normalised momentum of gradients that are sampled ahead of the parameters."""

    step_size: float = hyper(0.3, above=0)  # c of the steps' length c / (t + delay)^(1/2)
    delay: float = hyper(50.0, above=0)  # iterations before the length falls
    memory: float = hyper(0.8, at_least=0, at_most=1)  # p of the newest gradient's weight (2 / (t + 2))^p; 0 forgets all others
    transport: bool = True  # sample ahead; without it this is plain normalised momentum

    batches = 1

    def refuse(self, loop, task):
        return None

    @property
    def weight(self):
        return falling(2.0**self.memory, 2.0, self.memory)

    def init(self, loop, task, key):
        actor = loop.actor(task.env, key)
        return Climb(actor, implicit_transport(self.weight).init(actor), to_length(lambda t: t).init(actor))

    def actor(self, state):
        return state.actor

    def __call__(self, loop, sample, state, progress, key):
        there = lookahead(self.weight, state.momentum, state.actor) if self.transport else state.actor
        gradient = loop.gradient(there, sample(there, key))
        direction, momentum = implicit_transport(self.weight).update(gradient, state.momentum, state.actor)
        move, length = to_length(falling(self.step_size, self.delay, 0.5)).update(direction, state.length)
        return Climb(optax.apply_updates(state.actor, move), momentum, length), report(gradient, direction)


@part
class HessianAided:
    """N-HARPG: recursive momentum corrected by a Hessian-vector product, from a second batch of episodes."""

    step_size: float = hyper(0.3, above=0)  # c of the steps' length (or factor) c / (t + delay)^(1/2)
    delay: float = hyper(50.0, above=0)  # iterations before the steps fall
    memory: float = hyper(1.0, at_least=0, at_most=1)  # p of the newest gradient's weight (2 / (t + 2))^p; 0 forgets all others
    normalised: bool = True  # steps of a given length; without it (HARPG) they are a factor times the momentum

    batches = 2

    def refuse(self, loop, task):
        return None

    @property
    def momentum(self):
        return hessian_aided(falling(2.0**self.memory, 2.0, self.memory))

    @property
    def length(self):
        schedule = falling(self.step_size, self.delay, 0.5)
        return to_length(schedule) if self.normalised else optax.scale_by_schedule(schedule)

    def init(self, loop, task, key):
        actor = loop.actor(task.env, key)
        return Climb(actor, self.momentum.init(actor), self.length.init(actor))

    def actor(self, state):
        return state.actor

    def __call__(self, loop, sample, state, progress, key):
        k_here, k_between, k_fraction = jax.random.split(key, 3)
        gradient = loop.gradient(state.actor, sample(state.actor, k_here))
        there = between(state.momentum, state.actor, jax.random.uniform(k_fraction))
        episodes = sample(there, k_between)
        direction, momentum = self.momentum.update(
            gradient, state.momentum, state.actor, hvp=lambda displacement: loop.hessian_product(there, episodes, displacement)
        )
        move, length = self.length.update(direction, state.length)
        return Climb(optax.apply_updates(state.actor, move), momentum, length), report(gradient, direction)


def report(gradient, direction):
    return {"gradient_norm": optax.tree.norm(gradient), "momentum_norm": optax.tree.norm(direction)}


@composition
def npg_igt(task: ControlTask | None = None) -> Episodes:
    """N-PG-IGT with one episode an iteration."""
    return Episodes(Transported(), network=fitting_network(task))


@composition
def harpg(task: ControlTask | None = None) -> Episodes:
    """N-HARPG with two episodes an iteration."""
    return Episodes(HessianAided(), network=fitting_network(task))
