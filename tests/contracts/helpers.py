"""Small versions of every method, so that its contract is checked in a second or two."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from polopt.core import parts
from polopt.data.dataset import DataTask
from polopt.data.language import LanguageTask
from polopt.data.preferences import PreferenceTask
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.loops.episodes import Episodes
from polopt.loops.reward_model import RewardModelling
from polopt.methods import registry
from polopt.run.collect import collect
from tests.contracts import wording

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
    "rule.layers": 1,
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
    "guide",  # names a file of an expert's transitions: tests/methods/offline/test_gorl_guided.py writes one
    "rule.threshold",  # which rollouts are kept: tests/methods/offline/test_mbrcsl.py
    "rule.trained.run",  # names a run on disk: tests/methods/policy_gradient/test_apg.py trains one
    "single_stream objective.dual",  # a lone completion of a table only loses likelihood; the part's own tests are in tests/loops
}
NAMES = [name for entry in registry.entries() for name in registry.compositions(entry.key)]
# Without values, returns end with the episode, however it ends.
WHOLE_EPISODES = [name for name in NAMES if isinstance(registry.load(name)(None), Episodes)] + ["improper_rl:gradient_free"]
WITHOUT_VALUES = [name for name in NAMES if not getattr(registry.load(name)(None), "critic", True)]
COSTLY, PROXIED = (Path(__file__).with_name(name) for name in ("costly.py", "proxied.py"))


def spoken_for(name: str, by: list[str] | None = None) -> None:
    """Skip the slowest tests of a method whose loop and state are built as those of an earlier one: what they test of one they have tested of
    the other. `by` says which ones may speak for it, by default all."""
    first = _built_alike(_structure(name))[0]
    if first != name and (by is None or first in by):
        pytest.skip(f"loop and state of {name} are built as those of {first}")


def spoken_for_by_its_kind(name: str) -> None:
    """Skip what is tested of a run, its files and its process with one method of each kind."""
    first = next(other for other in NAMES if type(registry.load(other)(None)) is type(registry.load(name)(None)) and takes(other) is takes(name))
    if first != name:
        pytest.skip(f"{name} is of the kind of {first}")


def spoken_for_by_its_loop(name: str) -> None:
    """Skip what is tested of a loop with one of its methods."""
    first = next(other for other in NAMES if _loop(other) == _loop(name))
    if first != name:
        pytest.skip(f"{name} is of the loop of {first}")


def _loop(name: str):
    method = registry.load(name)(None)
    return type(method), *(type(getattr(method, slot, None)) for slot in ("rule", "improver", "sampler", "source", "fit"))


def _built_alike(structure) -> list[str]:
    return [name for name in NAMES if _structure(name) == structure]


@functools.cache
def _structure(name: str):
    on = home(name)
    method = small(name, on)
    state = jax.eval_shape(lambda k: method.init(on, k), jax.random.key(0))
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]
    return type(method), on.name if writes(name) else on.env.name, str(jax.tree.structure(state)), str(shapes)


def spoken_for_by_its_policy(name: str, env: str) -> None:
    """Skip what is tested of a deployed policy where an earlier method deploys one of the same structure."""
    first = next(other for other in NAMES if suits(other, env) and _deployed(other, env) == _deployed(name, env))
    if first != name:
        pytest.skip(f"the policy of {name} is built as that of {first}")


@functools.cache
def _deployed(name: str, env: str):
    on = bearing(name, env)
    method = small(name, on)
    policy = jax.eval_shape(lambda k: method.policy(method.init(on, k)), jax.random.key(0))
    return str(jax.tree.structure(policy)), str([(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(policy)])


@functools.cache
def task(env: str = "probe:action", steps: int = 320) -> ControlTask:
    return ControlTask(make(env), steps)


@functools.cache
def logged(env: str = "probe:action", steps: int = 320) -> DataTask:
    """What random actions in an environment have left."""
    return DataTask(collect("random", env, steps=96).on_device(), steps, make(env))


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
def bearing(name: str, env: str) -> ControlTask | DataTask | LanguageTask | PreferenceTask:
    """A probe, its twin that bears a cost where the method asks for costs, or data from it where the method learns from data.

    Data of environments that show a proxy first where the method asks for one.
    For a method of language models a task of theirs, whatever the probe.
    """
    if writes(name):
        return written_for(name)
    on = logged(env) if learns_from_data(name) else task(env)
    reason, twin = registry.load(name)(on).refuse(on) or "", env.removeprefix("probe:").replace("-", "_")
    if learns_from_data(name):
        return logged(f"{PROXIED}:{twin}") if "proxy" in reason else on
    return task(f"{COSTLY}:{twin}") if "costs" in reason else on


@functools.cache
def suits(name: str, env: str) -> bool:
    """Whether a method takes a probe."""
    on = bearing(name, env)
    return not writes(name) and registry.load(name)(on).refuse(on) is None


def home(name: str, probe: str = "action") -> ControlTask | DataTask | LanguageTask | PreferenceTask:
    """A probe in the form that a method takes: the discrete one if it can. A method of language models has one home."""
    return bearing(name, f"probe:{probe}" if suits(name, "probe:action") else f"probe:{probe}-continuous")


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
    """`small`, with Adam's epsilon so large that rounding is not made into steps where a gradient is nothing."""
    return small(name, on, sizes | ({"step_rule.epsilon": 1e-2, "fit.step.epsilon": 1e-2} if writes(name) else {}))


_compiled: dict = {}


def _program(kind: str, method, on, function):
    """Compiled once for every seed, number of iterations and value of the float fields."""
    return _compiled.setdefault((kind, id(on), jax.tree.structure(method)), jax.jit(function))


def begun(method, on, seed: int = 0):
    """The first state."""
    return _program("init", method, on, lambda m, key: m.init(on, key))(method, jax.random.key(seed))


def advanced(method, on, state, iterations: int):
    """The state after some more iterations."""
    program = _program("step", method, on, lambda m, first, n: jax.lax.fori_loop(0, n, lambda _, state: m.step(on, state)[0], first))
    return program(method, state, iterations)


def run(method, on, seed: int = 0, iterations: int = 3):
    """The state after some iterations."""
    return advanced(method, on, begun(method, on, seed), iterations)


def arrays(tree) -> list[np.ndarray]:
    leaves = jax.tree.leaves(tree)
    return [np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(jax.dtypes.result_type(x), jax.dtypes.prng_key) else x) for x in leaves]


def equal(a, b) -> bool:
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in zip(arrays(a), arrays(b), strict=True))
