"""Small versions of every method, so that its contract is checked in a second or two."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from polopt.core import parts
from polopt.data.dataset import DataTask
from polopt.data.language import LanguageTask
from polopt.data.preferences import PreferenceTask
from polopt.envs.jax_env import JaxEnvironment
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.episodes import Episodes
from polopt.loops.reward_model import RewardModelling
from polopt.methods import registry
from polopt.run.collect import collect
from tests.contracts import wording
from tests.contracts.ends import Ends

# By the end of a field's dotted name.
SMALL = {
    "num_envs": 4,
    "num_steps": 8,
    "horizon": 8,
    "network.hidden": (8,),
    "critic_network.hidden": (8,),
    "network.core_size": 4,
    "actor_network.hidden": (8,),
    "value_network.hidden": (8,),
    "model_network.hidden": (8,),
    "quantile_network.hidden": (8,),
    "reward_network.hidden": (8,),
    "rule.width": 8,
    "rule.context": 3,
    "rule.history": 2,
    "rule.future": 2,
    "rule.layers": 1,
    "rule.remembered": 4,
    "rule.latent": 4,
    "rule.state_size": 2,
    "target_every": 2,
    "ascent.utility.occupancy.count": 4,
    "replay.capacity": 64,
    "batch_size": 8,
    "warmup": 4,
    "sampler.prompts": 4,
    "sampler.completions": 4,
    "source.groups": 4,
    "source.prompts_drawn": 4,
    "head.hidden": (4,),
    "dynamics_network.hidden": (8,),
    "behaviour_network.hidden": (8,),
    "rule.threshold": -100.0,  # so that models that know nothing yet have rollouts worth keeping
    "rollouts": 4,
    "rounds": 2,
    "kept": 6,
    "channels": 2,
    "sampler.churn": 1.0,
}
# Never more than by default, so that one-pass methods stay one-pass.
AT_MOST = {
    "improver.epochs": 2,
    "improver.minibatches": 2,
    "improver.value_fit.epochs": 2,
    "improver.value_fit.minibatches": 2,
    "updates": 4,
    "rule.critics": 3,
    "rule.delay": 2,
    "refresh_every": 2,
    "preparation": 1,
    "critic_steps": 1,
    "directions": 2,
    "quantiles": 4,
    "samples": 4,
    "cosines": 4,
    "advantage.k": 2,
    "objective.k": 2,
    "sampler.own": 3,
    "source.responses": 2,
    "fit.epochs": 2,
    "fit.minibatches": 2,
    "epochs": 2,
    "minibatches": 2,
    "members": 2,
    "guides": 8,
    "elites": 1,
    "diffusion": 2,
    "sampler.levels": 3,
    "blocks": 1,
    "model_batch": 4,
    "length": 3,
    "segments": 2,
    "lifetime": 2,
}
OTHERS = {"ascent.utility.target": [(0.4, 0.3, 0.2, 0.1)], "objective.dual": [1.5]}  # other values of fields for which none can be guessed
ELSEWHERE = {
    "cfpi rule.improvement.bounds",  # which candidates are compared, and what each is worth: these three show where it acts, not in what is learnt;
    "cfpi rule.improvement.unlikely",  # tests/policies/test_closed_form.py
    "cfpi rule.midpoints",  # tests/methods/offline/test_cfpi.py
    "guide",  # names a file of an expert's transitions: tests/methods/offline/test_gorl_guided.py writes one
    "doc rule.samples",  # latents that a deployed policy draws: tests/methods/offline/test_doc.py
    "doc:categorical rule.samples",
    "rule.threshold",  # which rollouts are kept: tests/methods/offline/test_mbrcsl.py
    "rule.trained.run",  # names a run on disk: tests/methods/policy_gradient/test_apg.py trains one
    "single_stream objective.dual",  # a lone completion of a table only loses likelihood; the part's own tests are in tests/loops
}
NAMES = [name for entry in registry.entries() for name in registry.compositions(entry.key)]
# Without values, returns end with the episode, however it ends.
WHOLE_EPISODES = [name for name in NAMES if isinstance(registry.load(name)(None), Episodes)] + ["improper_rl:gradient_free"]
WITHOUT_VALUES = [name for name in NAMES if not getattr(registry.load(name)(None), "critic", True)]
ENDS, PROXIED = "tests.contracts.ends", Path(__file__).with_name("proxied.py")


def spoken_for_by_its_kind(name: str) -> None:
    """Skip what is tested of a run, its files and its process with the smallest method of each kind."""
    _spoken_for(name, _kind)


def spoken_for_by_its_loop(name: str) -> None:
    """Skip what is tested of a loop with the smallest of its methods."""
    _spoken_for(name, _loop)


def _spoken_for(name: str, likeness) -> None:
    speaker = min((other for other in NAMES if likeness(other) == likeness(name)), key=_size)
    if speaker != name:
        pytest.skip(f"{speaker} speaks for {name}")


@functools.cache
def _kind(name: str):
    """The loop under whatever a paper has derived from it, and what it learns from."""
    return type(registry.load(name)(None)).__mro__[-2], takes(name)


@functools.cache
def _loop(name: str):
    method = registry.load(name)(None)
    return type(method), *(type(getattr(method, slot, None)) for slot in ("rule", "improver", "sampler", "source", "fit"))


@functools.cache
def _size(name: str) -> int:
    return len(parts.fields(registry.load(name)(None)))


def spoken_for_fields(name: str) -> set[str]:
    """The fields of parts that an earlier method of the same loop has too, with the same choices: they act there, so they act here."""
    earlier = [_parts_of(other) for other in NAMES[: NAMES.index(name)] if _loop(other) == _loop(name)]
    return {field for path, own in _parts_of(name).items() if any(path in other and other[path] == own for other in earlier) for field in own[1]}


@functools.cache
def _parts_of(name: str):
    """By dotted name, each part's type, the names of its fields, and those that are no numbers with their values."""
    found: dict = {}
    method = registry.load(name)(None)
    for field, value in parts.fields(method).items():
        path = field.rpartition(".")[0]
        owner = functools.reduce(getattr, path.split("."), method) if path else method
        _, names, choices = found.setdefault(path, (type(owner), [], []))
        names.append(field)
        if not isinstance(value, float):
            choices.append((field, value))
    return found


@functools.cache
def task(env: str = f"{ENDS}:credit", steps: int = 320) -> ControlTask:
    return ControlTask(make(env), steps)


@functools.cache
def logged(env: str = f"{ENDS}:credit", steps: int = 320) -> DataTask:
    """What random actions in an environment have left."""
    return DataTask(collect("random", env, steps=96).on_device(), steps, make(env))


@functools.cache
def takes(name: str) -> type:
    """The kind of task that a method takes."""
    return registry.load(name)(None).takes


def learns_from_data(name: str) -> bool:
    return takes(name) is DataTask


def writes(name: str) -> bool:
    """Whether a method is one of language models."""
    return takes(name) in (LanguageTask, PreferenceTask)


def written_for(name: str) -> LanguageTask | PreferenceTask:
    if takes(name) is LanguageTask:
        return wording.prompts()
    return wording.preferences(isinstance(registry.load(name)(None), RewardModelling))


@functools.cache
def bearing(name: str, form: str) -> ControlTask | DataTask | LanguageTask | PreferenceTask:
    """The environment of that form in `ends.py`, its twin that bears a cost where the method asks for costs, or data from it where the method
    learns from data: of an environment that shows a proxy first where the method asks for one.

    For a method of language models a task of theirs, whatever the form.
    """
    if writes(name):
        return written_for(name)
    on = logged(f"{ENDS}:{form}") if learns_from_data(name) else task(f"{ENDS}:{form}")
    reason = registry.load(name)(on).refuse(on) or ""
    if learns_from_data(name):
        return logged(f"{PROXIED}:{form}") if "proxy" in reason else on
    return task(f"{ENDS}:costly_{form}") if "costs" in reason else on


@functools.cache
def forms(name: str) -> list[str]:
    """The forms that a method takes."""
    known = ("credit", "credit_continuous")
    return [form for form in known if not writes(name) and registry.load(name)(bearing(name, form)).refuse(bearing(name, form)) is None]


def home(name: str) -> ControlTask | DataTask | LanguageTask | PreferenceTask:
    """What a method learns from in these tests: the discrete form if it can. A method of language models has one home."""
    return bearing(name, next(iter(forms(name)), ""))


def ending(known, end: str) -> list[str]:
    """The fields that are called so, in whatever part they lie."""
    return [field for field in known if field == end or field.endswith("." + end)]


def small(name: str, on, sizes=SMALL, **changes):
    """The method called `name`, shrunk."""
    method = registry.load(name)(on)
    known = parts.fields(method)
    sizes = {field: value for end, value in sizes.items() for field in ending(known, end)}
    sizes |= {field: min(value, known[field]) for end, value in AT_MOST.items() for field in ending(known, end) if known[field] is not None}
    return parts.replace(method, {**sizes, **{k.replace("__", "."): v for k, v in changes.items()}})


def steady(name: str, on, sizes=SMALL):
    """`small`, with damping and Adam's epsilon so large that rounding is not made into steps where a curvature or a gradient is nothing."""
    return small(name, on, sizes | {"damping": 1.0} | ({"step_rule.epsilon": 1e-2, "fit.step.epsilon": 1e-2} if writes(name) else {}))


_compiled: dict = {}


def advanced(method, on, state, iterations: int, **changes):
    """The state after some more iterations, by a program compiled once for every state, number of iterations, value of the float fields, and
    of what `changes` says of the environment: of one of `ends.py` always how its episodes end."""
    if isinstance(on, ControlTask) and isinstance(getattr(on.env, "dynamics", None), Ends):
        changes = {"terminates": True, **changes}

    def program(method, first, iterations, changes):
        at = changed(on, **changes)
        return jax.lax.fori_loop(0, iterations, lambda _, state: method.step(at, state)[0], first)

    key = id(on), jax.tree.structure(method), tuple(changes)
    return _compiled.setdefault(key, jax.jit(program))(method, state, iterations, changes)


def changed(on, **changes):
    """The same task in an environment some fields of which have other values."""
    if not changes:
        return on
    inside = isinstance(on.env, JaxEnvironment)
    env = JaxEnvironment(on.env.name, dataclasses.replace(on.env.dynamics, **changes)) if inside else dataclasses.replace(on.env, **changes)
    return dataclasses.replace(on, env=env)


def run(method, on, seed: int = 0, iterations: int = 3, **changes):
    """The state after some iterations. The first one is made without a compiled program: most of its operations are those of other methods."""
    return advanced(method, on, method.init(changed(on, **changes), jax.random.key(seed)), iterations, **changes)


def arrays(tree) -> list[np.ndarray]:
    leaves = jax.tree.leaves(tree)
    return [np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(jax.dtypes.result_type(x), jax.dtypes.prng_key) else x) for x in leaves]


def equal(a, b) -> bool:
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in zip(arrays(a), arrays(b), strict=True))
