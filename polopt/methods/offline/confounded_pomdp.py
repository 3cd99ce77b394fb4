"""A Policy Gradient Method for Confounded POMDPs.

Mao Hong, Zhengling Qi, Yanxun Xu. 2023. arXiv:2305.17083

Who made the log saw a state that is not in it, so that what followed an action tells as much of that state as of the action. An observation
from before the decisions, the proxy O_0, says of it what the actions do not: bridges that are fitted to moments given O_0, instead of given
O_t, value any policy of observed histories without bias, and their derivative is its gradient.

With T decisions, histories H_t = (O_1, A_1, ..., O_t, A_t), the policy pi_t(a | o, h) and b_{T+1} = 0, backwards from t = T:

    W_t = ( R_t + sum_a b_{t+1}(a, O_{t+1}, H_t) ) pi_t(A_t | O_t, H_{t-1})
    E[ b_t(A_t, O_t, H_{t-1}) | A_t, H_{t-1}, O_0 ] = E[ W_t | A_t, H_{t-1}, O_0 ]
    V = E[ sum_a b_1(a, O_1) ],    theta <- theta + eta grad V

    b_t = argmin_b max_f  mean[ (W_t - b) f ] - |f|_n^2 - mu_F |f|^2 + mu_B |b|^2,    f a function of (A_t, H_{t-1}, O_0)

Observations and actions are finite here, and both classes are tables: with J the logged numbers of (O_0, O_t) at an action and a history,
S = 1 / (rows of J + mu_F) and y the sum of W_t at each O_0, the solution is b = (J' S J + mu_B)^{-1} J' S y. No part of that matrix depends on theta.
So the derivative of the recursion in theta is the paper's recursion of gradient bridges, solved with the same matrices, and taken backwards it
costs as much as a value. mu_B and mu_F are in episodes (the paper's fall with the number of episodes, too).

An episode of the log is one row for the proxy, whose action and reward mean nothing, and then T rows of decisions; the policy is deployed the
same way. A proxy that tells nothing of an observation is refused, by Pearson's statistic of the two. Whether it tells enough, no log
can say: `condition` is the largest condition number of the matrices that are inverted.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import contingency

from polopt.core import spaces
from polopt.core.parts import hyper, part
from polopt.data.dataset import Dataset, DataTask
from polopt.loops.windows import first_rows, outcomes
from polopt.methods.registry import composition
from polopt.policies.history_tables import HistoryPolicy, Sizes, longer

LARGEST = 10_000_000  # numbers in the matrices of the last decision
WEAKEST = 10.0  # smallest Pearson statistic by its degrees of freedom: the rule of thumb for weak instruments


class Log(NamedTuple):
    """n episodes of T decisions, (n, T) each, and the weight of each episode (n,). The proxy is repeated."""

    proxy: jax.Array
    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    weight: jax.Array


def histories(log: Log, sizes: Sizes):
    """(n, T) the number of the history before each decision."""
    found = [jnp.zeros_like(log.action[:, 0])]
    for t in range(log.action.shape[1] - 1):
        found.append(longer(found[-1], log.observation[:, t], log.action[:, t], sizes))
    return jnp.stack(found, axis=1)


def bridge_matrix(joint, ridge, critic_ridge):
    """((J' S J + ridge)^{-1} J' S (O, P), the condition number of what is inverted) for the numbers of proxy and observation (P, O)."""
    pulled = joint.T / (jnp.sum(joint, axis=1) + critic_ridge)[None]
    normal = pulled @ joint + ridge * jnp.eye(joint.shape[1])
    inverse = jnp.linalg.inv(normal)
    return inverse @ pulled, jnp.linalg.norm(normal, 1) * jnp.linalg.norm(inverse, 1)


def bridge_matrices(log: Log, sizes: Sizes, ridge, critic_ridge):
    """For each decision the matrix of every history and action (H_t, A, O, P); and the largest condition number."""
    (o, a), past, found = sizes, histories(log, sizes), []
    for t in range(log.action.shape[1]):
        place = ((past[:, t] * a + log.action[:, t]) * o + log.proxy[:, t]) * o + log.observation[:, t]
        joint = jax.ops.segment_sum(log.weight, place, sizes.histories(t) * a * o * o)
        found.append(jax.vmap(jax.vmap(lambda j: bridge_matrix(j, ridge, critic_ridge)))(joint.reshape(-1, a, o, o)))
    return [m for m, _ in found], jnp.max(jnp.stack([jnp.max(c) for _, c in found]))


def bridged_value(tables, log: Log, matrices):
    """V of the policy with logits `tables`, (H_t, O, A) for each decision, through its value bridges."""
    sizes = Sizes(*tables[0].shape[1:])
    (o, a), past, after = sizes, histories(log, sizes), jnp.zeros(log.weight.shape)
    for t in reversed(range(len(tables))):
        h, seen, taken = past[:, t], log.observation[:, t], log.action[:, t]
        w = (log.reward[:, t] + after) * jax.nn.softmax(tables[t])[h, seen, taken]
        y = jax.ops.segment_sum(log.weight * w, (h * a + taken) * o + log.proxy[:, t], sizes.histories(t) * a * o).reshape(-1, a, o)
        bridge = jnp.einsum("haop,hap->hao", matrices[t], y)
        after = jnp.sum(bridge[h, :, seen], axis=1)
    return jnp.sum(log.weight * after) / jnp.sum(log.weight)


class State(eqx.Module):
    tables: tuple[jax.Array, ...]
    iteration: jax.Array


@part
class BridgeAscent:
    """Gradient ascent on the bridged value. A step of the run is a step of the ascent."""

    eta: float = hyper(0.5, above=0)  # step size
    decisions: int = hyper(1, at_least=1)  # T: of an episode, by default as many as the log's have
    ridge: float = hyper(0.1, above=0)  # mu_B: penalty of the bridge, in episodes
    critic_ridge: float = hyper(0.1, above=0)  # mu_F: penalty of the test function, in episodes
    scatter: float = hyper(0.1, at_least=0)  # deviation of the first logits
    updates: int = hyper(10, at_least=1)  # steps of the ascent in an iteration

    critic = False
    takes = DataTask
    needs = "a dataset (--data) whose episodes begin with a proxy, an observation from before the decisions"

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        data, rows = task.dataset, self.decisions + 1
        both = data.observation_space, data.action_space
        if not all(isinstance(space, spaces.Discrete) for space in both):
            return (
                f"needs observations, the proxy among them, and actions that are one whole number each, but {data.name} has {both[0]} and {both[1]}. "
                "Number the different ones, and write the log with Discrete spaces"
            )
        episodes = data.episodes()
        lengths, terminated = episodes.lengths, np.asarray(data.terminated)[episodes.end - 1]
        if lengths.max() != rows or (terminated & (lengths < rows)).any():
            return (
                f"needs episodes of one row for the proxy, an observation from before the decisions, and then {self.decisions} of decisions, but "
                f"those of {data.name} have {lengths.min()} to {lengths.max()} rows. Bring them to one length, or set decisions"
            )
        sizes = Sizes(both[0].n, both[1].n)
        numbers = sizes.histories(self.decisions - 1) * sizes.actions * sizes.observations**2
        if numbers > LARGEST:
            return f"would solve for {numbers:.1e} numbers, as every history has its own; at most {LARGEST:.0e} are taken. Take fewer decisions"
        return uninformative(jax.tree.map(np.asarray, jax.jit(self.log)(data)), sizes, data.name)

    @property
    def steps_per_iteration(self) -> int:
        return self.updates

    def log(self, data: Dataset) -> Log:
        """The whole episodes of a dataset; one that the recording cut short weighs nothing."""
        rows, ended = self.decisions + 1, jnp.asarray(data.ended)
        whole = (first_rows(ended) == jnp.arange(len(data))) & (outcomes(data.reward, ended)[1] == rows)
        count = len(data) // rows
        row = jnp.nonzero(whole, size=count, fill_value=0)[0][:, None] + jnp.arange(rows)[None]
        seen, taken, paid = (jnp.asarray(x)[row] for x in (data.observation, data.action, data.reward))
        weight = (jnp.arange(count) < jnp.sum(whole)).astype(jnp.float32)
        return Log(jnp.broadcast_to(seen[:, :1], seen[:, 1:].shape), seen[:, 1:], taken[:, 1:], paid[:, 1:], weight)

    def init(self, task: DataTask, key) -> State:
        sizes = Sizes(task.dataset.observation_space.n, task.dataset.action_space.n)
        keys = jax.random.split(key, self.decisions)
        tables = tuple(self.scatter * jax.random.normal(k, (sizes.histories(t), *sizes)) for t, k in enumerate(keys))
        return State(tables, jnp.zeros((), jnp.int32))

    def step(self, task: DataTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        return self.ascend(self.log(task.dataset), state)

    def ascend(self, log: Log, state: State) -> tuple[State, dict[str, jax.Array]]:
        """An iteration's steps of the ascent on a log."""
        matrices, condition = bridge_matrices(log, Sizes(*state.tables[0].shape[1:]), self.ridge, self.critic_ridge)

        def climb(tables, _):
            value, gradient = jax.value_and_grad(bridged_value)(tables, log, matrices)
            return jax.tree.map(lambda x, g: x + self.eta * g, tables, gradient), (value, optax.tree.norm(gradient))

        tables, (value, length) = jax.lax.scan(climb, state.tables, length=self.updates)
        metrics = {"value": jnp.mean(value), "gradient": jnp.mean(length), "condition": condition}
        return State(tables, state.iteration + 1), metrics

    def policy(self, state: State) -> HistoryPolicy:
        sizes = state.tables[0].shape[-2:]
        return HistoryPolicy(state.tables, *(spaces.Discrete(n) for n in sizes))


def uninformative(log: Log, sizes: Sizes, name: str) -> str | None:
    """Why no bridge can be found in a log; None when nothing in it speaks against one."""
    whole = log.weight > 0
    for t in range(log.action.shape[1]):
        for action in range(sizes.actions):
            rows = whole & (log.action[:, t] == action)
            if not rows.any():
                return f"needs every action at every decision, but {name} has no action {action} at decision {t + 1}. Log it, or leave it out"
            strength = pearson(log.proxy[rows, t], log.observation[rows, t])
            if strength is not None and strength < WEAKEST:
                return (
                    f"needs a proxy that tells of the hidden state, but the first observation of an episode in {name} tells next to nothing of that "
                    f"at decision {t + 1} where action {action} is taken (their Pearson statistic by its degrees of freedom is {strength:.1f}, but "
                    f"{WEAKEST:g} is needed), so that the equations are as good as singular. Take another proxy, or more episodes"
                )
    return None


def pearson(first, second) -> float | None:
    """Pearson's chi-squared of two columns of whole numbers by its degrees of freedom; None where the second never changes."""
    counts = contingency.crosstab(first, second).count
    if counts.shape[1] == 1:
        return None
    found = contingency.chi2_contingency(counts, correction=False)
    return float(found.statistic / max(1, found.dof))


@composition
def confounded_pomdp(task: DataTask | None = None) -> BridgeAscent:
    """Bridge ascent with as many decisions as the log's longest episode has rows behind the first."""
    return BridgeAscent() if task is None else BridgeAscent(decisions=max(1, int(task.dataset.episodes().lengths.max()) - 1))
