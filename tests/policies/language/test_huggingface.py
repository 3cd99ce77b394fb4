"""Model directories: equal logits in `transformers`, there and back, and a sentence for every directory that cannot be read."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")

from safetensors.numpy import load_file, save_file

from polopt.policies.language import huggingface
from polopt.policies.language.huggingface import ModelError
from polopt.policies.language.lora import merged, with_lora
from polopt.policies.language.transformer import Rotary, Transformer, TransformerConfig

SIZES = dict(
    vocab_size=53,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512)
GEMMA = dict(
    full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
    sliding_attention=dict(rope_type="default", rope_theta=1e4),
)
SLIDES = ["sliding_attention", "full_attention"]
THEIRS = {
    "llama": ("LlamaConfig", dict(rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True)),
    "qwen2": ("Qwen2Config", dict(use_sliding_window=True, sliding_window=100, layer_types=SLIDES, tie_word_embeddings=True)),
    "qwen3": ("Qwen3Config", dict(head_dim=8)),
    "gemma3": (
        "Gemma3TextConfig",
        dict(head_dim=8, query_pre_attn_scalar=12, sliding_window=64, layer_types=SLIDES, final_logit_softcapping=5.0, rope_parameters=GEMMA),
    ),
}
OURS = {
    "llama": TransformerConfig("llama", 11, 24, heads=4, hidden=20, head_size=6, rotary=Rotary(scaling="llama3", factor=4.0), tied=False),
    "qwen2": TransformerConfig("qwen2", 11, 24, heads=4, hidden=20, head_size=6, window=3, sliding=(False, True)),
    "qwen3": TransformerConfig("qwen3", 11, 24, heads=4, hidden=20, head_size=8, attention_bias=True),
    "gemma3": TransformerConfig(
        "gemma3_text",
        11,
        24,
        heads=4,
        hidden=20,
        head_size=8,
        activation="gelu_pytorch_tanh",
        local_rotary=Rotary(500.0),
        window=3,
        sliding=(True, False),
        query_scale=0.25,
        softcap=3.0,
    ),
}


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def without_source(policy):
    return dataclasses.replace(policy, config=dataclasses.replace(policy.config, source=""))


# -- against transformers ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", THEIRS)
def test_logits_equal_those_of_transformers(family, tmp_path):
    """Over 4,096 positions, one row padded on the left; and what is saved is loaded there with the same logits."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    name, options = THEIRS[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**SIZES, **options)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.save_pretrained(tmp_path / "theirs")
    time = 4096
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, time))
    mask = np.arange(time)[None] >= np.array([[0], [1000]])

    def logits(model):
        with torch.no_grad():
            return model(torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).logits.numpy()

    policy = huggingface.load(tmp_path / "theirs")
    expected = logits(model)
    found = np.asarray(jax.jit(lambda p: p.logits(jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)))(policy))
    assert expected.std() > 0.1
    np.testing.assert_allclose(found[mask], expected[mask], rtol=0, atol=1e-4)
    huggingface.save(policy, tmp_path / "ours", shard=4000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(logits(again)[mask], expected[mask])


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", [huggingface.SHARD, 3000], ids=["one", "sharded"])
@pytest.mark.parametrize("family", OURS)
def test_a_saved_policy_is_read_as_it_was(family, shard, tmp_path):
    policy = Transformer.random(OURS[family], jax.random.key(0))
    huggingface.save(policy, tmp_path, shard=shard)
    found = huggingface.load(tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) is (shard == huggingface.SHARD)
    same(without_source(found), policy)
    huggingface.save(found, tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    same(without_source(huggingface.load(tmp_path)), policy)


def test_bfloat16_and_what_config_json_said_besides(tmp_path):
    policy = Transformer.random(dataclasses.replace(OURS["qwen3"], dtype="bfloat16"), jax.random.key(0))
    huggingface.save(policy, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "eos_token_id": 7, "notes": {"of": "somebody"}}))
    found = huggingface.load(tmp_path, dtype="bfloat16")
    same(found.layers, policy.layers)
    huggingface.save(found, tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["eos_token_id"] == 7 and written["notes"] == {"of": "somebody"} and written["dtype"] == "bfloat16"
    wide = huggingface.load(tmp_path)
    np.testing.assert_array_equal(wide.embedding, policy.embedding.astype(jnp.float32))


def test_lora_is_saved_merged(tmp_path):
    policy = with_lora(Transformer.random(OURS["llama"], jax.random.key(0)), 2, 2.0, jax.random.key(1))
    policy = jax.tree.map(lambda x: x + 0.1, policy)
    huggingface.save(policy, tmp_path)
    same(without_source(huggingface.load(tmp_path)), merged(policy))


def test_older_keys_mean_the_same(tmp_path):
    """rope_scaling, rope_theta, rope_local_base_freq and sliding_window_pattern, as older writers put them."""
    huggingface.save(Transformer.random(OURS["gemma3"], jax.random.key(0)), tmp_path)
    change(tmp_path, rope_parameters=None, rope_theta=2e5, rope_local_base_freq=300.0, rope_scaling={"rope_type": "linear", "factor": 8.0})
    change(tmp_path, layer_types=None, sliding_window_pattern=2)
    config = huggingface.read_config(tmp_path)
    assert config.rotary == Rotary(2e5, "linear", 8.0) and config.local_rotary == Rotary(300.0)
    assert config.sliding == (True, False) and config.window == 3
    huggingface.save(Transformer.random(OURS["llama"], jax.random.key(0)), tmp_path)
    scaling = {"type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 64}
    change(tmp_path, rope_parameters=None, rope_theta=3e4, rope_scaling=scaling, head_dim=None)
    config = huggingface.read_config(tmp_path)
    assert config.rotary == Rotary(3e4, "llama3", 4.0, 1.0, 2.0, 64) and config.head_size == 6


# -- what cannot be read -----------------------------------------------------------------------------------------------


def change(place, **keys):
    raw = json.loads((place / "config.json").read_text())
    raw.update(keys)
    (place / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


def edit(place, change):
    tensors = load_file(place / "model.safetensors")
    change(tensors)
    save_file(tensors, place / "model.safetensors")


def cut(place):
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def shards(place):
    huggingface.save(huggingface.load(place), place, shard=3000)
    return sorted(place.glob("*.safetensors"))


def listed_elsewhere(place):
    shards(place)
    index = place / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.7.extra"] = "model-00001-of-" + list(content["weight_map"].values())[0].split("-of-")[1]
    index.write_text(json.dumps(content))


MISTAKES = [
    (lambda d: edit(d, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), "lacks model.layers.1.mlp.up_proj.weight; a qwen3 model of 2 layers"),
    (lambda d: edit(d, lambda t: t.update(extra=t["model.norm.weight"])), "holds extra, which a qwen3 model"),
    (lambda d: edit(d, lambda t: t.update({"model.norm.weight": np.zeros(5, "f4")})), r"model.norm.weight has the shape \(5,\).*makes it \(24,\)"),
    (lambda d: change(d, model_type="mamba", architectures=["MambaForCausalLM"]), r"MambaForCausalLM \(mamba\).*covered are LlamaForCausalLM, Qwen2"),
    (lambda d: change(d, architectures=["Qwen3ForSequenceClassification"]), "Qwen3ForSequenceClassification"),
    (lambda d: change(d, model_type=None, architectures=None), "a model of the type None"),
    (lambda d: (d / "config.json").unlink(), "config.json cannot be read"),
    (lambda d: (d / "config.json").write_text("{"), "config.json is no JSON"),
    (lambda d: (d / "config.json").write_text("[]"), "holds a list, but an object"),
    (lambda d: change(d, vocab_size=None), "config.json lacks vocab_size"),
    (lambda d: change(d, hidden_act="relu"), "The activation is 'relu'"),
    (lambda d: change(d, rope_parameters={"rope_type": "yarn", "factor": 2.0}), "yarn.*only default, linear and llama3"),
    (lambda d: change(d, rope_parameters={"rope_type": "linear"}), "linear rotary positions but does not give factor"),
    (lambda d: change(d, attn_logit_softcapping=30.0), "sets attn_logit_softcapping to 30.0, which is not covered"),
    (lambda d: (d / "model.safetensors").unlink(), "holds neither model.safetensors nor model.safetensors.index.json"),
    (cut, "model.safetensors is no complete safetensors file"),
    (lambda d: shards(d)[1].unlink(), "names model-00002-of-.*, which is not in"),
    (listed_elsewhere, "names model.layers.7.extra, which its files do not hold"),
]


@pytest.mark.parametrize("spoil, sentence", MISTAKES, ids=[sentence[:40] for _, sentence in MISTAKES])
def test_what_cannot_be_read_is_named(spoil, sentence, tmp_path):
    huggingface.save(Transformer.random(OURS["qwen3"], jax.random.key(0)), tmp_path)
    huggingface.load(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=sentence):
        huggingface.load(tmp_path)


def test_a_place_that_is_no_directory_and_a_dtype_that_is_none(tmp_path):
    with pytest.raises(ModelError, match="is no directory"):
        huggingface.load(tmp_path / "nowhere")
    huggingface.save(Transformer.random(OURS["qwen3"], jax.random.key(0)), tmp_path)
    with pytest.raises(ModelError, match="The dtype is 'int8'"):
        huggingface.load(tmp_path, dtype="int8")
