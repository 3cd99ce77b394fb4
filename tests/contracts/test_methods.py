"""The contract of every method. Methods are found by themselves: a new file is covered the moment it exists."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import parts
from polopt.data import files
from polopt.envs.task import ControlTask
from polopt.interop.export import export
from polopt.loops.offline import Unused
from polopt.methods import registry
from polopt.run.checkpoint import Checkpoints, digest
from polopt.run.run import RunError, compose, fit, load
from tests.contracts import elsewhere
from tests.contracts.cut import Cut
from tests.contracts.helpers import (
    AT_MOST,
    ELSEWHERE,
    NAMES,
    OTHERS,
    SMALL,
    WHOLE_EPISODES,
    WITHOUT_VALUES,
    arrays,
    bearing,
    ending,
    equal,
    forms,
    home,
    learns_from_data,
    logged,
    run,
    small,
    spoken_for_by_its_kind,
    spoken_for_by_its_loop,
    spoken_for_fields,
    steady,
    takes,
    task,
    writes,
)
from tests.contracts.wording import as_files

# One method after another, so that its tests share what was compiled.
every_method = pytest.mark.parametrize("name", NAMES, scope="module")


@every_method
def test_equal_seeds_give_equal_bits_and_others_do_not(name):
    on = home(name)
    method = small(name, on)
    assert equal(run(method, on), run(method, on))
    assert not equal(run(method, on), run(method, on, seed=1))


@every_method
def test_seeds_together_equal_one_at_a_time(name):
    spoken_for_by_its_loop(name)
    on = home(name)
    method = steady(name, on)
    first = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(method.init(on, jax.random.key(seed)) for seed in (0, 1)))
    both = jax.jit(jax.vmap(lambda state: jax.lax.fori_loop(0, 2, lambda _, s: method.step(on, s)[0], state)))(first)
    for seed in (0, 1):
        alone = run(method, on, seed, iterations=2)
        for x, y in zip(arrays(jax.tree.map(lambda leaf: leaf[seed], both)), arrays(alone), strict=True):
            _close(x, y)


def _close(x, y):
    """Equal but for rounding, which the largest number of an array measures."""
    largest = np.max(np.abs(y), where=np.isfinite(y), initial=0) if y.dtype.kind == "f" else 0
    np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5 + 3e-4 * largest)


@every_method
def test_jit_changes_nothing(name):
    spoken_for_by_its_kind(name)
    on = home(name)
    method = steady(name, on, SMALL | {"num_steps": 2, "horizon": 2, "num_envs": 2} | ({"updates": 1} if learns_from_data(name) else {}))
    with jax.disable_jit():
        plain = method.step(on, method.init(on, jax.random.key(0)))[0]
    for x, y in zip(arrays(plain), arrays(run(method, on, iterations=1)), strict=True):
        _close(x, y)


@every_method
def test_a_state_goes_on_in_a_new_process_bit_for_bit(name, tmp_path):
    spoken_for_by_its_loop(name)
    on = home(name)
    method = small(name, on)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, run(method, on, iterations=1), {})
    checkpoints.close()
    assert elsewhere.advanced(name, str(tmp_path), 2) == digest(run(method, on, iterations=3))


@every_method
def test_an_interrupted_run_is_that_of_one_never_stopped(name, tmp_path):
    spoken_for_by_its_kind(name)
    on, steps = home(name), 320
    sizes = _sizes(name, on)
    if writes(name):
        given, steps = as_files(on, tmp_path), 6
    else:
        given = {"env": on.env.name}
    if learns_from_data(name):
        given = {"data": str(files.write(on.dataset, tmp_path / "data.npz")), "evaluate_on": on.env.name}
    options = dict(steps=steps, seeds=2, evaluations=2, episodes=2, final_episodes=2, quiet=True)
    whole = fit(name, out=tmp_path / "whole", **given, **options, **sizes)
    cut = tmp_path / "cut"
    elsewhere.interrupted_fit(name, out=str(cut), **given, **options, **sizes)
    resumed = load(cut).resume(quiet=True)
    assert resumed.status["state"] == whole.status["state"] == "finished"
    assert _newest_digest(resumed) == _newest_digest(whole)
    assert (cut / "evaluation.json").read_text() == (tmp_path / "whole" / "evaluation.json").read_text()


def _sizes(name, on):
    method = small(name, on)
    plain = parts.fields(registry.load(name)(on))
    return {k.replace(".", "__"): v for k, v in parts.fields(method).items() if v != plain[k]}


def _newest_digest(run_):
    training = run_._restored()
    return digest({"state": training.state, "best": training.best})


@every_method
def test_truncation_is_not_termination(name):
    """Two environments whose episodes are cut in the one and terminate in the other. Only values see the difference."""
    if writes(name):
        pytest.skip("its episodes are completions")
    if name in WHOLE_EPISODES:
        return _an_episode_ends_where_it_is_cut(name)
    on = home(name)
    method = small(name, on)
    if isinstance(getattr(method, "rewards", None), Unused):
        pytest.skip("it learns from no reward, so that no end matters to it")
    if learns_from_data(name):
        spoken_for_by_its_loop(name)
        cut, ends = run(method, bearing(name, forms(name)[0].replace("credit", "cut")), iterations=2), run(method, on, iterations=2)
    else:
        cut, ends = (run(method, on, iterations=2, terminates=terminates) for terminates in (False, True))
    alike = equal(method.policy(cut), method.policy(ends)) and equal(_learnt(cut), _learnt(ends))
    assert alike == (name in WITHOUT_VALUES)


def _an_episode_ends_where_it_is_cut(name):
    """A method without values has nothing to go on with: return and score end with the episode, however it ends.

    Nothing behind the cut matters, not even NaN. The last step before it does, and so does a step more.
    """
    on = _cut()
    method = small(name, on)
    usual = dict(last=1.0, behind=0.0, terminates=False, length=3)
    learnt = run(method, on, **usual)
    assert all(np.isfinite(x).all() for x in arrays(method.policy(learnt)))
    assert equal(run(method, on, **usual | {"behind": float("nan")}), learnt)
    assert equal(run(method, on, **usual | {"terminates": True}), learnt)
    assert not equal(run(method, on, **usual | {"last": 0.25}), learnt)
    assert not equal(run(method, on, **usual | {"length": 4}), learnt)


@functools.cache
def _cut() -> ControlTask:
    return ControlTask(Cut(), 320)


def _learnt(state):
    return getattr(state, "learner", state)


@every_method
def test_export_agrees_with_the_policy(name, tmp_path):
    spoken_for_by_its_loop(name)
    if writes(name):
        pytest.skip("its policy is a language model: tests/run/test_language.py")
    for form in forms(name):
        on = bearing(name, form)
        method = small(name, on)
        result = export(method.policy(run(method, on, iterations=1)), tmp_path / f"{form}.stablehlo", "stablehlo")
        assert result.largest_difference <= 1e-5


@every_method
def test_a_wrong_task_is_refused(name):
    @dataclasses.dataclass
    class Something:
        """Nothing that anything can be learnt from."""

    needed = re.escape(registry.load(name)(None).needs)
    with pytest.raises(RunError, match=rf"needs {needed}, but was given Something.$"):
        compose(name, Something(), {})


@every_method
def test_the_other_kind_of_task_is_refused_with_methods_that_fit(name):
    other = logged() if takes(name) is ControlTask else task()
    with pytest.raises(RunError, match=r"needs .*, but was given \w+Task\. Methods that take it: \w+, \w+") as error:
        compose(name, other, {})
    first = str(error.value).rpartition("it: ")[2].split(",")[0]
    assert compose(first, other, {}).refuse(other) is None


@every_method
def test_every_field_changes_the_computation(name):
    contexts = _contexts(name)
    unchanged = []
    spoken_for = spoken_for_fields(name)
    for field in parts.fields(contexts[0][1]):
        if field in spoken_for or {field, f"{name} {field}"} & ELSEWHERE:
            continue
        # tracing is cheap, so a changed program is looked for everywhere before anything is run
        if not any(check(field, method, on) for check in (_changes_the_program, _changes_the_outcome) for on, method in contexts):
            unchanged.append(field)
    assert not unchanged, f"{name} accepts these hyperparameters and ignores them: {unchanged}"


def _contexts(name):
    """Discrete, continuous and recurrent versions: a field must matter in at least one of them."""
    if writes(name):
        return _wordings(name)
    found = []
    for form in forms(name):
        on = bearing(name, form)
        # so that what bounds a step or a residual binds
        binding = {"improver.step.learning_rate": 0.1, "adaptation.step.learning_rate": 0.03, "ascent.cap": 0.5, "rule.step.max_grad_norm": 0.01}
        binding |= {"rule.cap": 1.1, "fit.delta": 0.1, "maximum.limit": 0.5, "base.clip": 1.0, "following.noise.std": 1.0}
        found.append((on, small(name, on, SMALL | binding)))
    on, method = found[0]
    known = parts.fields(method)
    if "network.core" in known:
        cores = {"network.core": "gru", "critic_network.core": "lstm"}
        found.append((on, parts.replace(method, {field: core for field, core in cores.items() if field in known})))
    if "ascent.longest" in known:
        found.append((on, parts.replace(method, {"ascent.longest": None})))
    if known.get("on_policy") and "credit" in forms(name):
        found.append((on, parts.replace(method, {"on_policy": False})))
    if known.get("critic") is False:
        found.append((on, parts.replace(method, {"critic": True})))
        found.append((on, parts.replace(method, {"critic": True, "critic_network.core": "lstm"})))
    if "rule.clip" in known:  # of weights that grow with the advantage: so that the largest one binds
        gentle = {"rule.beta": 0.1} if "rule.beta" in known else {"rule.temperature": 10.0}
        found += [(on, parts.replace(method, {**gentle, "rule.clip": 1.0})) for on, method in found]
    if "replay.prioritised" in known:
        found.append((on, parts.replace(method, {"replay.prioritised": True})))
    return found


# Values by the end of a field's name under which fields that bound or gate something do so.
BINDING = {
    "narrow": {"epochs": 4, "learning_rate": 0.2, "max_grad_norm": None, "log_ratio_limit": 0.05, "dual": 1.01, "low": 0.05, "high": 0.05},
    "several updates": {"epochs": 2, "minibatches": 2},
    "constant": {"aggregation.mode": "constant"},
    "no scale": {"aggregation.scale": None},
    "bounds": {"objective.limit": 1e-3, "advantage.limit": 0.5, "selection.gate": 0.5, "lower": -10.0, "upper": 0.01},
    "far": {"learning_rate": 3.0, "max_grad_norm": None, "kl_coefficient": 50.0},
}


def _wordings(name):
    """As they are, and under each of `BINDING`: a field must matter in at least one of them."""
    on = home(name)
    method = small(name, on, SMALL | {"learning_rate": 0.5, "max_grad_norm": 0.01})
    known = parts.fields(method)
    found = [(on, method)]
    for change in BINDING.values():
        changes = {field: value for end, value in change.items() for field in ending(known, end) if not _counts(known[field], value)}
        if changes and parts.replace(method, changes).refuse(on) is None:
            found.append((on, parts.replace(method, changes)))
    return found


def _counts(before, value) -> bool:
    """Whether `before` counts something, so that a fraction cannot be its value."""
    return isinstance(before, int) and isinstance(value, float)


def _changes_the_program(field: str, method, on) -> bool:
    """Whether another value of a field that is no float makes another program, or is refused, as every other value of it is."""
    before = parts.fields(method).get(field, _ABSENT)
    if before is _ABSENT or isinstance(before, float):
        return False
    refused = taken = False
    for other in _replaced(method, field, _other_values(method, field, before)):
        if other.refuse(on) is not None:
            refused = True
        elif _sizes_of(other, on) != _sizes_of(method, on) or _program(other, on) != _program(method, on):
            return True
        else:
            taken = True
    return refused and not taken


def _changes_the_outcome(field: str, method, on) -> bool:
    before = parts.fields(method).get(field, _ABSENT)
    if before is _ABSENT:
        return False
    values = _other_numbers(before) if isinstance(before, float) else _other_values(method, field, before)
    taken = (other for other in _replaced(method, field, values) if other.refuse(on) is None)
    return any(not equal(_outcome(method, on), _outcome(other, on)) for other in taken)


def _replaced(method, field, values):
    """The method with each of the values that the field accepts."""
    for value in values:
        try:
            yield parts.replace(method, {field: value})
        except ValueError:
            continue


def _outcome(method, on):
    """What is learnt and what is deployed, after iterations enough to come by the prompts again, and by steps that were judged before."""
    state = run(method, on, iterations=8)
    return state, method.policy(state)


_ABSENT = object()


def _remembered(function):
    """`function` of a method and a task, called once for each."""
    found: dict = {}

    def remembering(method, on):
        key = id(on), repr(method)
        if key not in found:
            found[key] = function(method, on)
        return found[key]

    return remembering


@_remembered
def _shapes(method, on):
    return jax.eval_shape(lambda key: method.init(on, key), jax.random.key(0))


def _sizes_of(method, on):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(_shapes(method, on))]


@_remembered
def _program(method, on) -> str:
    """The digest of an iteration's program."""
    return hashlib.sha256(str(jax.make_jaxpr(lambda state: method.step(on, state))(_shapes(method, on))).encode()).hexdigest()


def _other_numbers(before):
    return [value for value in (before * 0.5, before * 100, before + 0.3, before * 0.9 + 0.05) if value != before]


def _other_values(method, field, before):
    if field in OTHERS:
        return OTHERS[field]
    hint = parts.field_types(method)[field]
    if typing.get_origin(hint) is typing.Literal:
        return [v for v in typing.get_args(hint) if v != before]
    if isinstance(before, bool):
        return [not before]
    if isinstance(before, int):
        return [before * 2, before + 1]
    if isinstance(before, tuple):
        return [(*before, 5)]
    return [0.01, 0.5, 1]  # an optional number that is off


def test_the_small_sizes_name_real_fields():
    known = set().union(*(parts.fields(registry.load(name)(home(name))) for name in NAMES))
    assert not [end for end in (*SMALL, *AT_MOST, *OTHERS) if not ending(known, end)]


def test_checkpoints_are_where_the_contract_looks(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, {"x": jnp.arange(3.0)}, {"iteration": 1})
    tree, meta, notes = checkpoints.restore({"x": jax.ShapeDtypeStruct((3,), jnp.float32)})
    assert meta["iteration"] == 1 and not notes and np.array_equal(tree["x"], [0, 1, 2])
