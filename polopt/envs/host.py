"""Simulators that run on the host, called from inside a compiled program."""

from __future__ import annotations

import dataclasses
import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

try:
    from jax.experimental.buffer_callback import buffer_callback
except ImportError:  # it is experimental; without it everything works, more slowly
    buffer_callback = None

from polopt.core.callbacks import clear_errors, keep
from polopt.core.spaces import Dict, Space
from polopt.envs.errors import ActionError, SimulatorError
from polopt.envs.protocol import Timestep

__all__ = ["ActionError", "HostEnvironment", "HostState", "SimulatorError", "clear_errors"]


class HostState(NamedTuple):
    """What a compiled program holds of simulators that live on the host: which they are, and how many steps they have made.

    slot, steps: int32 scalars. `steps` makes each call depend on the one before it, so that they run in this order, and lets the host
    notice a state that is not its newest.
    """

    slot: jax.Array
    steps: jax.Array


def _static(**options):
    return field(metadata={"static": True}, **options)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HostEnvironment:
    """Copies of a host simulator under `polopt.envs.protocol.Environment`.

    make_vector:  `make_vector(num_envs)` gives `polopt.envs.simulators.Copies`.
    slot:         which simulators are meant: a whole number, and the environment's only leaf. `with_slot(i)` is the same environment
                  with other simulators; a function that takes the environment as an argument is compiled once for all slots.

    The simulators of a slot are made by its first `reset` and used again, with new seeds, by the later ones. `reset` and `step` work inside
    `jax.jit`, `lax.scan`, `lax.while_loop` and `lax.cond`, but not under `jax.vmap`; only the newest state of a slot can be stepped, and a
    program that resets what it has stepped says so (see `reset`).
    Equal keys give equal episodes, also in another process. What goes wrong is a SimulatorError; see `clear_errors`.
    """

    name: str = _static()
    make_vector: Callable[[int], Any] = _static()
    observation_space: Space = _static()
    action_space: Space = _static()
    objectives: int = _static(default=0)
    costs: int = _static(default=0)
    simulators: Any = _static(default=None, repr=False)
    slot: Any = 0
    host = True

    def __post_init__(self):
        if self.simulators is None:
            object.__setattr__(self, "simulators", Simulators(self.name, self.make_vector))

    def with_slot(self, slot) -> HostEnvironment:
        """The same environment with the simulators of another slot, which may be a traced whole number."""
        return dataclasses.replace(self, slot=slot)

    def reset(self, key, num_envs: int, after: HostState | None = None):
        """Start `num_envs` episodes, seeded by `key`: (state, observation).

        after:  the state of this slot that was stepped last in the same compiled program, if it was. A program's calls run in the order in
                which they need each other's results, not as they were written. What is stepped in the wrong order raises a SimulatorError.
        """
        slot = jnp.asarray(self.slot, jnp.int32)
        seeds = jax.random.bits(key, (num_envs,), "uint32") >> 1  # some simulators take only what fits into a signed int
        shapes = jax.ShapeDtypeStruct((), jnp.int32), _shapes(self.observation_space, num_envs)
        steps, observation = _on_host(self.simulators.reset, shapes, slot, seeds, *(() if after is None else (after.steps,)))
        return HostState(slot, steps), observation

    def step(self, state: HostState, action, key):
        """One step of every copy. Simulators keep random numbers of their own, so `key` is not used."""
        num_envs = jax.tree.leaves(action)[0].shape[0]
        observation = _shapes(self.observation_space, num_envs)
        reward = jax.ShapeDtypeStruct((num_envs, self.objectives) if self.objectives else (num_envs,), jnp.float32)
        cost = jax.ShapeDtypeStruct((num_envs, self.costs), jnp.float32) if self.costs else None
        flag = jax.ShapeDtypeStruct((num_envs,), bool)
        shapes = jax.ShapeDtypeStruct((), jnp.int32), Timestep(observation, observation, reward, cost, flag, flag)
        steps, after = _on_host(self.simulators.step, shapes, *state, action)
        if not self.costs:
            after = after._replace(cost=jnp.zeros((num_envs, 0)))
        return HostState(state.slot, steps), after

    def close(self) -> None:
        """Free the simulators of every slot. The environment can be reset again afterwards."""
        _close_all(self.simulators.running)


def _shapes(space: Space, num_envs: int):
    if isinstance(space, Dict):
        return {name: _shapes(inner, num_envs) for name, inner in space.items}
    return jax.ShapeDtypeStruct((num_envs, *space.shape), space.dtype)


def _on_host(function, shapes, *args):
    """Arrays of these shapes, filled by `function(out, *args)` on the host, where `out` and `args` are NumPy arrays.

    On the CPU the function writes into the program's own memory: half the time of `io_callback`, which copies arguments and results through
    JAX arrays (HalfCheetah x 8: 446 against 632 us a step).
    """
    if buffer_callback is not None and jax.default_backend() == "cpu":

        def in_place(_, out, *args):
            function(jax.tree.map(np.asarray, out), *jax.tree.map(np.asarray, args))

        return buffer_callback(in_place, shapes, has_side_effect=True)(*args)

    def copied(*args):
        out = jax.tree.map(lambda s: np.empty(s.shape, s.dtype), shapes)
        function(out, *jax.tree.map(np.asarray, args))
        return out

    return io_callback(copied, shapes, *args, ordered=True)


@dataclass
class _Running:
    copies: Any
    num_envs: int
    steps: int = 0


class Simulators:
    """The host's side of an environment: the simulators of each slot. Everything here is NumPy; it runs while the program waits."""

    def __init__(self, name: str, make_vector):
        self.name, self.make_vector = name, make_vector
        self.running: dict[int, _Running] = {}
        self.lock = threading.RLock()
        weakref.finalize(self, _close_all, self.running)

    def reset(self, out, slot, seeds, *after) -> None:
        """Fill (steps, observation). Called from a compiled program, as is `step`. `after` is there to be waited for."""
        slot, seeds = int(slot), seeds.tolist()
        steps, observation = out
        with self._errors(slot, "reset"):
            running = self.running.get(slot)
            if running is None or running.num_envs != len(seeds):
                self._drop(slot)
                running = self.running[slot] = _Running(self.make_vector(len(seeds)), len(seeds))
            running.steps = 0
            _fill(observation, running.copies.reset(seeds))
            self._check_finite(observation, "an observation", running)
            steps[...] = 0

    def step(self, out, slot, steps, action) -> None:
        """Fill (steps, Timestep)."""
        slot, taken = int(slot), int(steps)
        action = jax.tree.map(np.array, action)  # the program's memory is not the simulator's to keep or to change
        counter, (observation, final_observation, reward, cost, terminated, truncated) = out
        with self._errors(slot, "step"):
            running = self._newest(slot, taken, len(terminated))
            running.steps += 1
            self._check_finite(action, "the action", running)
            following, final, rewards, costs, ends, cuts = running.copies.step(action)
            _fill(observation, following)
            _fill(final_observation, final)
            reward[...] = np.reshape(rewards, reward.shape)
            terminated[...] = ends
            np.greater(cuts, ends, out=truncated)  # an episode that ends by itself in its last step has ended by itself
            self._check_finite(final_observation, "an observation", running)
            self._check_finite(reward, "a reward", running)
            if final is not following:
                self._check_finite(observation, "a first observation", running)
            if cost is not None:
                cost[...] = costs
                self._check_finite(cost, "a cost", running)
            counter[...] = running.steps

    def _newest(self, slot: int, taken: int, num_envs: int) -> _Running:
        """What runs in a slot, if it is what the program means."""
        running = self.running.get(slot)
        if running is None or running.num_envs != num_envs or running.steps != taken:
            there = f"{running.num_envs} copies after {running.steps} steps run there" if running else "nothing runs there"
            raise SimulatorError(
                f"The environment {self.name} was stepped in slot {slot} with {num_envs} actions for a state after {taken} steps, but {there}; "
                "call reset first, also after a checkpoint was loaded, go on from the newest state, give each user a slot of its own, "
                "and where one compiled program resets a slot that it has stepped, give reset the state that it follows (after=state)."
            )
        return running

    def _check_finite(self, value, what: str, running: _Running) -> None:
        for array in jax.tree.leaves(value):
            if array.dtype.kind != "f" or np.isfinite(array).all():
                continue
            copy = int(np.argwhere(~np.isfinite(array))[0][0])
            where = f"at step {running.steps} of copy {copy}"
            numbers = np.array2string(array[copy].ravel(), threshold=8, precision=4, separator=", ")
            if what == "the action":
                raise ActionError(
                    f"The environment {self.name} was given the action {numbers} {where}, but finite numbers are expected; "
                    "the policy has diverged: try a smaller learning rate, or normalised observations and rewards."
                )
            raise SimulatorError(
                f"The environment {self.name} gave {what} that is not finite {where} ({numbers}), but finite numbers are expected; "
                "find what divides by zero or overflows in it, or end the episode before the simulation becomes unstable."
            )

    @contextmanager
    def _errors(self, slot: int, call: str):
        """What is raised inside closes the slot's simulators and is kept for `clear_errors`."""
        with self.lock:
            try:
                yield
            except Exception as error:
                self._drop(slot)
                if not isinstance(error, SimulatorError):
                    cause, error = error, SimulatorError(
                        f"The environment {self.name} raised {type(error).__name__}: {error} in {call}, but simulators that start and run were "
                        "expected; try to make and step it in plain Python."
                    )
                    error.__cause__ = cause
                keep(error)
                raise error

    def _drop(self, slot: int) -> None:
        running = self.running.pop(slot, None)
        if running:
            _close(running)


def _fill(out, value) -> None:
    """Write a simulator's batch into arrays of our space's types and shapes."""
    if isinstance(out, dict):
        for name, inner in out.items():
            _fill(inner, value[name])
    else:
        out[...] = np.reshape(value, out.shape)


def _close(running: _Running) -> None:
    try:
        running.copies.close()
    except Exception as error:  # what the simulator did before it failed to close still counts
        logging.getLogger(__name__).debug("a simulator did not close: %s", error)


def _close_all(running: dict[int, _Running]) -> None:
    while running:
        _close(running.popitem()[1])
