"""From a name to an environment."""

from __future__ import annotations

import difflib
import functools
import importlib.util
from typing import Any

import jax

from polopt.core import spaces
from polopt.envs import gymnax_catalogue
from polopt.envs.errors import UnknownEnvironment, UnusableEnvironment
from polopt.envs.host import HostEnvironment
from polopt.envs.jax_env import GymnaxDynamics, JaxEnvironment
from polopt.envs.probes import PROBES
from polopt.envs.protocol import Environment

__all__ = ["UnknownEnvironment", "UnusableEnvironment", "make", "names"]

FORMS = (
    "CartPole-v1, gymnax:ID, gym:HalfCheetah-v5, gym-async:ID, envpool:ID, probe:NAME, exact:NAME, coverage:GRID, "
    "package.module:EnvId or path/to/file.py:ClassName"
)

# Packages that some environments need, by a word in what defines them; the extra has the package's name.
EXTRAS = ("mujoco", "envpool")


def make(name: Any, *, asynchronous: bool = False, costs: int | None = None, **options) -> Environment:
    """The environment that `name` means.

    name:          `CartPole-v1` (gymnax first, else Gymnasium), `gymnax:ID`, `gym:ID`, `gym-async:ID` (a process a copy), `envpool:ID`,
                   `probe:NAME`, `exact:NAME` (a problem of `polopt.envs.exact`), `coverage:GRID` (see `polopt.envs.set_rewards`),
                   `package.module:EnvId`, or `path/to/file.py:ClassName`.
                   What the last two name is registered in Gymnasium, or is a gymnasium.Env class, a function that returns one, or a
                   `Dynamics` (see `polopt.envs.jax_env`). From Python also such a class, function or object itself.
    asynchronous:  run each copy of a Gymnasium environment in a process of its own.
    costs:         how many numbers `info["cost"]` holds; by default what the environment's attribute `costs` says, else none.
    options:       keyword arguments of the environment itself; `max_episode_steps` sets a time limit for Gymnasium environments.

    Raises UnknownEnvironment or UnusableEnvironment (both ValueErrors), with one sentence for the user.
    """
    if not isinstance(name, str):
        return _from_object(getattr(name, "__qualname__", type(name).__qualname__), name, asynchronous, costs, options)
    prefix, colon, rest = name.partition(":")
    if not colon:
        if gymnax_catalogue.known(name):
            return _gymnax(name, name, options)
        return _gymnasium(name, name, asynchronous, costs, options)
    if prefix == "gymnax":
        return _gymnax(name, rest, options)
    if prefix in ("gym", "gym-async"):
        return _gymnasium(name, rest, asynchronous or prefix == "gym-async", costs, options)
    if prefix == "envpool":
        return _envpool(name, rest, options)
    if prefix == "probe":
        if rest not in PROBES:
            raise _unknown(name, [f"probe:{known}" for known in PROBES])
        return JaxEnvironment(name, PROBES[rest])
    if prefix == "exact":
        return _exact(name, rest, options)
    if prefix == "coverage":
        return _coverage(name, rest, options)
    return _own(name, asynchronous, costs, options)


def names() -> list[str]:
    """What `make` knows without a user's own code: gymnax's ids, Gymnasium's as gym:ID, EnvPool's are too many, probes, exact problems, coverage."""
    from polopt.envs.exact.dynamics import EXACT
    from polopt.envs.set_rewards import GRIDS

    found = list(gymnax_catalogue.IDS) if gymnax_catalogue.installed() else []
    own = {"probe": PROBES, "exact": EXACT, "coverage": GRIDS}
    return [*found, *(f"gym:{i}" for i in _gymnasium_ids()), *(f"{prefix}:{known}" for prefix, all in own.items() for known in all)]


def _gymnasium_ids() -> list[str]:
    if importlib.util.find_spec("gymnasium") is None:
        return []
    import gymnasium

    return sorted(i for i in gymnasium.registry if not i.startswith("GymV2"))


def _unknown(name: str, known: list[str]) -> UnknownEnvironment:
    """The sentence for a name that nothing has, with the names nearest to it, whatever their case."""
    by_small = {k.lower(): k for k in known}
    near = [by_small[n] for n in difflib.get_close_matches(name.lower(), by_small, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"give one of these forms: {FORMS}."
    return UnknownEnvironment(f"There is no environment {name!r}; {hint}")


# -- JAX ---------------------------------------------------------------------------------------------------------------


def _gymnax(name: str, rest: str, options) -> JaxEnvironment:
    if not gymnax_catalogue.installed():
        raise UnusableEnvironment(f"{name} needs the package gymnax; install it with: pip install gymnax.")
    if not gymnax_catalogue.known(rest):
        raise _unknown(name, [f"gymnax:{i}" for i in gymnax_catalogue.IDS])
    with _sentences(name):
        return JaxEnvironment(name, GymnaxDynamics(rest, **options))


def _exact(name: str, rest: str, options) -> JaxEnvironment:
    from polopt.envs.exact.dynamics import EXACT, named

    with _sentences(name):
        dynamics = named(rest, **options)
    if dynamics is None:
        raise _unknown(name, [f"exact:{known}" for known in EXACT])
    return JaxEnvironment(name, dynamics)


def _coverage(name: str, rest: str, options) -> JaxEnvironment:
    from polopt.envs.set_rewards import GRIDS, named

    with _sentences(name):
        dynamics = named(rest, **options)
    if dynamics is None:
        raise _unknown(name, [f"coverage:{known}" for known in GRIDS])
    return JaxEnvironment(name, dynamics)


DYNAMICS = ("observation_space", "action_space", "objectives", "costs", "reset", "step")


def _looks_like_dynamics(value) -> bool:
    return hasattr(value, "reset") and hasattr(value, "step") and isinstance(getattr(value, "observation_space", None), spaces.Space)


def _dynamics(name: str, dynamics) -> JaxEnvironment:
    """A user's `Dynamics`, after a look at what its functions give. Nothing is computed, only shapes."""
    missing = [word for word in DYNAMICS if not hasattr(dynamics, word)]
    if missing:
        raise UnusableEnvironment(f"The JAX environment {name} has no {', '.join(missing)}; add what polopt.envs.jax_env.Dynamics lists.")
    try:
        hash(dynamics)
    except TypeError:
        raise UnusableEnvironment(f"The JAX environment {name} cannot be hashed; declare its class with @dataclass(frozen=True).") from None
    environment = JaxEnvironment(name, dynamics)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with _sentences(name):
        action = jax.eval_shape(lambda: spaces.zeros(dynamics.action_space))
        state, observation = jax.eval_shape(dynamics.reset, key)
        step = jax.eval_shape(dynamics.step, state, action, key)
    if not (isinstance(step, tuple) and len(step) == 6):
        raise UnusableEnvironment(
            f"step of the JAX environment {name} gives {len(step) if isinstance(step, tuple) else 'one'} values, but "
            "(state, observation, reward, cost, terminated, truncated) are expected."
        )
    after, following, reward, cost, terminated, truncated = step
    expected = jax.eval_shape(lambda: spaces.zeros(dynamics.observation_space))
    checks = [
        ("the observation of reset", observation, expected),
        ("the observation of step", following, expected),
        ("the state of step", after, state),
        ("the reward", reward, jax.ShapeDtypeStruct((dynamics.objectives,) if dynamics.objectives else (), "float32")),
        ("the cost", cost, jax.ShapeDtypeStruct((dynamics.costs,), "float32")),
        ("terminated", terminated, jax.ShapeDtypeStruct((), "bool")),
        ("truncated", truncated, jax.ShapeDtypeStruct((), "bool")),
    ]
    for what, given, wanted in checks:
        if _layout(given) != _layout(wanted):
            raise UnusableEnvironment(
                f"In the JAX environment {name}, {what} has the shape {_layout(given)}, but {_layout(wanted)} is expected; "
                "correct the environment or its spaces."
            )
    return environment


def _layout(tree):
    """The shapes in a tree, for comparing and for reading."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
    return shapes.get("", shapes)


# -- Gymnasium ---------------------------------------------------------------------------------------------------------


def _gymnasium(name: str, target, asynchronous: bool, costs: int | None, options) -> HostEnvironment:
    """`target` is a registered id, or what `polopt.envs.simulators.Recipe` takes."""
    if importlib.util.find_spec("gymnasium") is None:
        raise UnusableEnvironment(f"{name} needs the package gymnasium; install it with: pip install gymnasium.")
    from polopt.envs.simulators import GymnasiumCopies, Recipe

    if isinstance(target, str) and ":" not in target and target not in _gymnasium_ids():
        if name == target:
            raise _unknown(name, [*gymnax_catalogue.IDS, *_gymnasium_ids(), *(f"probe:{probe}" for probe in PROBES)])
        raise _unknown(name, [f"gym:{i}" for i in _gymnasium_ids()])
    recipe = Recipe(name, target, tuple(options.items()))
    with _sentences(name, target):
        env = recipe.make()
        try:
            costs = int(getattr(env.unwrapped, "costs", 0)) if costs is None else costs
            reward_space = getattr(env.unwrapped, "reward_space", None)
            objectives = int(reward_space.shape[0]) if reward_space is not None and reward_space.shape else 0
            observation_space, action_space = spaces.from_gymnasium(env.observation_space), spaces.from_gymnasium(env.action_space)
        finally:
            env.close()
    make_vector = functools.partial(GymnasiumCopies, recipe, objectives=objectives, costs=costs, asynchronous=asynchronous)
    return HostEnvironment(name, make_vector, observation_space, action_space, objectives, costs)


def _envpool(name: str, rest: str, options) -> HostEnvironment:
    if importlib.util.find_spec("envpool") is None:
        raise UnusableEnvironment(f"{name} needs the package envpool; install it with: pip install 'polopt[envpool]', or use gym:{rest}.")
    import envpool

    from polopt.envs.simulators import EnvPoolCopies, no_warnings

    if rest not in envpool.list_all_envs():
        raise _unknown(name, [f"envpool:{i}" for i in envpool.list_all_envs()])
    with _sentences(name), no_warnings():  # about the precision of bounds
        spec = envpool.make_spec(rest, **options)
        observation_space = spaces.from_gymnasium(spec.gymnasium_observation_space)
        action_space = spaces.from_gymnasium(spec.gymnasium_action_space)
    make_vector = functools.partial(EnvPoolCopies, rest, options=tuple(options.items()))
    return HostEnvironment(name, make_vector, observation_space, action_space)


# -- a user's own ------------------------------------------------------------------------------------------------------


def _own(name: str, asynchronous: bool, costs: int | None, options):
    from polopt.envs.simulators import load

    with _sentences(name):
        entry = load(name)
    if isinstance(entry, str):
        return _gymnasium(name, name, asynchronous, costs, options)
    return _from_object(name, entry, asynchronous, costs, options, target=name)


def _from_object(name: str, entry, asynchronous: bool, costs: int | None, options, target=None):
    """From a class, function or object. `target` is what a worker process is given in its place."""
    if isinstance(entry, (JaxEnvironment, HostEnvironment)):
        return entry
    if not isinstance(entry, type) and _looks_like_dynamics(entry):
        return _dynamics(name, entry)
    if not callable(entry):
        raise UnusableEnvironment(
            f"{name} is a {type(entry).__name__}, but a gymnasium.Env class, a function that returns one, or a JAX Dynamics is expected; {FORMS}."
        )
    import gymnasium

    if not (isinstance(entry, type) and issubclass(entry, gymnasium.Env)):
        settings = {k: v for k, v in options.items() if k != "max_episode_steps"}
        with _sentences(name):
            made = entry(**settings)
        if isinstance(made, (JaxEnvironment, HostEnvironment)):
            return made
        if not isinstance(made, gymnasium.Env):
            if hasattr(made, "reset") and hasattr(made, "step"):
                return _dynamics(name, made)
            raise UnusableEnvironment(
                f"{name} gives a {type(made).__name__}, but a gymnasium.Env or a JAX Dynamics is expected; derive its class from gymnasium.Env."
            )
        made.close()
    return _gymnasium(name, target or entry, asynchronous, costs, options)


class _sentences:
    """A context in which whatever making an environment raises becomes an UnusableEnvironment with one sentence."""

    def __init__(self, name: str, target: Any = None):
        self.name, self.target = name, target

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if not isinstance(error, Exception) or isinstance(error, (UnknownEnvironment, UnusableEnvironment)):
            return
        text = " ".join(f"{error}".split()) or type(error).__name__
        if isinstance(error, ImportError) or type(error).__name__ == "DependencyNotInstalled":
            raise UnusableEnvironment(f"{self.name} needs a package that is not here: {self._advice(error, text)}.") from error
        if isinstance(error, TypeError) and "unexpected keyword" in text:
            raise UnusableEnvironment(f"{self.name} does not take what it was given ({text}); leave the option out.") from error
        if isinstance(error, TypeError) and "space" in text:
            raise UnusableEnvironment(f"{self.name} cannot be used: {text}") from error
        raise UnusableEnvironment(f"{self.name} could not be made: {type(error).__name__}: {text}; try to make it in plain Python.") from error

    def _advice(self, error, text: str) -> str:
        import gymnasium

        spec = gymnasium.registry.get(self.target) if isinstance(self.target, str) else None
        place = f"{spec.entry_point} {text}".lower() if spec else text.lower()
        extra = next((extra for extra in EXTRAS if extra in place), None)
        if extra and importlib.util.find_spec(extra) is None:
            return f"install it with: pip install 'polopt[{extra}]'"
        versions = [s for s in gymnasium.registry.values() if spec and (s.namespace, s.name) == (spec.namespace, spec.name)]
        newest = max(versions, key=_version, default=spec)
        if newest is not spec:
            return f"take its newest version, {newest.id}"
        missing = getattr(error, "name", None)
        return f"install {missing}" if missing else text.rstrip(".")


def _version(spec) -> int:
    return spec.version or 0
