"""Utilities: functions F of how often which states and actions are met, and the rewards whose policy gradient is that of F.

With lambda(s, a) = sum_t gamma^t Pr(s_t = s, a_t = a), and r = dF/dlambda held fixed, grad F(lambda(theta)) is the policy gradient of V(r).
d is lambda divided by its sum over an episode of the whole horizon; where states are not numbered, it is a density (`polopt.critics.occupancy`).

    Reward      <r, lambda>                                                     r
    Entropy     -sum d log d, of states or of pairs                             -log d - 1
    Imitation   -||d - d_E||^2 / 2                                              d_E - d
    Penalised   <r, lambda> - kappa/2 sum max(0, <c, lambda> - limit)^2         r - kappa max(0, <c, lambda> - limit) c

Estimates of d may be negative, by regression or after a correction; the entropy floors them inside the logarithm.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from polopt.core import spaces
from polopt.core.parts import hyper, part
from polopt.critics.occupancy import Regression, Table


class Utility(Protocol):
    """F, by way of what it must know of the occupancy: the moments, sums over an episode that are linear in lambda."""

    def refuse(self, loop, task) -> str | None: ...

    def init(self, loop, env, key) -> tuple[Any, jax.Array]:
        """What turns steps into moments, and moments of zeros (K,)."""
        ...

    def moments(self, loop, basis, trajectories) -> jax.Array:
        """Those of each episode, (N, K)."""
        ...

    def value(self, basis, moments) -> jax.Array:
        """F."""
        ...

    def rewards(self, loop, basis, moments, trajectories) -> jax.Array:
        """dF/dlambda at every step, (N, T)."""
        ...


@part
class Reward:
    """The discounted return, as every method maximises it."""

    def refuse(self, loop, task):
        return None

    def init(self, loop, env, key):
        return (), jnp.zeros((1,))

    def moments(self, loop, basis, trajectories):
        return jnp.sum(loop.discounted(trajectories.reward), axis=1, keepdims=True)

    def value(self, basis, moments):
        return moments[0]

    def rewards(self, loop, basis, moments, trajectories):
        return trajectories.reward


@part
class Penalised:
    """The discounted return, less a penalty for costs above a limit."""

    limit: float = hyper(0.1, at_least=0)  # of the discounted sum of each cost over an episode
    penalty: float = hyper(10.0, above=0)  # kappa: weight of half the squared excess

    def refuse(self, loop, task):
        return None if task.env.costs else f"needs an environment with costs, but {task.env.name} bears none. Take general_utilities:reward"

    def init(self, loop, env, key):
        return (), jnp.zeros((1 + env.costs,))

    def moments(self, loop, basis, trajectories):
        paid = jnp.concatenate([trajectories.reward[..., None], trajectories.cost], axis=-1)
        return jnp.sum(jax.vmap(loop.discounted, in_axes=2, out_axes=2)(paid), axis=1)

    def value(self, basis, moments):
        return moments[0] - self.penalty / 2 * jnp.sum(jnp.maximum(moments[1:] - self.limit, 0.0) ** 2)

    def rewards(self, loop, basis, moments, trajectories):
        return trajectories.reward - self.penalty * trajectories.cost @ jnp.maximum(moments[1:] - self.limit, 0.0)


@part
class Features:
    """How the density of visits is represented where states are not numbered."""

    count: int = hyper(64, at_least=2)  # bumps
    width: float = hyper(0.5, above=0)  # of a bump, in deviations of uniformly (or normally) drawn places

    def init(self, env, of: str, key) -> tuple[Table | Regression, jax.Array]:
        """The occupancy of states or pairs, and its zero moments."""
        seen = [env.observation_space, *([env.action_space] if of == "pairs" else [])]
        if numbered(env, of):
            size = math.prod(spaces.size(space) for space in seen)
            return Table(size), jnp.zeros((size,))

        def draw(key):
            parts = zip(seen, jax.random.split(key, len(seen)))
            return jnp.concatenate([spaces.flatten(space, spaces.sample(space, k))[0] for space, k in parts])

        return Regression(draw, self.count, self.width, key), jnp.zeros((self.count,))


def numbered(env, of: str) -> bool:
    """Whether states (and actions) are whole numbers, or units of an exact problem that shows them so."""
    units = getattr(getattr(env, "dynamics", None), "observe", None) == "one-hot"
    return (units or isinstance(env.observation_space, spaces.Discrete)) and (of == "states" or isinstance(env.action_space, spaces.Discrete))


def places(occupancy: Table | Regression, of: str, trajectories) -> jax.Array:
    """Where each step is, (N, T, ...), as the occupancy describes places."""
    states, actions = trajectories.inputs[0], trajectories.action
    if of == "states":
        return states
    if isinstance(occupancy, Table):
        return (states[..., :, None] * actions[..., None, :]).reshape(*states.shape[:2], -1)
    return jnp.concatenate([states, actions], axis=-1)


def share(loop) -> jax.Array:
    """1 over the sum of lambda over an episode that lasts for the whole horizon."""
    return 1 / jnp.sum(loop.discounted(jnp.ones((1, loop.horizon))))


def visits(loop, occupancy, of: str, trajectories) -> jax.Array:
    """Each episode's moments of d, (N, K)."""
    weight = loop.discounted(trajectories.mask.astype(trajectories.reward.dtype)) * share(loop)
    return jnp.einsum("nt,ntk->nk", weight, jax.vmap(jax.vmap(occupancy.features))(places(occupancy, of, trajectories)))


def densities(occupancy, of: str, moments, trajectories) -> jax.Array:
    """d at every step, (N, T)."""
    return jax.vmap(jax.vmap(lambda place: occupancy.density(moments, place)))(places(occupancy, of, trajectories))


def no_pictures(task) -> str | None:
    if spaces.images(task.env.observation_space):
        return f"needs states as numbers or vectors, but {task.env.name} shows pictures. Wrap the environment so that it shows features"
    return None


@part
class Entropy:
    """The entropy of the visits: they spread over all states."""

    occupancy: Features = Features()
    of: str = hyper("states", choices=("states", "pairs"))  # visits of states, or of states with actions
    floor: float = hyper(1e-3, above=0)  # of the density inside the logarithm

    def refuse(self, loop, task):
        return no_pictures(task)

    def init(self, loop, env, key):
        return self.occupancy.init(env, self.of, key)

    def moments(self, loop, basis, trajectories):
        return visits(loop, basis, self.of, trajectories)

    def value(self, basis, moments):
        return basis.integral(lambda d: -d * jnp.log(jnp.maximum(d, self.floor)), moments)

    def rewards(self, loop, basis, moments, trajectories):
        d = densities(basis, self.of, moments, trajectories)
        return share(loop) * (-jnp.log(jnp.maximum(d, self.floor)) - 1)


@part
class Imitation:
    """Minus half the squared distance from an expert's visits of states with actions."""

    occupancy: Features = Features()
    target: tuple[float, ...] = ()  # the expert's moments: in a table its visits, state by state, that sum to 1; nothing for even visits

    def refuse(self, loop, task):
        reason = no_pictures(task)
        if reason or not self.target:
            return reason
        pairs = spaces.size(task.env.observation_space) * spaces.size(task.env.action_space)
        size = pairs if numbered(task.env, "pairs") else self.occupancy.count
        if len(self.target) != size:
            given = f"was given a target of {len(self.target)} numbers, but {task.env.name} needs {size}"
            return f"{given}. Give one for each state and action, or one a feature"
        return None

    def init(self, loop, env, key):
        return self.occupancy.init(env, "pairs", key)

    def moments(self, loop, basis, trajectories):
        return visits(loop, basis, "pairs", trajectories)

    def value(self, basis, moments):
        return basis.integral(lambda difference: -(difference**2) / 2, moments - self._target(basis))

    def rewards(self, loop, basis, moments, trajectories):
        return share(loop) * densities(basis, "pairs", self._target(basis) - moments, trajectories)

    def _target(self, basis):
        return jnp.array(self.target) if self.target else basis.even()
