"""Copies of a simulator that step together on the host, in NumPy: Gymnasium's vector environments and EnvPool.

Nothing here knows JAX, so that a worker process of Gymnasium's asynchronous vector environment starts without it.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from polopt.core.errors import MissingCode
from polopt.core.user_code import module_at
from polopt.envs.errors import SimulatorError, UnknownEnvironment, UnusableEnvironment

CHECK = "correct the environment (gymnasium.utils.env_checker.check_env finds such faults)"


class Copies(Protocol):
    """`n` copies of a simulator. Every array has a leading axis of length n."""

    def reset(self, seeds: list[int]) -> Any:
        """The first observations of new episodes. Equal seeds give equal episodes, whatever was run before."""
        ...

    def step(self, action) -> tuple[Any, Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(observation, final_observation, reward, cost, terminated, truncated) as `polopt.envs.protocol.Timestep` says."""
        ...

    def close(self) -> None: ...


# -- one copy ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How one copy of a Gymnasium environment is made. It can be sent to another process.

    name:     what messages call the environment.
    target:   a registered id, "module:Attribute", "file.py:Attribute", or a class or function that gives the environment.
    options:  keyword arguments of the environment; `max_episode_steps` sets a time limit for any of them.
    """

    name: str
    target: str | Callable
    options: tuple[tuple[str, Any], ...] = ()

    def make(self, **more) -> gymnasium.Env:
        entry = load(self.target) if isinstance(self.target, str) and ":" in self.target else self.target
        options = {**dict(self.options), **more}
        quiet_mujoco(entry)
        if isinstance(entry, str):
            return gymnasium.make(entry, disable_env_checker=True, **options)
        limit = options.pop("max_episode_steps", None)
        made = entry(**options)
        if not isinstance(made, gymnasium.Env):
            raise UnusableEnvironment(
                f"{self.name} gives a {type(made).__name__}, but a gymnasium.Env is expected; derive its class from gymnasium.Env."
            )
        return gymnasium.wrappers.TimeLimit(made, limit) if limit else made


def load(target: str) -> Any:
    """What "module:Attribute" or "file.py:Attribute" names: the id of an environment that the module registers, or the attribute.

    The module is looked for in the working directory too. UnknownEnvironment when module, file or attribute does not exist.
    """
    place, _, attribute = target.rpartition(":")
    try:
        module = module_at(place, "the environment", "my_env.py:MyEnv")
    except MissingCode as error:
        raise UnknownEnvironment(str(error)) from error
    if attribute in gymnasium.registry:
        return attribute
    if hasattr(module, attribute):
        return getattr(module, attribute)
    import difflib

    package = module.__name__.partition(".")[0]
    registered = [i for i, spec in gymnasium.registry.items() if _origin(spec.entry_point).partition(".")[0] == package]
    own = [n for n, value in vars(module).items() if callable(value) and getattr(value, "__module__", None) == module.__name__]
    known = [*(n for n in own if not n.startswith("_")), *registered]
    near = difflib.get_close_matches(attribute, known, n=3, cutoff=0.4) or known[:5]
    raise UnknownEnvironment(
        f"{place} has no environment {attribute!r}, neither registered in Gymnasium nor as a class; "
        + (f"try {' or '.join(near)} after the colon." if near else "give a name that it defines after the colon.")
    )


def _origin(entry_point) -> str:
    """The module that an entry point of Gymnasium's registry comes from."""
    return entry_point.partition(":")[0] if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")


def quiet_mujoco(entry: Any) -> None:
    """Show each of MuJoCo's warnings once, as a Python warning, instead of once a copy; drop those that only model authors can heed."""
    spec = gymnasium.registry.get(entry) if isinstance(entry, str) else None
    if spec is None or "mujoco" not in str(spec.entry_point) or importlib.util.find_spec("mujoco") is None:
        return
    import mujoco

    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_mujoco_warning)


def _mujoco_warning(text: str) -> None:
    if "deprecated" not in text:
        warnings.warn(f"MuJoCo: {text}", RuntimeWarning, stacklevel=2)


def _short(value: Any, length: int = 120) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= length else text[: length - 3] + "..."


class Checked(gymnasium.Wrapper):
    """One copy that is held to its own spaces. Breaking them, or raising, is a SimulatorError that says where.

    Infos are dropped, for a vector environment spends more time on gathering them than on small simulators. What does not fit into a
    scalar reward, a reward vector and costs, travels as `info["extras"]`, (objectives + costs,).
    """

    def __init__(self, env: gymnasium.Env, name: str, index: int, objectives: int, costs: int):
        super().__init__(env)
        self.name, self.index, self.objectives, self.costs = name, index, objectives, costs
        self.steps = 0
        self.inner_observation_space = env.observation_space

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.steps = 0
        try:
            result = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise self._raised(error, "reset") from error
        if not (isinstance(result, tuple) and len(result) == 2):
            raise self._broken(f"gave {_short(result)} from reset", "a pair (observation, info)")
        return self._observation(self.inner_observation_space, result[0]), {}

    def step(self, action):
        self.steps += 1
        try:
            result = self.env.step(action)
        except Exception as error:
            raise self._raised(error, f"step({_short(action)})") from error
        if not (isinstance(result, tuple) and len(result) == 5):
            raise self._broken(f"gave {_short(result)} from step", "a tuple (observation, reward, terminated, truncated, info)")
        observation, reward, terminated, truncated, info = result
        observation = self._observation(self.inner_observation_space, observation)
        terminated, truncated = self._flag("terminated", terminated), self._flag("truncated", truncated)
        if terminated or truncated:
            observation = copy.deepcopy(observation)  # an environment that reuses its buffer would overwrite it at the reset
        extras = {}
        if self.objectives or self.costs:
            extras["extras"] = np.concatenate([self._rewards(reward), self._costs(info)])
        return observation, 0.0 if self.objectives else self._reward(reward), terminated, truncated, extras

    def _observation(self, space, value, where: str = "an observation"):
        """`value` with the type of its space."""
        if isinstance(space, spaces.Box):
            array = value if isinstance(value, np.ndarray) else np.asarray(value)
            if array.shape != space.shape:
                raise self._broken(f"gave {where} of shape {array.shape}", f"shape {space.shape} from its space {_short(space)}")
            if array.dtype != space.dtype:
                if not _converts(array, space.dtype):
                    raise self._broken(f"gave {where} of type {array.dtype}", f"{space.dtype} from its space {_short(space)}")
                array = array.astype(space.dtype)
            return array
        if isinstance(space, spaces.Dict):
            if not isinstance(value, dict) or set(value) != set(space.spaces):
                given = f"the names {sorted(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"
                raise self._broken(f"gave {where} with {given}", f"a dict with the names {sorted(space.spaces)}")
            return {name: self._observation(inner, value[name], f"an observation {name!r}") for name, inner in space.spaces.items()}
        array = np.asarray(value)
        if array.shape != space.shape or array.dtype.kind not in "iub":
            raise self._broken(f"gave {where} {_short(value)}", f"whole numbers of shape {space.shape} from its space {_short(space)}")
        if not space.contains(array.astype(space.dtype)):
            raise self._broken(f"gave {where} {_short(value)}", f"a member of its space {_short(space)}")
        return array.astype(space.dtype) if array.ndim else int(array)

    def _flag(self, word: str, value) -> bool:
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "iub":
            raise self._broken(f"gave {word} = {_short(value)}", "true or false")
        return bool(array.item())

    def _reward(self, value) -> float:
        if type(value) is float:
            return value
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "iubf":
            raise self._broken(f"gave the reward {_short(value)}", "one number (an environment with several objectives declares reward_space)")
        return float(array.item())

    def _rewards(self, value) -> np.ndarray:
        if not self.objectives:
            return np.zeros(0)
        array = np.asarray(value)
        if array.shape != (self.objectives,) or array.dtype.kind not in "iubf":
            raise self._broken(f"gave the reward {_short(value)}", f"{self.objectives} numbers as its reward_space says")
        return array.astype(np.float64)

    def _costs(self, info) -> np.ndarray:
        if not self.costs:
            return np.zeros(0)
        if not isinstance(info, dict) or "cost" not in info:
            raise self._broken("gave no info['cost']", f"{self.costs} cost{'s' * (self.costs > 1)} with every step")
        array = np.ravel(info["cost"])
        if array.shape != (self.costs,) or array.dtype.kind not in "iubf":
            raise self._broken(f"gave the cost {_short(info['cost'])}", f"{self.costs} number{'s' * (self.costs > 1)}")
        return array.astype(np.float64)

    def _broken(self, given: str, expected: str) -> SimulatorError:
        return SimulatorError(f"The environment {self.name} {given} at step {self.steps} of copy {self.index}, but {expected} was expected; {CHECK}.")

    def _raised(self, error: Exception, call: str) -> SimulatorError:
        text = _short(f"{type(error).__name__}: {error}".removesuffix(": "), 300)
        return SimulatorError(
            f"The environment {self.name} raised {text} in {call} at step {self.steps} of copy {self.index}, but an observation was expected; "
            "try the same call in plain Python, and correct the environment."
        )


def _converts(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether numbers may take another type without a change of kind: any real number becomes a float, whole numbers that fit stay whole."""
    if array.dtype.kind not in "iubf":
        return False
    if dtype.kind == "f":
        return True
    if dtype.kind not in "iub" or array.dtype.kind == "f":
        return False
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return array.size == 0 or (low <= int(array.min()) and int(array.max()) <= high)


def checked_copy(recipe: Recipe, index: int, objectives: int, costs: int) -> Checked:
    return Checked(recipe.make(), recipe.name, index, objectives, costs)


# -- many copies -------------------------------------------------------------------------------------------------------


class GymnasiumCopies:
    """Gymnasium's synchronous or asynchronous (a process a copy) vector environment."""

    def __init__(self, recipe: Recipe, num_envs: int, *, objectives: int = 0, costs: int = 0, asynchronous: bool = False):
        makers = [functools.partial(checked_copy, recipe, i, objectives, costs) for i in range(num_envs)]
        self.num_envs, self.objectives, self.costs = num_envs, objectives, costs
        self.quiet = _silent_gymnasium if asynchronous else _nothing
        if asynchronous:
            # A fork of a process in which JAX's threads run may never wake up.
            self.vector = AsyncVectorEnv(makers, copy=False, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP)
        else:
            self.vector = SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)

    def reset(self, seeds):
        with self.quiet():
            return self.vector.reset(seed=seeds)[0]

    def step(self, action):
        action = _batch_of_actions(self.vector.single_action_space, action, self.num_envs)
        with self.quiet():
            observation, reward, terminated, truncated, infos = self.vector.step(action)
        final = observation
        if "final_obs" in infos:
            final = _with_rows(observation, {i: infos["final_obs"][i] for i in np.flatnonzero(infos["_final_obs"])})
        cost = np.zeros((self.num_envs, 0), np.float32)
        if self.objectives or self.costs:
            extras = self._extras(infos)
            cost = extras[:, self.objectives :]
            reward = extras[:, : self.objectives] if self.objectives else reward
        return observation, final, reward, cost, terminated, truncated

    def _extras(self, infos) -> np.ndarray:
        """(n, objectives + costs): where an episode ended, Gymnasium keeps what its last step said apart."""
        extras = np.zeros((self.num_envs, self.objectives + self.costs))
        for source in (infos, infos.get("final_info", {})):
            if "extras" in source:
                rows = source["_extras"]
                extras[rows] = source["extras"][rows]
        return extras

    def close(self):
        self.vector.close()


class EnvPoolCopies:
    """EnvPool's C++ threads. It resets a finished copy at the step after, so finished copies are reset here at once.

    EnvPool takes seeds only when it is made: `reset` makes it anew. Where an episode ends by itself in the very step of its time limit,
    EnvPool does not tell the two apart and calls it truncated.
    """

    def __init__(self, task: str, num_envs: int, *, options: tuple[tuple[str, Any], ...] = ()):
        self.task, self.num_envs, self.options, self.pool = task, num_envs, dict(options), None

    def reset(self, seeds):
        import envpool

        self.close()
        with no_warnings():  # about the precision of bounds
            self.pool = envpool.make_gymnasium(self.task, num_envs=self.num_envs, seed=seeds, **self.options)
            self.action_space = self.pool.action_space
            return self.pool.reset()[0]

    def step(self, action):
        action = _batch_of_actions(self.action_space, action, self.num_envs)
        observation, reward, terminated, truncated, _ = self.pool.step(action)
        final = observation
        ended = np.flatnonzero(terminated | truncated).astype(np.int32)
        if len(ended):
            first, info = self.pool.reset(ended)
            observation = _with_rows(final, {i: _row(first, k) for k, i in enumerate(info["env_id"])})
        return observation, final, reward, np.zeros((self.num_envs, 0), np.float32), terminated, truncated

    def close(self):
        if self.pool is not None:
            self.pool.close()
            self.pool = None


def _batch_of_actions(space, action, num_envs: int):
    """Actions as the simulator's own space has them."""
    if isinstance(space, (spaces.Dict, dict)):
        return {name: _batch_of_actions(inner, action[name], num_envs) for name, inner in space.items()}
    return np.asarray(action, space.dtype).reshape(num_envs, *space.shape)


def _row(batch, i: int):
    return {name: _row(inner, i) for name, inner in batch.items()} if isinstance(batch, dict) else batch[i]


def _with_rows(batch, rows: dict[int, Any]):
    """A copy of a batch in which some rows are replaced."""
    if isinstance(batch, dict):
        return {name: _with_rows(inner, {i: row[name] for i, row in rows.items()}) for name, inner in batch.items()}
    batch = batch.copy()
    for i, row in rows.items():
        batch[i] = row
    return batch


@contextmanager
def _nothing():
    yield


@contextmanager
def _silent_gymnasium():
    """Gymnasium prints a worker's whole traceback before it raises the same error here."""
    level = gymnasium.logger.min_level
    gymnasium.logger.min_level = gymnasium.logger.ERROR + 1
    try:
        yield
    finally:
        gymnasium.logger.min_level = level


@contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
