"""Language models over two devices: where arrays lie, and that the numbers are those of one device."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polopt
from polopt.policies.language.lora import with_lora
from polopt.policies.language.sampling import generate
from polopt.policies.language.sharding import make_mesh, over_rows, placed
from polopt.policies.language.transformer import Transformer, tiny
from polopt.run.run import RunError

MESHES = [{"data": 2}, {"tensor": 2}]
PROMPTS = jnp.array([[0, 0, 3, 1], [2, 2, 3, 1], [0, 5, 3, 1], [4, 2, 0, 6]], jnp.int32)
MASK = jnp.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]], bool)


def model(**changes):
    return Transformer.random(dataclasses.replace(tiny(8), **changes), jax.random.key(0))


@pytest.fixture(params=MESHES, ids=str)
def mesh(request):
    return make_mesh(**request.param)


def test_each_device_has_half_of_a_layer():
    on = placed(with_lora(model(), 2, 4.0, jax.random.key(1)), make_mesh(tensor=2))
    whole = with_lora(model(), 2, 4.0, jax.random.key(1))
    for name, axis in {"q": -1, "gate": -1, "o": -2, "down": -2}.items():
        for leaf, halved in ((("base", "weight"), axis), (("up",), -1 if axis == -1 else None), (("down",), -2 if axis == -2 else None)):
            found, wanted = getattr(on.layers, name), getattr(whole.layers, name)
            for part in leaf:
                found, wanted = getattr(found, part), getattr(wanted, part)
            shape = list(wanted.shape)
            if halved:
                shape[halved] //= 2
            assert {s.data.shape for s in found.addressable_shards} == {tuple(shape)}, (name, leaf)
    assert {s.data.shape for s in on.embedding.addressable_shards} == {(4, 64)}
    assert {s.data.shape for s in on.norm.addressable_shards} == {(64,)}


def test_what_does_not_divide_stays_whole():
    on = placed(model(vocabulary=7), make_mesh(tensor=2))
    assert {s.data.shape for s in on.embedding.addressable_shards} == {(7, 64)}


def test_rows_lie_along_data():
    with jax.set_mesh(make_mesh(data=2)):
        assert {s.data.shape for s in jax.jit(over_rows)(jnp.zeros((4, 3))).addressable_shards} == {(2, 3)}
        assert {s.data.shape for s in jax.jit(over_rows)(jnp.zeros((3, 3))).addressable_shards} == {(3, 3)}
    assert over_rows(PROMPTS) is PROMPTS


def test_the_numbers_are_those_of_one_device(mesh):
    def loss(policy):
        made = generate(policy, PROMPTS, MASK, jax.random.key(2), length=5, repeats=2)
        scored = policy.score(jnp.repeat(PROMPTS, 2, 0), jnp.repeat(MASK, 2, 0), made.tokens, made.mask)
        return jnp.sum(scored.log_prob - 0.1 * scored.entropy), made

    policy = model()
    (wanted, made), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(policy)
    with jax.set_mesh(mesh):
        (found, again), sharded = jax.jit(jax.value_and_grad(loss, has_aux=True))(placed(policy, mesh))
    np.testing.assert_array_equal(again.tokens, made.tokens)
    np.testing.assert_allclose(again.log_prob, made.log_prob, atol=1e-5)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(jnp.abs(b).max())))
    if mesh.shape["tensor"] == 2:
        assert {s.data.shape for s in sharded.layers.q.weight.addressable_shards} == {(2, 64, 32)}


def test_a_run_over_devices_is_that_of_one_and_goes_on_bit_for_bit(tmp_path):
    given = dict(model="tiny", task="modular:modulus=5", warm_start=3, steps=4, evaluations=2, episodes=4, final_episodes=4, quiet=True)
    sizes = dict(prompts=4, completions=4)
    one = polopt.fit("grpo", out=tmp_path / "one", **given, **sizes)
    two = polopt.fit("grpo", out=tmp_path / "two", devices="data=2", **given, **sizes)
    for a, b in zip(*(jax.tree.leaves(run.policies("last")) for run in (one, two)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert two.config["devices"] == "data=2"
    before = jax.tree.leaves(two.policies("last"))
    for newest in sorted((tmp_path / "two" / "checkpoints").glob("4*")):
        newest.rename(tmp_path / "aside")
    (tmp_path / "two" / "status.json").write_text('{"state": "interrupted", "stopped": {}}')
    again = polopt.load(tmp_path / "two").resume(quiet=True)
    for a, b in zip(before, jax.tree.leaves(again.policies("last")), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("method", "devices", "words"),
    [
        ("grpo", "data=two", "a number for data, for tensor or for both is expected"),
        ("grpo", "rows=2", "a number for data, for tensor or for both is expected"),
        ("grpo", "data=64", "takes 64 devices, but there are 2"),
        ("ppo", "data=2", "devices is for methods of language models, but ppo is none"),
    ],
)
def test_wrong_devices_are_refused(method, devices, words, tmp_path):
    given = {"env": "CartPole-v1"} if method == "ppo" else {"task": "t-bandit"}
    with pytest.raises(ValueError, match=words) as error:
        polopt.fit(method, out=tmp_path / "run", devices=devices, **given)
    assert isinstance(error.value, RunError) or "devices" in str(error.value)
    assert not (tmp_path / "run").exists()
