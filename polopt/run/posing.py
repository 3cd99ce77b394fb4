"""From what a user names to a task and a method that fit each other, or one sentence that says why not."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np

from polopt.core import parts, spaces
from polopt.data.dataset import DataTask
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.run.data import load_data


class RunError(ValueError):
    """A user's mistake about a run: the message says what was given, what is expected and what to try."""


DEFAULTS = {
    "control": {"steps": 500_000, "episodes": 10, "final_episodes": 20},
    "language": {"steps": 300, "episodes": 64, "final_episodes": 256},
}


class Posed(NamedTuple):
    """What is learnt from, and what a run keeps of it."""

    task: Any
    name: str  # of what policies are evaluated on
    source: str  # of what is learnt from
    named: bool  # whether a name is enough to make it again
    data: dict[str, Any] | None = None  # of a dataset
    language: dict[str, Any] | None = None  # of a language task
    made: bool = False  # whether the model that training starts from was made for this run


def pose(method, env, *, data, evaluate_on, model, task, verifier, warm_start, steps) -> Posed:
    """What `polopt.run.run.fit` is to learn from, from its arguments."""
    general = _general(method)
    if model is not None or task is not None or _takes_language(general):
        others = [name for name, value in (("env", env), ("evaluate_on", evaluate_on)) if value is not None]
        if others:
            raise RunError(f"{others[0]} is for methods that act in environments; a language model is given a task (--task) or data (--data).")
        return _pose_language(general, method, data, model, task, verifier, warm_start, steps)
    if verifier is not None or warm_start is not None:
        raise RunError(f"{'verifier' if verifier is not None else 'warm_start'} is for methods of language models, but {method} is none.")
    environment = _examined(env, data, evaluate_on)
    (steps,) = counted(steps=DEFAULTS["control"]["steps"] if steps is None else steps)
    if data is None:
        return Posed(ControlTask(environment, steps), environment.name, environment.name, isinstance(env, str))
    dataset = dataset_of(data, environment)
    name = dataset.name if environment is None else environment.name
    facts = _described(data, dataset, environment is not None)
    return Posed(DataTask(dataset.on_device(), steps, environment), name, dataset.name, isinstance(evaluate_on, str), facts)


def _takes_language(general) -> bool:
    """Whether a method learns from prompts or preferences, told without loading what language models need."""
    kinds = general.takes if isinstance(general.takes, tuple) else (general.takes,)
    return not {ControlTask, DataTask} & set(kinds)


def _pose_language(general, method, data, model, task, verifier, warm_start, steps) -> Posed:
    from polopt.run import language

    if language.wanted(general) is None:
        raise RunError(f"The method {method} needs {general.needs}, but was given a language model or task.")
    (steps,) = counted(steps=DEFAULTS["language"]["steps"] if steps is None else steps)
    if task is not None and not isinstance(task, str):
        posed = dataclasses.replace(task, steps=steps)
        return Posed(posed, posed.name, posed.name, False, language={"source": None})
    name, options = language.options_of(task)
    source = language.Source(*(None if x is None else os.fspath(x) for x in (model, name, data, verifier)), options, warm_start)
    posed = language.pose(source, general, steps)
    made = name not in language.TESTBEDS and (source.model == language.TINY or bool(warm_start))
    return Posed(posed, posed.name, posed.name, True, language=language.described(source, posed), made=made)


def compose(method, task, changes: dict[str, Any]):
    """The method for a task, with changed hyperparameters, checked and matched against the task."""
    name = method if isinstance(method, str) else type(method).__name__
    general = _general(method)
    if not isinstance(task, general.takes):
        fitting = _that_take(task)
        hint = f" Methods that take it: {', '.join(fitting)}." if fitting else ""
        raise RunError(f"The method {name} needs {general.needs}, but was given {type(task).__name__}.{hint}")
    composed = registry.load(method)(task) if isinstance(method, str) else method
    composed = parts.replace(composed, changes)
    reason = composed.refuse(task)
    if reason:
        raise RunError(f"The method {name} {reason}.")
    return composed


def _general(method):
    """The method that a key or a composed method means, whatever the task."""
    if isinstance(method, str):
        return registry.load(method)(None)
    if isinstance(method, type) or not hasattr(method, "steps_per_iteration"):
        raise RunError(f"method is {method!r}, but it must be a key such as 'ppo' (see `polopt list`) or a composed method such as OnPolicy(...).")
    return method


def _that_take(task, most: int = 6) -> list[str]:
    """The keys of some methods that take a task."""
    found = []
    for entry in registry.entries():
        composed = [make(None) for make in registry.compositions(entry.key).values()]
        if any(isinstance(task, method.takes) and method.refuse(task) is None for method in composed):
            found.append(entry.key)
    return found[:most]


def _examined(env, data, evaluate_on):
    """The environment that is learnt in, or evaluated on where data are learnt from; None without one."""
    if env is None and data is None:
        raise RunError("There is nothing to learn from: give an environment (--env CartPole-v1), or data (--data FILE) for a method that takes them.")
    if env is not None and data is not None:
        raise RunError("An environment and data are given, but a method learns from one of them. Name the one to evaluate in with --evaluate-on.")
    if data is None and evaluate_on is not None:
        raise RunError("evaluate_on is for methods that learn from data; a method that learns in an environment is evaluated there.")
    chosen = env if data is None else evaluate_on
    return None if chosen is None else environment_of(chosen)


def environment_of(env):
    """From a name, an environment, or what else `make` takes."""
    return env if all(hasattr(env, name) for name in ("name", "observation_space", "action_space", "host", "reset", "step")) else make(env)


def dataset_of(data, environment):
    """The dataset that is meant, with the environment's spaces where there is one."""
    if environment is None:
        return load_data(data)
    dataset = load_data(data, env=environment) if isinstance(data, (str, os.PathLike)) else load_data(data)
    if not fits(environment, dataset):
        raise RunError(
            f"{environment.name} has {spaces_of(environment)}, but the dataset {dataset.name} has {spaces_of(dataset)}. "
            "Evaluate on the environment that the data come from."
        )
    return dataset


def _described(data, dataset, evaluated: bool) -> dict[str, Any]:
    """What a run remembers of its data."""
    source = os.fspath(data) if isinstance(data, (str, os.PathLike)) else None
    if source and ":" not in source:
        source = os.path.abspath(source)
    facts = {"source": source, "name": dataset.name, "transitions": len(dataset), "digest": dataset.digest(), "evaluated": evaluated}
    return {**facts, "reference": dataset.reference, "notes": list(dataset.notes)}


def counted(**given) -> list[int]:
    """The numbers as whole ones of at least 1; 1e6 is taken for 1000000."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not value >= 1 or value % 1 != 0:
            raise RunError(f"{name} is {value!r}, but it must be a whole number of at least 1.")
    return [int(value) for value in given.values()]


def fits(environment, policy) -> bool:
    """Whether a policy can act in an environment: equal actions, and observations that are equal but for their bounds."""
    return _alike(environment.observation_space, policy.observation_space, False) and _alike(environment.action_space, policy.action_space, True)


def _alike(a, b, bounds: bool) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, spaces.Dict):
        return [n for n, _ in a.items] == [n for n, _ in b.items] and all(_alike(x, y, bounds) for (_, x), (_, y) in zip(a.items, b.items))
    if isinstance(a, spaces.Box):
        return (a.shape, a.dtype) == (b.shape, b.dtype) and not (bounds and any(np.any(x != y) for x, y in zip(a.bounds(), b.bounds())))
    return a == b


def spaces_of(owner) -> str:
    return f"observations {_words(owner.observation_space)} and actions {_words(owner.action_space, bounds=True)}"


def _words(space, bounds: bool = False) -> str:
    """A space, short enough for a sentence."""
    if isinstance(space, spaces.Dict):
        return "{" + ", ".join(f"{name}: {_words(inner, bounds)}" for name, inner in space.items) + "}"
    if isinstance(space, spaces.Box):
        low, high = space.bounds()
        limits = f" from {low.min():g} to {high.max():g}" if bounds and low.size else ""
        return f"{space.dtype}{list(space.shape)}{limits}"
    return str(space)
