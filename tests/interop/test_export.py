"""An exported policy acts as the policy does: read from its file, in batches of a size that the export never saw."""

import json
import sys

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core import spaces
from polopt.core.networks import Network
from polopt.core.normalise import RunningStatistics
from polopt.interop import export as module
from polopt.interop.export import FORMATS, ExportError, export, load_safetensors, load_stablehlo
from polopt.policies.actor import Actor, Normaliser
from polopt.policies.deployed import ActorPolicy

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")
pytest.importorskip("safetensors")

VECTOR = spaces.Box.of([-1, -np.inf, 0, -3], [1, np.inf, 5, 3], (4,))
IMAGE = spaces.Box.of(0, 255, (6, 6, 2), "uint8")
NAMED = spaces.Dict((("position", VECTOR), ("camera", IMAGE), ("goal", spaces.Discrete(3)), ("keys", spaces.MultiBinary(2))))
UNEVEN = spaces.Box.of([-1, -20], [1, 5], (2,))

POLICIES = {
    "discrete": dict(actions=spaces.Discrete(4)),
    "discrete-normalised": dict(actions=spaces.Discrete(4), normalise=True),
    "multi-discrete": dict(actions=spaces.MultiDiscrete((2, 3, 4))),
    "multi-binary": dict(actions=spaces.MultiBinary(3)),
    "box-clip": dict(actions=UNEVEN, normalise=True),
    "box-unbounded": dict(actions=spaces.Box.of(-np.inf, np.inf, (2, 2))),
    "box-squash": dict(actions=UNEVEN, bounds="squash", normalise=True),
    "float64-observation": dict(observations=spaces.from_gymnasium(gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64))),
    "dict-observation": dict(observations=NAMED, actions=spaces.Discrete(4), normalise=True),
    "image-observation": dict(observations=IMAGE, actions=spaces.Discrete(4)),
    "image-normalised": dict(observations=IMAGE, actions=UNEVEN, normalise=True),
    "gru": dict(actions=UNEVEN, bounds="squash", core="gru", normalise=True),
    "lstm": dict(actions=spaces.MultiDiscrete((4, 4)), core="lstm", normalise=True),
}


def build(observations=VECTOR, actions=UNEVEN, bounds="clip", core="none", normalise=False, hidden=(16,), activation="tanh"):
    """A policy whose actions are far apart: a new head is all but zero, so it is scaled up; statistics are far from 0 and 1."""
    size = spaces.size(observations)
    statistics = RunningStatistics(jnp.linspace(-0.5, 0.5, size), jnp.linspace(0.2, 2, size), jnp.array(100.0)) if normalise else None
    network = Network(hidden=hidden, activation=activation, core=core, core_size=8)
    actor = Actor(network, observations, actions, bounds, 0.0, jax.random.key(1))
    actor = eqx.tree_at(lambda a: a.head.weight, actor, actor.head.weight * 300)
    return ActorPolicy(actor, Normaliser(observations, statistics))


def read(path, format, policy):
    """The function of a file: (carry, observation) to (carry, action), the carry as a tuple of arrays."""
    if format == "onnx":
        session = onnxruntime.InferenceSession(str(path))
        names = [given.name for given in session.get_inputs()]
        rest = sum(name.startswith("carry") for name in names)

        def run(carry, observation):
            values = [*carry, *(observation[name.removeprefix("observation.")] if "." in name else observation for name in names[rest:])]
            *carry, action = session.run(None, {name: np.asarray(value) for name, value in zip(names, values)})
            return tuple(carry), action

        return run
    if format == "stablehlo":
        act = load_stablehlo(path)
    else:
        restored = load_safetensors(path, like=jax.tree.map(jnp.zeros_like, policy))
        act = jax.vmap(lambda *given: restored.act(*given) if len(given) == 2 else restored.act((), *given)[1])
    structure = jax.tree.structure(policy.initial_carry())

    def run(carry, observation):
        if not carry:
            return carry, act(observation)
        carry, action = act(jax.tree.unflatten(structure, carry), observation)
        return tuple(jax.tree.leaves(carry)), action

    return run


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", POLICIES)
def test_the_file_acts_as_the_policy_does(name, format, tmp_path):
    policy = build(**POLICIES[name])
    result = export(policy, tmp_path / "policy", format)
    assert result.largest_difference <= 1e-5 and result.path.stat().st_size > 0
    run = read(result.path, format, policy)
    act = jax.jit(lambda carry, observation: policy.act(carry, observation))
    carries = [policy.initial_carry()] * 3
    batch = tuple(jnp.zeros((3, *leaf.shape)) for leaf in jax.tree.leaves(carries[0]))
    seen = []
    for step in range(3):
        observations = [spaces.sample(policy.observation_space, jax.random.key(10 * step + i)) for i in range(3)]
        carries, actions = zip(*(act(carry, observation) for carry, observation in zip(carries, observations)))
        batch, found = run(batch, jax.tree.map(lambda *leaves: jnp.stack(leaves), *observations))
        np.testing.assert_allclose(found, np.stack(actions), rtol=1e-5, atol=1e-4)
        seen += [str(action) for action in actions]
    assert len(set(seen)) > 1, "a constant policy tests nothing"


def test_names_and_batch_are_in_the_file(tmp_path):
    policy = build(NAMED, spaces.MultiDiscrete((2, 3)), core="lstm")
    result = export(policy, tmp_path / "policy.onnx", "onnx")
    names = ["carry.0", "carry.1", "observation.camera", "observation.goal", "observation.keys", "observation.position"]
    assert [given.name for given in result.inputs] == names
    assert [given.name for given in result.outputs] == ["next_carry.0", "next_carry.1", "action"]
    session = onnxruntime.InferenceSession(str(result.path))
    assert [(given.name, tuple(given.shape)) for given in session.get_inputs()] == [(given.name, given.shape) for given in result.inputs]
    assert [given.name for given in session.get_outputs()] == [given.name for given in result.outputs]
    facts = json.loads(session.get_modelmeta().custom_metadata_map["polopt"])
    assert facts["action_space"] == {"kind": "MultiDiscrete", "nvec": [2, 3]} and "jax" in facts["versions"]


def test_safetensors_tells_what_it_holds(tmp_path):
    policy = build(normalise=True)
    path = export(policy, tmp_path / "policy.safetensors", "safetensors").path
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("actor.head.weight"), policy.actor.head.weight)
        np.testing.assert_array_equal(file.get_tensor("normaliser.statistics.mean"), policy.normaliser.statistics.mean)
        facts = json.loads(file.metadata()["polopt"])
    assert facts["observation_space"]["high"] == [1.0, "inf", 5.0, 3.0]
    assert facts["policy"]["actor"]["torso"]["layers"][0]["weight"] == {"shape": [4, 16], "dtype": "float32"}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (dict(hidden=(8,)), "16"),
        (dict(hidden=(16, 16)), "layers"),
        (dict(activation="relu"), "'tanh' in the file and 'relu'"),
        (dict(bounds="squash"), "'clip' in the file and 'squash'"),
        (dict(normalise=True), "statistics"),
        (dict(actions=spaces.Discrete(2)), "policy"),
    ],
)
def test_parameters_of_another_network_are_refused(other, says, tmp_path):
    export(build(), tmp_path / "policy", "safetensors")
    with pytest.raises(ExportError, match=says):
        load_safetensors(tmp_path / "policy", like=build(**other))


@pytest.mark.parametrize("load", [load_stablehlo, lambda path: load_safetensors(path, like=build())])
def test_files_that_are_no_export_are_named(load, tmp_path):
    with pytest.raises(ExportError, match="absent"):
        load(tmp_path / "absent")
    (tmp_path / "noise").write_bytes(b"not an export at all, but long enough to be read")
    with pytest.raises(ExportError, match="noise is not a"):
        load(tmp_path / "noise")


def wrong(policy):
    """A conversion that acts as `policy` whatever it is given."""
    return lambda _: (b"content", jax.jit(module._batched(policy)))


@pytest.mark.parametrize("actions", [UNEVEN, spaces.Discrete(4), spaces.MultiBinary(3)], ids=["box", "discrete", "binary"])
def test_an_export_that_acts_otherwise_is_not_written(actions, tmp_path, monkeypatch):
    policy = build(actions=actions)
    other = eqx.tree_at(lambda p: p.actor.head.bias, policy, policy.actor.head.bias.at[0].add(50))
    (tmp_path / "policy").write_text("the one before")
    monkeypatch.setattr(module, "_to_stablehlo", wrong(other))
    with pytest.raises(ExportError, match="nothing was written"):
        export(policy, tmp_path / "policy", "stablehlo")
    assert (tmp_path / "policy").read_text() == "the one before"
    assert [file.name for file in tmp_path.iterdir()] == ["policy"]


def test_a_difference_that_is_not_a_number_is_refused(tmp_path, monkeypatch):
    policy = build()
    monkeypatch.setattr(module, "_to_stablehlo", wrong(jax.tree.map(lambda leaf: leaf * jnp.nan, policy)))
    with pytest.raises(ExportError, match="differs"):
        export(policy, tmp_path / "policy", "stablehlo")


def test_equally_likely_actions_may_differ(tmp_path, monkeypatch):
    policy = build(actions=spaces.Discrete(4))
    even = eqx.tree_at(lambda p: p.actor.head.weight, policy, policy.actor.head.weight * 0)
    monkeypatch.setattr(module, "_to_stablehlo", wrong(eqx.tree_at(lambda p: p.actor.head.bias, even, jnp.arange(4.0))))
    assert export(even, tmp_path / "policy", "stablehlo").largest_difference == 0


def test_a_carry_that_starts_elsewhere_is_refused(tmp_path):
    class Offset(eqx.Module):
        inner: ActorPolicy

        observation_space = VECTOR
        action_space = UNEVEN

        def initial_carry(self):
            return self.inner.initial_carry() + 1

        def act(self, carry, observation, key=None):
            return self.inner.act(carry, observation, key)

    with pytest.raises(ExportError, match="initial carry"):
        export(Offset(build(core="gru")), tmp_path / "policy", "stablehlo")


def test_jax_numpy_is_left_as_it_was(tmp_path):
    before = dict(vars(jnp))
    export(build(), tmp_path / "policy", "onnx")
    assert all(vars(jnp)[name] is value for name, value in before.items())


def test_a_graph_that_does_not_run_is_told(tmp_path, monkeypatch):
    class Session:
        def __init__(self, *given, **options):
            pass

        def run(self, *given):
            raise RuntimeError("invalid expand shape\nin a node")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(ExportError, match=r"does not run in onnxruntime \(RuntimeError: invalid expand shape\); try stablehlo"):
        export(build(), tmp_path / "policy", "onnx")
    assert not any(tmp_path.iterdir())


def test_unknown_formats_and_places_are_told(tmp_path):
    with pytest.raises(ExportError, match="'pickle', but it must be one of onnx, stablehlo, safetensors"):
        export(build(), tmp_path / "policy", "pickle")
    with pytest.raises(ExportError, match="absent is not a folder; make it first"):
        export(build(), tmp_path / "absent" / "policy", "onnx")
    with pytest.raises(ExportError, match="that is a folder; name a file in it"):
        export(build(), tmp_path, "onnx")


def test_a_disk_that_fails_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Path, "write_bytes", full)
    with pytest.raises(ExportError, match="No space left on device"):
        export(build(), tmp_path / "policy", "safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("format", "package"), [("onnx", "jax2onnx"), ("onnx", "onnxruntime"), ("safetensors", "safetensors")])
def test_a_missing_package_is_told(format, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"package {package}.*pip install polopt\[export\]"):
        export(build(), tmp_path / "policy", format)
