"""Discounted Markov decision processes with finitely many states and actions: everything in closed form.

Symbols: S states, A actions, M objectives; P[s, a, s'] transition, r[s, a] reward, mu[s] start, gamma discount, pi[s, a] policy.

    V(s)   = sum_a pi(a|s) Q(s, a)                  Q(s, a) = r(s, a) + gamma sum_s' P(s'|s, a) V(s')          A = Q - V
    J      = sum_s mu(s) V(s)                       d(s, a) = sum_t gamma^t Pr(s_t = s, a_t = a)
    grad J = sum_s,a d(s) grad pi(a|s) A(s, a)      for softmax logits: d(s) pi(a|s) A(s, a)

A policy is a table (S, A) of probabilities; functions that take logits say so. Rewards may carry a last axis of objectives, (S, A, M); then
values, advantages, J and gradients carry it too. A terminal state is worth nothing, and no step is made in it.

Sources: Puterman, Markov Decision Processes (1994); Sutton et al., Policy gradient methods (1999); Kakade, A natural policy gradient (2001);
Kakade and Langford, Approximately optimal approximate reinforcement learning (2002).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TabularMDP:
    """A Markov decision process as arrays. A pytree: stack several with `vmap` of what makes them.

    transition:   (S, A, S), each row a distribution; (H, S, A, S) where it depends on the step, for `finite` only.
    reward:       (S, A) or (S, A, objectives); with a first axis H where transition has one.
    start:        (S,) distribution of the first state.
    discount:     gamma in [0, 1]; with 1, every policy looked at must reach a terminal state (or use `finite` or `average`).
    terminal:     (S,) bool, or None for a process that never ends. What the arrays say about leaving a terminal state is ignored.
    cost:         (S, A, costs), or None.
    observation:  (S,) whole numbers, what each state shows, or None where states are seen. Only environments and `observed` read it.
    """

    transition: Array
    reward: Array
    start: Array
    discount: float | Array
    terminal: Array | None = None
    cost: Array | None = None
    observation: Array | None = None

    @property
    def states(self) -> int:
        return self.transition.shape[-3]

    @property
    def actions(self) -> int:
        return self.transition.shape[-2]

    @property
    def staged(self) -> bool:
        """Whether transition and reward depend on the step."""
        return self.transition.ndim == 4

    @property
    def objectives(self) -> int:
        """0 for a scalar reward, else the length of the reward vector."""
        return self.reward.shape[-1] if self.reward.ndim == 3 + self.staged else 0

    def with_reward(self, reward: Array) -> TabularMDP:
        """The same process with another reward: a cost, a pseudo-reward, a scaled one."""
        return dataclasses.replace(self, reward=reward)

    def scalarised(self, weights: Array) -> TabularMDP:
        """The same process with the reward `sum_m weights[m] r[..., m]`."""
        return self.with_reward(self.reward @ weights)


def check(mdp: TabularMDP) -> None:
    """Raise ValueError where the arrays are not a Markov decision process. For arrays with values, not traced ones."""
    P, start = np.asarray(mdp.transition), np.asarray(mdp.start)
    states, actions = P.shape[-3:-1] if P.ndim in (3, 4) else (0, 0)
    if P.ndim not in (3, 4) or P.shape[-1] != states:
        raise ValueError(f"The transition has the shape {P.shape}, but (states, actions, states), or that with an axis of steps before, is expected.")
    wanted = P.shape[:-1]
    if mdp.reward.shape[: len(wanted)] != wanted or mdp.reward.ndim > len(wanted) + 1:
        raise ValueError(f"The reward has the shape {mdp.reward.shape}, but {wanted}, or that with an axis of objectives behind, is expected.")
    if start.shape != (states,):
        raise ValueError(f"The start distribution has the shape {start.shape}, but ({states},) is expected.")
    for what, shape, array in [("terminal", (states,), mdp.terminal), ("observation", (states,), mdp.observation)]:
        if array is not None and array.shape != shape:
            raise ValueError(f"{what} has the shape {array.shape}, but {shape}, one entry a state, is expected.")
    if mdp.cost is not None and (mdp.cost.ndim != 3 or mdp.cost.shape[:2] != (states, actions)):
        raise ValueError(f"The cost has the shape {mdp.cost.shape}, but ({states}, {actions}, costs) is expected.")
    for what, rows in [("transition", P), ("start", start)]:
        if np.any(rows < 0) or np.any(np.abs(rows.sum(-1) - 1) > 1e-5):
            raise ValueError(f"Some row of {what} is not a distribution: its entries must be at least 0 and sum to 1.")
    if not 0 <= np.max(mdp.discount) <= 1:
        raise ValueError(f"The discount is {mdp.discount}, but a number from 0 to 1 is expected.")


def as_array(x) -> Array:
    """Numbers as a JAX array of the default type: float64 inside `jax.enable_x64(True)`, else float32. Plain ones are converted without compiling."""
    return jnp.asarray(x, float) if isinstance(x, jax.core.Tracer) else jnp.asarray(np.asarray(x, jnp.result_type(float)))


def alive(mdp: TabularMDP) -> Array:
    """(S,): 1 where a state can be acted in, 0 where it is terminal."""
    return jnp.ones_like(mdp.start) if mdp.terminal is None else 1 - mdp.terminal.astype(mdp.start.dtype)


def dynamics(mdp: TabularMDP) -> tuple[Array, Array]:
    """Transition and reward with nothing after the end: no mass enters a terminal state, and none leaves it. Shapes as in the process."""
    live = alive(mdp)
    mask = live[:, None, None] * live[None, None, :]
    P = mdp.transition * (mask[None] if mdp.staged else mask)
    rows = live.reshape((1,) * mdp.staged + (-1,) + (1,) * (mdp.reward.ndim - 1 - mdp.staged))
    return P, mdp.reward * rows


def times(x: Array, y: Array) -> Array:
    """x * y, where y may have more axes behind those of x."""
    return x.reshape(x.shape + (1,) * (y.ndim - x.ndim)) * y


def expectation(policy: Array, x: Array) -> Array:
    """sum_a pi(a|s) x(s, a): (S,), or (S, M) if x has objectives."""
    return jnp.einsum("sa,sa...->s...", policy, x)


def observed(mdp: TabularMDP, table: Array) -> Array:
    """The policy (S, A) of an agent that sees only observations and acts by `table` (observations, A)."""
    return table if mdp.observation is None else table[mdp.observation]


# -- evaluation --------------------------------------------------------------------------------------------------------


def policy_kernel(mdp: TabularMDP, policy: Array) -> Array:
    """P_pi (S, S) = sum_a pi(a|s) P(s'|s, a), with nothing after the end."""
    _check_policy(mdp, policy)
    return jnp.einsum("sa,sap->sp", policy, dynamics(mdp)[0])


def values(mdp: TabularMDP, policy: Array) -> Array:
    """V (S,) = (I - gamma P_pi)^-1 r_pi; (S, M) with objectives."""
    return jnp.linalg.solve(_resolvent(mdp, policy), expectation(policy, dynamics(mdp)[1]))


def lookahead(mdp: TabularMDP, values: Array) -> Array:
    """r + gamma P V, (S, A): the action values if the next states are worth `values`."""
    P, reward = dynamics(mdp)
    return reward + mdp.discount * jnp.einsum("sap,p...->sa...", P, values)


def state_action_values(mdp: TabularMDP, policy: Array) -> Array:
    """Q (S, A) of a policy; (S, A, M) with objectives."""
    return lookahead(mdp, values(mdp, policy))


def advantages(mdp: TabularMDP, policy: Array) -> Array:
    """A (S, A) = Q - V; its mean under the policy is 0 in every state."""
    q = state_action_values(mdp, policy)
    return q - expectation(policy, q)[:, None]


def objective(mdp: TabularMDP, policy: Array) -> Array:
    """J = sum_s mu(s) V(s): a number, or (M,) with objectives."""
    return (mdp.start * alive(mdp)) @ values(mdp, policy)


def state_occupancy(mdp: TabularMDP, policy: Array, *, normalised: bool) -> Array:
    """d (S,): the sum of `occupancy` over actions."""
    d = jnp.linalg.solve(_resolvent(mdp, policy).T, mdp.start * alive(mdp))
    return d * (1 - mdp.discount) if normalised else d


def occupancy(mdp: TabularMDP, policy: Array, *, normalised: bool) -> Array:
    """d (S, A) = sum_t gamma^t Pr(s_t = s, a_t = a), over the steps before the end.

    normalised: multiply by 1 - gamma; the sum is then 1 if the process never ends. Else it is 1 / (1 - gamma), and J = sum d r.
    """
    return state_occupancy(mdp, policy, normalised=normalised)[:, None] * policy


def performance_difference(mdp: TabularMDP, new: Array, old: Array) -> Array:
    """sum_s,a d^new(s, a) A^old(s, a), which equals J(new) - J(old); d unnormalised."""
    return jnp.einsum("sa,sa...->...", occupancy(mdp, new, normalised=False), advantages(mdp, old))


# -- derivatives for softmax logits ------------------------------------------------------------------------------------


def softmax_objective(mdp: TabularMDP, logits: Array) -> Array:
    """J of the softmax policy of logits (S, A): the function that the gradients below differentiate."""
    return objective(mdp, jax.nn.softmax(logits))


def policy_gradient(mdp: TabularMDP, logits: Array) -> Array:
    """dJ / dlogits (S, A) = d(s) pi(a|s) A(s, a), d unnormalised; (S, A, M) with objectives."""
    policy = jax.nn.softmax(logits)
    return times(occupancy(mdp, policy, normalised=False), advantages(mdp, policy))


def hessian_vector_product(mdp: TabularMDP, logits: Array, vector: Array) -> Array:
    """The Hessian of J at logits (S, A) times a vector (S, A), by forward over reverse differentiation."""
    _scalar("hessian_vector_product", mdp)
    return jax.jvp(jax.grad(lambda x: softmax_objective(mdp, x)), (logits,), (vector,))[1]


def fisher_vector_product(mdp: TabularMDP, logits: Array, vector: Array, *, normalised: bool) -> Array:
    """F v (S, A), F = sum_s d(s) E_a[grad log pi grad log pi^T], with d normalised or not: d(s) pi(a|s) (v(s, a) - E_a[v])."""
    policy = jax.nn.softmax(logits)
    return occupancy(mdp, policy, normalised=normalised) * (vector - expectation(policy, vector)[:, None])


def natural_gradient(mdp: TabularMDP, logits: Array, *, normalised: bool) -> Array:
    """A solution x (S, A) of F x = grad J: A / (1 - gamma) with the normalised Fisher matrix, A with the unnormalised one.

    F leaves a constant in every state free; here the mean of x under the policy is 0. In states that are never visited x is the same limit.
    """
    x = advantages(mdp, jax.nn.softmax(logits))
    return x / (1 - mdp.discount) if normalised else x


# -- optimum -----------------------------------------------------------------------------------------------------------


class Optimum(NamedTuple):
    """The best there is: V* (S,), Q* (S, A) and a deterministic policy (S, A) that attains them."""

    values: Array
    action_values: Array
    policy: Array


def optimal(mdp: TabularMDP, *, iterations: int = 1000) -> Optimum:
    """The optimum by policy iteration, exact up to rounding.

    Differentiable in the process: the derivative of V* in the reward is the best policy's occupancy. With discount 1 and tied actions the
    policy may stay mixed where a tied action might never end.
    """
    _scalar("optimal", mdp)
    fixed = jax.lax.stop_gradient(mdp)
    policy = policy_iteration(lambda p: state_action_values(fixed, p), jnp.full_like(fixed.reward, 1 / mdp.actions), iterations)
    v = values(mdp, policy)
    q = lookahead(mdp, v)
    return Optimum(v, q, jnp.where(jnp.asarray(mdp.discount) < 1, greedy(q), policy))


def greedy(action_values: Array) -> Array:
    """The deterministic policy (..., A) that takes the first best action."""
    return jax.nn.one_hot(jnp.argmax(action_values, -1), action_values.shape[-1], dtype=action_values.dtype)


def policy_iteration(evaluate, policy: Array, iterations: int, *, rising: bool = True) -> Array:
    """The last policy of Howard's improvement, from a policy (S, A). `evaluate` maps a policy to its action values (S, A).

    An action is replaced only where another is better by more than rounding. With `rising` the loop also ends when the values, summed over
    states, stop rising, so that rounding cannot make it cycle.
    """

    def improve(loop):
        policy, q, _, count = loop
        v = expectation(policy, q)
        better = q.max(-1) - v > 16 * jnp.finfo(q.dtype).eps * (1 + jnp.abs(q).max())
        new = jnp.where(better[:, None], greedy(q), policy)
        new_q = evaluate(new)
        go = jnp.any(better) & ((expectation(new, new_q).sum() > v.sum()) | (not rising))
        return jnp.where(go, new, policy), jnp.where(go, new_q, q), go, count + 1

    start = (policy, evaluate(policy), jnp.array(True), 0)
    return jax.lax.while_loop(lambda loop: loop[2] & (loop[3] < iterations), improve, start)[0]


# -- a memory for an agent that sees observations only -------------------------------------------------------------------


def with_memory(mdp: TabularMDP, size: int) -> TabularMDP:
    """The process whose agent also holds a note z in 0 ... size-1, first 0: state s * size + z, action a * size + z' with z' the next note.

    Its observations are (what s shows) * size + z. A policy over (a, z') given (observation, z) is then an ordinary policy (see `observed`),
    and its exact J and gradient are those of a policy with memory.
    """
    S, A, Z = mdp.states, mdp.actions, size
    write = jnp.eye(Z, dtype=mdp.transition.dtype)
    P = jnp.einsum("sap,xy->saxpy", mdp.transition, write)
    P = jnp.broadcast_to(P[:, None], (S, Z, A, Z, S, Z)).reshape(S * Z, A * Z, S * Z)

    def repeated(x):
        return None if x is None else jnp.repeat(jnp.repeat(x, Z, 0), Z, 1)

    shown = jnp.arange(S) if mdp.observation is None else mdp.observation
    return TabularMDP(
        transition=P,
        reward=repeated(mdp.reward),
        start=jnp.repeat(mdp.start, Z) * jnp.tile(write[0], S),
        discount=mdp.discount,
        terminal=None if mdp.terminal is None else jnp.repeat(mdp.terminal, Z),
        cost=repeated(mdp.cost),
        observation=jnp.repeat(shown * Z, Z) + jnp.tile(jnp.arange(Z), S),
    )


def _resolvent(mdp: TabularMDP, policy: Array) -> Array:
    kernel = policy_kernel(mdp, policy)
    return jnp.eye(mdp.states, dtype=kernel.dtype) - mdp.discount * kernel


def _check_policy(mdp: TabularMDP, policy: Array) -> None:
    if mdp.staged:
        raise ValueError("The transition depends on the step, so that its values need a horizon; use polopt.envs.exact.finite.")
    if policy.shape != (mdp.states, mdp.actions):
        raise ValueError(f"The policy has the shape {policy.shape}, but ({mdp.states}, {mdp.actions}), states by actions, is expected.")


def _scalar(function: str, mdp: TabularMDP) -> None:
    if mdp.objectives:
        raise ValueError(f"{function} needs one reward, but this process has {mdp.objectives} objectives; weigh them with mdp.scalarised(weights).")
