"""Reinforcement Learning with General Utilities: Simpler Variance Reduction and Large State-Action Space.

Anas Barakat, Ilyas Fatkhullin, Niao He. 2023. arXiv:2306.01854

Maximise any smooth function F of the occupancy (how often which states and actions are met) by the policy gradient of the pseudo-reward dF/dlambda,
estimated from one episode an iteration by a normalised recursive momentum with one importance weight (N-VR-PG).

With lambda(s, a) = sum_t gamma^t Pr(s_t = s, a_t = a), an episode's visits lam(tau) = sum_t gamma^t e(s_t, a_t), and g(tau, theta, r) its GPOMDP
gradient for the rewards r:

    grad F(lambda(theta)) = the policy gradient of V(r) at r = dF/dlambda, held fixed
    w_t         = prod_h pi_{theta_{t-1}}(a_h|s_h) / pi_{theta_t}(a_h|s_h)                tau_t ~ pi_{theta_t}: the OLD policy is above the line
    lambda_t    = eta_t lam(tau_t) + (1 - eta_t) (lambda_{t-1} + (1 - w_t) lam(tau_t))
    d_t         = eta_t g(tau_t, theta_t, r_{t-1}) + (1 - eta_t) (d_{t-1} + g(tau_t, theta_t, r_{t-1}) - w_t g(tau_t, theta_{t-1}, r_{t-2}))
    r_t         = dF/dlambda at lambda_t,         theta_{t+1} = theta_t + alpha_t d_t / ||d_t||

F is a part (`polopt.loops.utilities`): the entropy of visited states, and as variants the return (`reward`), an expert's visits (`imitation`),
the return with limited costs (`penalised`). All that is known of lambda are moments linear in it, so that the recursion holds for them too: the
table where states are numbered, else the mean of features from which the paper's linear regression gives the density.

Schedules: eta_t = (2 / (t + 1))^memory, eta_0 = 1; alpha_t = step_size / (t + delay)^(1/2), our choice. Horizon: about 2 / (1 - gamma). `num_envs`
episodes are averaged where the paper has one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.episodes import Episodes, fitting_network
from polopt.loops.utilities import Entropy, Imitation, Penalised, Reward, Utility
from polopt.methods.registry import composition
from polopt.optim.momentum import falling, recursive_momentum, to_length


class Climb(NamedTuple):
    """theta_t; momentum of (d, lambda), whose last parameters are (theta_{t-1}, lambda_{t-2}); the steps' length; what makes moments."""

    actor: Any
    momentum: Any
    length: Any
    basis: Any


@part
class VarianceReduced:
    """N-VR-PG: normalised recursive momentum of the gradient and of the occupancy, with one importance weight an episode."""

    utility: Utility
    step_size: float = hyper(0.3, above=0)  # alpha of the steps' length alpha / (t + delay)^(1/2)
    delay: float = hyper(20.0, above=0)  # iterations before the length falls
    memory: float = hyper(2 / 3, at_least=0, at_most=1)  # p of the newest episode's weight (2 / (t + 1))^p; 0 forgets all others
    correct: bool = True  # carry the past over to the present policy; without it this is plain momentum

    batches = 1

    def refuse(self, loop, task):
        return self.utility.refuse(loop, task)

    @property
    def momentum(self):
        return recursive_momentum(falling(2.0**self.memory, 1.0, self.memory))

    def init(self, loop, task, key):
        k_actor, k_basis = jax.random.split(key)
        actor = loop.actor(task.env, k_actor)
        basis, zeros = self.utility.init(loop, task.env, k_basis)
        return Climb(actor, self.momentum.init((actor, zeros)), to_length(lambda t: t).init(actor), basis)

    def actor(self, state):
        return state.actor

    def __call__(self, loop, sample, state, progress, key):
        actor, momentum, length, basis = state
        episodes = sample(actor, key)
        seen = self.utility.moments(loop, basis, episodes)
        mean = jnp.mean(seen, axis=0)
        (_, now), (before, earlier) = momentum.direction, momentum.previous
        now, earlier = (jnp.where(momentum.count == 0, mean, m) for m in (now, earlier))  # lambda_{t-1}, lambda_{t-2}

        def gradient(at, moments, weights=None):
            return loop.gradient(at, episodes, self.utility.rewards(loop, basis, moments, episodes), weights)

        new, change, weights = gradient(actor, now), None, loop.weights(before, actor, episodes)
        if self.correct:
            lost = jnp.mean((1 - weights)[:, None] * seen, axis=0)
            change = optax.tree.sub(new, gradient(before, earlier, weights)), lost
        (direction, moments), momentum = self.momentum.update((new, mean), momentum, (actor, now), change=change)
        move, length = to_length(falling(self.step_size, self.delay, 0.5)).update(direction, length)
        metrics = {"utility": self.utility.value(basis, moments), "weight": jnp.mean(weights), "momentum_norm": optax.tree.norm(direction)}
        return Climb(optax.apply_updates(actor, move), momentum, length, basis), metrics


def composed(utility, task: ControlTask | None) -> Episodes:
    return Episodes(VarianceReduced(utility), network=fitting_network(task))


@composition
def general_utilities(task: ControlTask | None = None) -> Episodes:
    """The largest entropy of visited states."""
    return composed(Entropy(), task)


@composition
def reward(task: ControlTask | None = None) -> Episodes:
    """The discounted return."""
    return composed(Reward(), task)


@composition
def imitation(task: ControlTask | None = None) -> Episodes:
    """The visits of an expert, or even ones."""
    return composed(Imitation(), task)


@composition
def penalised(task: ControlTask | None = None) -> Episodes:
    """The discounted return with costs kept near a limit."""
    return composed(Penalised(), task)
