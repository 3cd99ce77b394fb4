"""High-Dimensional Continuous Control Using Generalized Advantage Estimation.

John Schulman, Philipp Moritz, Sergey Levine, Michael Jordan, Pieter Abbeel. 2015. arXiv:1506.02438

Advantages as an exponentially weighted mixture of k-step temporal-difference advantages: one number, lambda, trades the bias
of a wrong value function against variance. The policy takes TRPO's step, and the value function has a trust region too.

With Vn_t the value of the true successor, term_t a real end and end_t any end of the episode:

    delta_t  = r_t + gamma (1 - term_t) Vn_t - V_t
    A_t      = delta_t + gamma lambda (1 - end_t) A_{t+1}
    target_t = A_t + V_t with lambda = 1: the discounted return, continued by V where it is cut

    value fit: min sum_n (V(s_n) - target_n)^2  subject to  mean_n (V(s_n) - V_old(s_n))^2 / (2 sigma^2) <= eps,
               sigma^2 the mean squared error before the fit; a Gauss-Newton step by conjugate gradients, shortened to the constraint

Some code that is called GAE gives delta_t + gamma A_{t+1}, without lambda on the first link: `first_link="one"`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.on_policy import OnPolicy
from polopt.loops.surrogates import ImportanceWeighted
from polopt.loops.trust_region import TrustRegion
from polopt.methods.registry import composition
from polopt.objectives import advantages
from polopt.optim.trust_region import gauss_newton_product, natural_direction


@part
class GAE:
    """Exponentially weighted mixture of k-step advantages; the value target is the lambda-return A + V."""

    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    lam: float = hyper(0.95, at_least=0, at_most=1)  # lambda: 0 is one-step, 1 is the whole return
    target_lam: float | None = hyper(None, at_least=0, at_most=1)  # lambda of the value target; none for the same
    first_link: str = hyper("lambda", choices=("lambda", "one"))  # whether lambda weighs the first link too, or one does

    def __call__(self, rewards, values, next_values, terminated, ended):
        def estimate(lam):
            return advantages.generalized_advantage_estimate(rewards, values, next_values, terminated, ended, self.discount, lam, axis=0)

        advantage = estimate(self.lam)
        target = (advantage if self.target_lam is None else estimate(self.target_lam)) + values
        if self.first_link == "one":
            advantage = without_first_lambda(advantage, rewards, values, next_values, terminated, ended, self.discount)
        return advantage, target


def without_first_lambda(advantage, rewards, values, next_values, terminated, ended, discount):
    """delta_t + gamma (1 - end_t) A_{t+1} from GAE's A, all (time, ...)."""
    delta = rewards + discount * (1 - terminated) * next_values - values
    following = jnp.concatenate([advantage[1:], jnp.zeros_like(advantage[:1])])
    return delta + discount * (1 - ended) * following


@part
class ValueTrustRegion:
    """The critic's Gauss-Newton step, shortened to the constraint on how far its predictions move."""

    epsilon: float = hyper(0.1, above=0)  # eps: half the mean squared move over the mean squared error
    cg_iterations: int = hyper(10, at_least=1)  # of conjugate gradients
    damping: float = hyper(1e-3, at_least=0)  # added to the Gauss-Newton matrix

    def init(self, critic):
        return ()

    def refuse(self, samples: int) -> str | None:
        return None

    def __call__(self, loop, state, critic, batch, progress, key):
        def outputs(critic):
            return loop.values(critic, batch)

        loss, gradient = jax.value_and_grad(loop.value_loss)(critic, batch)
        weight = 1 / (2 * loss + 1e-8)  # 1 / sigma^2: the loss is half the mean squared error
        product = gauss_newton_product(outputs, critic, weight / outputs(critic).shape[0])
        downhill = jax.tree.map(lambda g: -weight * g, gradient)
        step, curvature = natural_direction(product, downhill, self.cg_iterations, self.damping)
        fraction = jnp.minimum(1.0, jnp.sqrt(2 * self.epsilon / jnp.maximum(curvature, 1e-12)))
        return jax.tree.map(lambda p, s: p + fraction * s, critic, step), state, loss


@composition
def gae(task: ControlTask | None = None) -> OnPolicy:
    """The paper's whole method: TRPO's step on generalised advantages, and a trust region for the value function."""
    continuous = task is not None and isinstance(task.env.action_space, spaces.Box)
    return OnPolicy(
        ImportanceWeighted(),
        GAE(lam=0.96, target_lam=1.0),
        TrustRegion(ValueTrustRegion()),
        num_steps=256,
        standardise="batch",
        normalise_observations=continuous,
        normalise_rewards=True,
    )
