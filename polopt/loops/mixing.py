"""The loop that learns how to mix controllers which stay as they are: acting, and what an iteration promises."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.networks import Network
from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.refusals import several_objectives
from polopt.policies.mixture import Gate, MixturePolicy, Weights, controllers_of


class Acting(NamedTuple):
    """Where the copies stand: environments, what the controllers remember, episodes in progress."""

    env: Any
    observation: Any
    memory: Any
    episode_return: jax.Array
    episode_length: jax.Array


class Transitions(NamedTuple):
    """Time-major (steps, copies) data; `index` is the controller that acted."""

    observation: Any
    following: Any
    index: jax.Array
    reward: jax.Array
    terminated: jax.Array
    ended: jax.Array


def start_acting(env, policy: MixturePolicy, copies: int, key) -> Acting:
    """`copies` fresh episodes."""
    state, observation = env.reset(key, copies)
    zeros = jnp.zeros((copies,))
    return Acting(state, observation, _each(policy.initial_carry(), copies), zeros, zeros)


def collect(env, policy: MixturePolicy, acting: Acting, steps: int, key, *, gates=None):
    """Act `steps` steps: (acting, transitions, sums over the episodes that ended). gates: one for each copy, in place of the policy's."""
    copies = acting.episode_return.shape[0]
    fresh = _each(policy.initial_carry(), copies)
    gate = policy.gate if gates is None else gates

    def choose(gate, memory, observation, key):
        return MixturePolicy(gate, policy.controllers).choose(memory, observation, key)

    choose = jax.vmap(choose, in_axes=(None if gates is None else 0, 0, 0, 0))

    def step(acting, keys):
        k_act, k_env = keys
        memory, action, index = choose(gate, acting.memory, acting.observation, jax.random.split(k_act, copies))
        state, after = env.step(acting.env, action, k_env)
        ended = after.terminated | after.truncated
        total, length = acting.episode_return + after.reward, acting.episode_length + 1
        sums = {"return": total, "length": length, "count": jnp.ones_like(total)}
        finished = {f"episode/{name}": jnp.sum(jnp.where(ended, x, 0.0)) for name, x in sums.items()}
        memory = jax.tree.map(lambda first, now: jnp.where(ended.reshape(-1, *[1] * (now.ndim - 1)), first, now), fresh, memory)
        seen = Transitions(acting.observation, after.final_observation, index, after.reward, after.terminated, ended)
        return Acting(state, after.observation, memory, jnp.where(ended, 0.0, total), jnp.where(ended, 0.0, length)), (seen, finished)

    acting, (seen, finished) = jax.lax.scan(step, acting, jax.random.split(key, (steps, 2)))
    return acting, seen, jax.tree.map(jnp.sum, finished)


def _each(tree, copies: int):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (copies, *x.shape)), tree)


class GateKind(Protocol):
    """What the weights of the controllers depend on."""

    def refuse(self, controllers: int) -> str | None: ...

    def build(self, space, controllers: int, key) -> Any:
        """A module from an observation to logits (controllers,)."""
        ...


@part
class Fixed:
    """One weight for each controller, whatever is seen."""

    initial: tuple[float, ...] = ()  # theta_0 of the first controllers; 0 for the others

    def refuse(self, controllers: int) -> str | None:
        return f"has {len(self.initial)} initial logits for {controllers} controllers. Give fewer" if len(self.initial) > controllers else None

    def build(self, space, controllers: int, key):
        return Weights(jnp.zeros((controllers,)).at[: len(self.initial)].set(jnp.asarray(self.initial, jnp.float32)))


@part
class ByState:
    """Weights that a network gives for what is seen."""

    hidden: tuple[int, ...] = hyper((64, 64), at_least=1)  # width of each hidden layer
    activation: str = hyper("tanh", choices=("tanh", "relu", "swish", "gelu", "elu"))  # after each hidden layer

    def refuse(self, controllers: int) -> str | None:
        return None

    def build(self, space, controllers: int, key):
        return Gate(Network(self.hidden, self.activation), space, controllers, key)


class Estimator(Protocol):
    """How the gate moves. `init` gives what it keeps, `refresh` the same with new episodes."""

    def init(self, loop, task, policy, key) -> Any: ...

    def refresh(self, loop, task, policy, state, key) -> Any: ...

    def steps(self, loop) -> int:
        """Environment steps of an iteration."""
        ...

    def __call__(self, loop, task, policy, state, key) -> tuple[Any, Any, dict]:
        """(gate, state, metrics)."""
        ...


class State(eqx.Module):
    policy: MixturePolicy
    estimator: Any
    key: jax.Array


@part
class Mixing:
    """A method that learns how to mix controllers."""

    estimator: Estimator
    gate: GateKind = Fixed()
    controllers: tuple[str, ...] = ()  # folders of runs, or numbers for constant actions; none for a set of those
    discount: float = hyper(0.99, at_least=0, at_most=1)  # gamma
    num_envs: int = hyper(8, at_least=1)  # copies of the environment that act at once
    num_steps: int = hyper(16, at_least=1)  # steps of each copy in a batch

    takes = ControlTask
    needs = "an environment (--env)"

    def refuse(self, task) -> str | None:
        """Why this method cannot take the task; None when it can."""
        try:
            return several_objectives(task.env) or self.gate.refuse(len(self._controllers(task)))
        except ValueError as error:
            return f"cannot mix its controllers: {str(error).rstrip('.')}"

    @property
    def steps_per_iteration(self) -> int:
        return self.estimator.steps(self)

    def _controllers(self, task):
        return controllers_of(self.controllers, task.env.observation_space, task.env.action_space)

    def init(self, task: ControlTask, key) -> State:
        k_gate, k_start, key = jax.random.split(key, 3)
        controllers = self._controllers(task)
        policy = MixturePolicy(self.gate.build(task.env.observation_space, len(controllers), k_gate), controllers)
        return State(policy, self.estimator.init(self, task, policy, k_start), key)

    def step(self, task: ControlTask, state: State) -> tuple[State, dict[str, jax.Array]]:
        key, k_step = jax.random.split(state.key)
        gate, estimator, metrics = self.estimator(self, task, state.policy, state.estimator, k_step)
        return State(MixturePolicy(gate, state.policy.controllers), estimator, key), metrics

    def policy(self, state: State) -> MixturePolicy:
        return state.policy

    def refresh(self, task: ControlTask, state: State) -> State:
        """The state with new episodes begun from its own key: what follows a checkpoint where environments live on the host."""
        key, k_start = jax.random.split(state.key)
        return State(state.policy, self.estimator.refresh(self, task, state.policy, state.estimator, k_start), key)
