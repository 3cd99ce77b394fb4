"""Policy-Guided Diffusion.

Matthew Thomas Jackson, Michael Tryfan Matthews, Cong Lu, Benjamin Ellis, Shimon Whiteson, Jakob Foerster. 2024. arXiv:2404.06356

An offline agent would rather learn from what its own policy does than from what the log's did. Here a diffusion model of the log's sequences makes
new ones, and while noise is undone their actions are drawn to those that the policy finds likely: the data come nearer to the policy, and stay
plausible, with no model whose errors add up step by step.

    p(x) ~ p_log(x) prod_t pi(a_t | s_t)^lambda,     x = rows of state, action, reward and end
    before the step from noise sigma_i, except the last:      x_a <- x_a + c_i G / |G|,
    G = grad_a sum_t log pi( tanh(a_t) | s_t )  at  D(x, sigma_i),     c_i = lambda [ (1 - i / N) + kappa sin(pi (i + 1) / N) ]

Only actions are moved. Of a deterministic actor pi is a Gaussian of deviation 1 around its action. The log's own likelihood of the actions stays in
p(x), and keeps them from going far. |G| is that of a whole sequence.

After `preparation` updates of the model, sequences are drawn every `lifetime` updates of the host with the policy as it is then, the first ones
without guidance. Most of every minibatch comes from them, the rest from the log. Hosts: TD3+BC, and IQL as `pgd:iql`. Our choices: sequences run on
over terminal states, as no drawn transition would end otherwise; norms of layers for norms of groups; no warm-up. Defaults: the authors', where
lambda is tuned for each task; their model learns for longer than our preparation, which is for logs of 100,000 rows.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.dataset import DataTask
from polopt.loops.synthetic import Augmented, augmented
from polopt.methods.offline.iql import iql as implicit
from polopt.methods.offline.td3_bc import td3_bc
from polopt.methods.registry import composition


def action_score(likelihood: Callable, x, is_action):
    """The gradient of the sum over the rows of x (H, d) of likelihood(row), in the columns that are the action's; 0 in the others."""
    return jnp.where(is_action[None], jax.grad(lambda x: jnp.sum(jax.vmap(likelihood)(x)))(x), 0.0)


def unit_length(score):
    """A score by its length over a whole sequence; 0 stays 0."""
    length = jnp.sqrt(jnp.sum(score**2))
    return jnp.where(length > 0, score / jnp.where(length > 0, length, 1.0), 0.0)


def strength(i, steps: int, weight, bump):
    """c_i = lambda [ (1 - i / N) + kappa sin(pi (i + 1) / N) ]."""
    return weight * ((1 - i / steps) + bump * jnp.sin(jnp.pi * (i + 1) / steps))


@part
class TowardsPolicy:
    """How drawn actions are drawn to those that a policy finds likely."""

    weight: float = hyper(1.0, at_least=0)  # lambda; 0 for none
    bump: float = hyper(0.3, at_least=0)  # kappa: of what is added in the middle of the way
    denoised: bool = True  # ask the policy at the guess of what is behind the noise, not at the noisy sequence
    normalised: bool = True  # divide the gradient of a sequence by its length

    def __call__(self, denoiser: Callable, likelihood: Callable, is_action, steps: int) -> Callable:
        def guide(i, x, sigma):
            score = action_score(likelihood, denoiser(x, sigma) if self.denoised else x, is_action)
            score = unit_length(score) if self.normalised else score
            return x + strength(i, steps, self.weight, self.bump) * score

        return guide


@composition
def pgd(task: DataTask | None = None) -> Augmented:
    """Policy-guided diffusion for TD3+BC."""
    return augmented(td3_bc(task), TowardsPolicy(), task)


@composition
def iql(task: DataTask | None = None) -> Augmented:
    """Policy-guided diffusion for IQL."""
    return augmented(implicit(task), TowardsPolicy(), task)
