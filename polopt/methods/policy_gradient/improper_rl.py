"""Actor-Critic based Improper Reinforcement Learning.

Mohammadi Zaki, Avinash Mohan, Aditya Gopalan, Shie Mannor. 2022. arXiv:2207.09090

Given M controllers that stay as they are, learn with which probabilities to draw one of them, anew at every step. The mixture can be better
than each: two that serve one queue only let the other grow, drawn in turn they keep both short.

    pi(a|s) = sum_m w_m K_m(a|s),  w = softmax(theta);    Q~(s,m) = sum_a K_m(a|s) Q(s,a),  A~ = Q~ - V
    dJ / dtheta_m = sum_s d(s) w_m A~(s,m)                          d not normalised: it holds the factor 1 / (1 - gamma)
    without gradients:   grad ~= (1/L) sum_l (M / alpha) (R_l - mean R) u_l,    R_l the return at theta + alpha u_l, |u_l| = 1
    actor-critic:        V = phi^T v,  delta = r + gamma V(s') - V(s),  v += beta mean(delta phi),    psi = grad log w_m
                         ACIL theta += alpha mean(delta psi);    NACIL theta += alpha F^-1 mean(delta psi),  F = mean(psi psi^T) + lambda I

`improper_rl` is NACIL, which the paper gives for when the Fisher matrix is well estimated; `acil` is for when it is not, `gradient_free` needs
no critic. `exact_gradient` is the first line in a table. `gated`, where the weights depend on the state, is not in the paper.

Controllers are the folders of runs, whose actions are drawn as in their training, or numbers, which are constant actions; all of these if
none is given. Our choices: phi is the flattened observation (and its products) with a one, and the critic's step is divided by the mean
|phi|^2 where that is above 1, as the paper takes |phi| <= 1; states count as often as they are visited, without gamma^t. The critic goes on
through time limits; without one a return ends with the episode however it ends, at the latest after `num_steps`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from polopt.core import spaces
from polopt.core.parts import hyper, part
from polopt.envs.exact import tabular
from polopt.envs.task import ControlTask
from polopt.loops.mixing import ByState, Mixing, collect, start_acting
from polopt.methods.registry import composition

# -- the mathematics ---------------------------------------------------------------------------------------------------


def mixture(theta, controllers):
    """pi (S, A) of logits theta (M,) and controllers K (M, S, A)."""
    return jnp.einsum("m,msa->sa", jax.nn.softmax(theta), controllers)


def mixture_advantages(mdp: tabular.TabularMDP, theta, controllers):
    """A~ (S, M): by how much a step of each controller is better than one of the mixture."""
    policy = mixture(theta, controllers)
    action_values = tabular.state_action_values(mdp, policy)
    return jnp.einsum("msa,sa->sm", controllers, action_values) - tabular.values(mdp, policy)[:, None]


def exact_gradient(mdp: tabular.TabularMDP, theta, controllers):
    """dJ / dtheta (M,)."""
    visits = tabular.state_occupancy(mdp, mixture(theta, controllers), normalised=False)
    return visits @ (jax.nn.softmax(theta)[None] * mixture_advantages(mdp, theta, controllers))


def sphere(key, count: int, size: int):
    """`count` directions (count, size) of length 1, all alike likely."""
    u = jax.random.normal(key, (count, size))
    return u / jnp.linalg.norm(u, axis=1, keepdims=True)


def smoothed_gradient(returns, directions, radius):
    """The gradient (M,) from returns (L,) at theta + radius * directions (L, M); the returns' mean is a baseline."""
    return directions.shape[1] / radius * jnp.mean((returns - returns.mean())[:, None] * directions, axis=0)


def natural_direction(psi, delta, damping):
    """F^-1 mean(delta psi), F = mean(psi psi^T) + damping I, from psi (B, P) and delta (B,)."""
    count, size = psi.shape
    gradient = psi.T @ delta / count
    if size <= count:
        return jnp.linalg.solve(psi.T @ psi / count + damping * jnp.eye(size), gradient)
    inner = jnp.linalg.solve(psi @ psi.T + count * damping * jnp.eye(count), psi @ gradient)
    return (gradient - psi.T @ inner) / damping


# -- how the weights move ----------------------------------------------------------------------------------------------


@part
class ActorCritic:
    """ACIL, or NACIL where `natural`."""

    natural: bool = True  # divide by the Fisher matrix of the weights
    learning_rate: float = hyper(1e-2, above=0)  # alpha: of the weights
    damping: float = hyper(1e-3, above=0)  # lambda: added to the Fisher matrix, which is singular along equal shifts
    critic_learning_rate: float = hyper(0.1, above=0)  # beta: of the critic
    critic_steps: int = hyper(5, at_least=1)  # N_c: batches that the critic learns from before the weights move
    features: str = hyper("linear", choices=("linear", "quadratic"))  # of the critic: the observation, and its products too

    def init(self, loop, task, policy, key):
        width = self.phi(task.env.observation_space, spaces.zeros(task.env.observation_space)).shape[0]
        return start_acting(task.env, policy, loop.num_envs, key), jnp.zeros((width,))

    def refresh(self, loop, task, policy, state, key):
        return start_acting(task.env, policy, loop.num_envs, key), state[1]

    def steps(self, loop):
        return (self.critic_steps + 1) * loop.num_envs * loop.num_steps

    def phi(self, space, observation):
        """Features of one observation, the last of them 1."""
        x, _ = spaces.flatten(space, observation)
        products = jnp.outer(x, x)[jnp.triu_indices(x.shape[0])] if self.features == "quadratic" else x[:0]
        return jnp.concatenate([x, products, jnp.ones((1,))])

    def __call__(self, loop, task, policy, state, key):
        features = jax.vmap(lambda o: self.phi(task.env.observation_space, o))

        def batch(acting, key):
            """On-policy transitions (B, ...) with their features."""
            acting, seen, finished = collect(task.env, policy, acting, loop.num_steps, key)
            seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
            return acting, (seen, features(seen.observation), features(seen.following)), finished

        def errors(v, seen, now, following):
            return seen.reward + loop.discount * (1 - seen.terminated) * (following @ v) - now @ v

        def fit(carry, key):
            acting, v = carry
            acting, data, finished = batch(acting, key)
            scale = jnp.maximum(jnp.mean(jnp.sum(data[1] ** 2, axis=1)), 1.0)
            delta = errors(v, *data)
            return (acting, v + self.critic_learning_rate / scale * jnp.mean(delta[:, None] * data[1], axis=0)), (jnp.mean(delta**2), finished)

        *k_fit, k_move = jax.random.split(key, self.critic_steps + 1)
        (acting, v), (squared, episodes) = jax.lax.scan(fit, state, jnp.stack(k_fit))
        acting, data, finished = batch(acting, k_move)
        seen, delta = data[0], errors(v, *data)
        theta, rebuild = ravel_pytree(policy.gate)

        def log_weight(theta, observation, index):
            return jax.nn.log_softmax(rebuild(theta)(observation))[index]

        psi = jax.vmap(jax.grad(log_weight), in_axes=(None, 0, 0))(theta, seen.observation, seen.index)
        direction = natural_direction(psi, delta, self.damping) if self.natural else psi.T @ delta / delta.shape[0]
        episodes = jax.tree.map(lambda many, last: jnp.sum(many) + last, episodes, finished)
        return rebuild(theta + self.learning_rate * direction), (acting, v), {**episodes, "loss/value": 0.5 * jnp.mean(squared)}


@part
class GradientFree:
    """Returns of fresh episodes at weights nearby, in `directions` directions, `num_envs` episodes of `num_steps` steps each."""

    learning_rate: float = hyper(0.1, above=0)  # of the weights
    directions: int = hyper(10, at_least=2)  # L
    radius: float = hyper(0.1, above=0)  # alpha: how far the weights are moved to try them

    def init(self, loop, task, policy, key):
        return ()

    def refresh(self, loop, task, policy, state, key):
        return ()

    def steps(self, loop):
        return self.directions * loop.num_envs * loop.num_steps

    def returns(self, loop, task, policy, thetas, key):
        """The mean discounted return (L,) at each of the flat weights (L, P), and sums over the episodes that ended."""
        rebuild = ravel_pytree(policy.gate)[1]
        copies = thetas.shape[0] * loop.num_envs
        gates = jax.vmap(rebuild)(jnp.repeat(thetas, loop.num_envs, axis=0))
        k_start, k_act = jax.random.split(key)
        start = start_acting(task.env, policy, copies, k_start)
        _, seen, episodes = collect(task.env, policy, start, loop.num_steps, k_act, gates=gates)
        over = jnp.cumsum(seen.ended, axis=0) - seen.ended > 0  # behind an end another episode has begun
        rewards = jnp.where(over, 0.0, seen.reward)
        total = loop.discount ** jnp.arange(loop.num_steps, dtype=jnp.float32) @ rewards
        return total.reshape(-1, loop.num_envs).mean(axis=1), episodes

    def __call__(self, loop, task, policy, state, key):
        k_directions, k_returns = jax.random.split(key)
        theta, rebuild = ravel_pytree(policy.gate)
        directions = sphere(k_directions, self.directions, theta.shape[0])
        returns, episodes = self.returns(loop, task, policy, theta[None] + self.radius * directions, k_returns)
        gradient = smoothed_gradient(returns, directions, self.radius)
        return rebuild(theta + self.learning_rate * gradient), state, {**episodes, "gradient_norm": jnp.linalg.norm(gradient)}


@composition
def improper_rl(task: ControlTask | None = None) -> Mixing:
    """NACIL: natural actor-critic on the weights of the controllers."""
    return Mixing(ActorCritic())


@composition
def acil(task: ControlTask | None = None) -> Mixing:
    """ACIL: plain actor-critic."""
    return Mixing(ActorCritic(natural=False))


@composition
def gradient_free(task: ControlTask | None = None) -> Mixing:
    """The estimate from returns at weights nearby."""
    return Mixing(GradientFree(), num_steps=100)


@composition
def gated(task: ControlTask | None = None) -> Mixing:
    """Not in the paper: the weights depend on the state, through a network."""
    return Mixing(ActorCritic(natural=False), ByState())
