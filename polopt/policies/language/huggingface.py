"""Model directories of the Hugging Face: a config.json and safetensors, read into a `Transformer` and written back.

It stands beside the policies, not in `interop`, because what trains from a directory needs it; it needs the package `safetensors` alone.
"""

from __future__ import annotations

import functools
import json
import operator
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.policies.language.lora import merged
from polopt.policies.language.transformer import FAMILIES, PROJECTIONS, Rotary, Transformer, TransformerConfig

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ARCHITECTURES = dict(zip(FAMILIES, ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM")))
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHARD = 5 * 2**30  # bytes a file when writing

# our field of a config -> key of config.json, where the two mean the same
SIZES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "epsilon": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
# what a key that is not written means, as the families' configurations define it
COMMON = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "hidden_act": "silu"}
DEFAULTS = {
    "llama": {**COMMON, "tie_word_embeddings": False, "max_position_embeddings": 2048},
    "qwen2": {**COMMON, "tie_word_embeddings": False, "max_position_embeddings": 32768},
    "qwen3": {**COMMON, "tie_word_embeddings": False, "max_position_embeddings": 32768, "head_dim": 128},
    "gemma3_text": {
        **COMMON,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "max_position_embeddings": 131_072,
        "head_dim": 256,
        "num_key_value_heads": 4,
        "num_attention_heads": 8,
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "rope_theta": 1_000_000.0,
    },
}


class ModelError(ValueError):
    """A model directory that cannot be read; the message is one sentence."""


# -- reading -----------------------------------------------------------------------------------------------------------


def load(directory: str | os.PathLike, *, dtype: str = "float32", remat: bool = False) -> Transformer:
    """The policy in a directory, its parameters as `dtype`; ModelError says in one sentence what is wrong."""
    place = Path(directory)
    config = read_config(place, dtype=dtype, remat=remat)
    found = _tensors(place)
    wanted = _names(config)
    if config.tied:
        found.pop("lm_head.weight", None)  # some writers store the embedding twice
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ModelError(f"{place} lacks {_list(missing)}; a {config.family} model of {config.layers} layers needs {len(wanted)} tensors.")
    unknown = [name for name in found if name not in wanted and not name.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise ModelError(f"{place} holds {_list(unknown)}, which a {config.family} model as config.json describes it does not have.")
    for name, (shape, transposed) in wanted.items():
        given = tuple(found[name].shape)
        if given != (shape[::-1] if transposed else shape):
            expected = shape[::-1] if transposed else shape
            raise ModelError(f"{place}: {name} has the shape {given}, but config.json makes it {expected}.")

    def read(name):
        tensor = np.asarray(found[name].read()).astype(jnp.dtype(dtype))
        return tensor.T if wanted[name][1] else tensor

    return _build(config, lambda name: jnp.asarray(read(name)), lambda names: jnp.asarray(np.stack([read(name) for name in names])))


def read_config(place: Path, *, dtype: str = "float32", remat: bool = False) -> TransformerConfig:
    """The sizes in the config.json of a directory."""
    if not place.is_dir():
        raise ModelError(f"{place} is no directory; give one with {CONFIG} and {SINGLE}, as `save_pretrained` of transformers writes it.")
    text = _text(place / CONFIG)
    raw = _json(text, place / CONFIG)
    family = raw.get("model_type")
    named = raw.get("architectures") or [ARCHITECTURES.get(family)]
    if family not in FAMILIES or named[0] != ARCHITECTURES[family]:
        shown = f"{named[0]} ({family})" if named[0] else f"of the type {family!r}"
        raise ModelError(f"{place} holds a model {shown}, but the architectures covered are {', '.join(ARCHITECTURES.values())}.")
    if dtype not in DTYPES:
        raise ModelError(f"The dtype is {dtype!r}, but it must be one of {', '.join(DTYPES)}.")
    has = {**DEFAULTS[family], **{k: v for k, v in raw.items() if v is not None}}
    for key in ("attn_logit_softcapping", "use_bidirectional_attention"):
        if raw.get(key):
            raise ModelError(f"{place / CONFIG} sets {key} to {raw[key]!r}, which is not covered.")
    absent = [key for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size") if key not in has]
    if absent:
        raise ModelError(f"{place / CONFIG} lacks {_list(absent)}.")
    has.setdefault("num_key_value_heads", has["num_attention_heads"])
    has.setdefault("head_dim", has["hidden_size"] // has["num_attention_heads"])
    sliding, window = _windows(family, has)
    rotary, local = _rotaries(family, raw, has, place)
    gemma = family == "gemma3_text"
    try:
        return TransformerConfig(
            family,
            **{ours: has[theirs] for ours, theirs in SIZES.items()},
            activation=has.get("hidden_activation", has["hidden_act"]) if gemma else has["hidden_act"],
            attention_bias=bool(has.get("attention_bias", False)) and family != "qwen2",
            mlp_bias=bool(has.get("mlp_bias", False)) and family == "llama",
            rotary=rotary,
            local_rotary=local,
            window=window,
            sliding=sliding,
            query_scale=has.get("query_pre_attn_scalar", 256) ** -0.5 if gemma else None,
            softcap=has.get("final_logit_softcapping") if gemma else None,
            dtype=dtype,
            remat=remat,
            source=text,
        )
    except ValueError as error:
        raise ModelError(f"{place / CONFIG}: {error}") from error


def _windows(family, has) -> tuple[tuple[bool, ...], int | None]:
    """Which layers slide, and over how many tokens."""
    layers, types = has["num_hidden_layers"], has.get("layer_types")
    if family == "gemma3_text":
        pattern = has.get("sliding_window_pattern", 6)
        slides = tuple(bool((i + 1) % pattern) for i in range(layers))
        window = has.get("sliding_window", 4096)
    elif family in ("qwen2", "qwen3") and has.get("use_sliding_window", False):
        slides = tuple(i >= has.get("max_window_layers", 28) for i in range(layers))
        window = has.get("sliding_window", 4096)
    else:
        return (), None
    if types is not None:
        slides = tuple(kind == "sliding_attention" for kind in types)
    return (slides, window) if any(slides) else ((), None)


def _rotaries(family, raw, has, place) -> tuple[Rotary, Rotary | None]:
    """The rotary embeddings of full and of sliding layers, from `rope_parameters` or the older keys."""
    given = raw.get("rope_parameters") or {}
    if family == "gemma3_text":
        full, local = dict(given.get("full_attention") or {}), dict(given.get("sliding_attention") or {})
        full.update(raw.get("rope_scaling") or {})
        local.setdefault("rope_theta", has.get("rope_local_base_freq", 10_000.0))
        return _rotary(full, has, place), _rotary(local, has, place)
    return _rotary(raw.get("rope_scaling") or given, has, place), None


def _rotary(given: dict[str, Any], has, place) -> Rotary:
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "linear", "llama3") or given.get("partial_rotary_factor", has.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(f"{place / CONFIG} asks for rotary positions {given}, but only default, linear and llama3 over whole heads are covered.")
    theta = float(given.get("rope_theta", has["rope_theta"]))
    try:
        if kind == "llama3":
            bounds = {"low": given["low_freq_factor"], "high": given["high_freq_factor"]}
            return Rotary(theta, kind, given["factor"], **bounds, original=given["original_max_position_embeddings"])
        return Rotary(theta, kind, given["factor"] if kind == "linear" else 1.0)
    except KeyError as error:
        raise ModelError(f"{place / CONFIG} asks for {kind} rotary positions but does not give {error.args[0]}.") from error


class _Tensor:
    """A tensor in a file, read when it is asked for."""

    def __init__(self, file, name):
        self.file, self.name = file, name
        self.shape = file.get_slice(name).get_shape()

    def read(self):
        return self.file.get_tensor(self.name)


def _tensors(place: Path) -> dict[str, _Tensor]:
    """Every tensor of a directory by name."""
    safetensors = _safetensors()
    index = place / INDEX
    if index.is_file():
        where = _json(_text(index), index).get("weight_map")
        if not isinstance(where, dict):
            raise ModelError(f"{index} has no weight_map; save the model again.")
        files = sorted(set(where.values()))
    elif (place / SINGLE).is_file():
        where, files = None, [SINGLE]
    else:
        raise ModelError(f"{place} holds neither {SINGLE} nor {INDEX}; save the model with `safe_serialization`, the default of transformers.")
    found = {}
    for name in files:
        if not (place / name).is_file():
            raise ModelError(f"{index} names {name}, which is not in {place}; fetch it or save the model again.")
        try:
            file = safetensors.safe_open(place / name, "numpy")
            found.update({key: _Tensor(file, key) for key in file.keys()})
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelError(f"{place / name} is no complete safetensors file ({error}); fetch it or save the model again.") from error
    if where is not None:
        lost = [key for key in where if key not in found]
        if lost:
            raise ModelError(f"{index} names {_list(lost)}, which {'its files do' if len(files) > 1 else files[0] + ' does'} not hold.")
    return found


# -- writing -----------------------------------------------------------------------------------------------------------


def save(policy: Transformer, directory: str | os.PathLike, *, shard: int = SHARD) -> None:
    """Write a directory that `transformers` loads with equal logits; LoRA factors are merged into the weights.

    shard: most bytes a file; a model that needs several gets an index. What its config.json said besides is written back.
    """
    _safetensors()
    from safetensors.numpy import save_file

    place, policy = Path(directory), merged(policy)
    place.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, np.ndarray]] = [{}]
    size = total = 0
    for name, tensor in _flatten(policy):
        if files[-1] and size + tensor.nbytes > shard:
            files.append({})
            size = 0
        files[-1][name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    for old in (*place.glob("model*.safetensors"), place / INDEX):
        old.unlink(missing_ok=True)
    names = [SINGLE] if len(files) == 1 else [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    for name, tensors in zip(names, files):
        save_file(tensors, place / name, metadata={"format": "pt"})
    if len(files) > 1:
        where = {key: name for name, tensors in zip(names, files) for key in tensors}
        (place / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n")
    (place / CONFIG).write_text(json.dumps(write_config(policy.config), indent=2) + "\n")


def write_config(config: TransformerConfig) -> dict[str, Any]:
    """The content of config.json."""
    raw = json.loads(config.source) if config.source else {}
    gemma = config.family == "gemma3_text"
    raw.update({theirs: getattr(config, ours) for ours, theirs in SIZES.items()})
    raw.update(model_type=config.family, architectures=[ARCHITECTURES[config.family]])
    raw["hidden_activation" if gemma else "hidden_act"] = config.activation
    raw.pop("torch_dtype", None)
    raw["dtype"] = config.dtype
    if config.family != "qwen2":
        raw["attention_bias"] = config.attention_bias
    if config.family == "llama":
        raw["mlp_bias"] = config.mlp_bias
    for key in ("rope_scaling", "rope_theta", "rope_local_base_freq"):
        raw.pop(key, None)
    raw["rope_parameters"] = _rope(config.rotary)
    if gemma:
        local = config.rotary if config.local_rotary is None else config.local_rotary
        raw["rope_parameters"] = {"full_attention": _rope(config.rotary), "sliding_attention": _rope(local)}
        scale = config.head_size**-0.5 if config.query_scale is None else config.query_scale
        # a whole number in their configuration
        raw["query_pre_attn_scalar"] = round(scale**-2)
        raw["final_logit_softcapping"] = config.softcap
    if gemma or config.family != "llama":
        slides = config.sliding or (False,) * config.layers
        raw["layer_types"] = ["sliding_attention" if s else "full_attention" for s in slides]
        raw.pop("sliding_window_pattern", None)
        if config.window is not None:
            raw["sliding_window"] = config.window
        if not gemma:
            raw["use_sliding_window"] = any(slides)
    return raw


def _rope(rotary: Rotary) -> dict[str, Any]:
    given = {"rope_type": rotary.scaling, "rope_theta": rotary.theta}
    if rotary.scaling != "default":
        given["factor"] = rotary.factor
    if rotary.scaling == "llama3":
        given.update(low_freq_factor=rotary.low, high_freq_factor=rotary.high, original_max_position_embeddings=rotary.original)
    return given


# -- names -------------------------------------------------------------------------------------------------------------


def _layer_names(config: TransformerConfig) -> dict[str, tuple[str, tuple[int, ...], bool]]:
    """Path in our layer -> (name in theirs, shape of a layer's, whether theirs is transposed)."""
    names = {}
    for p in PROJECTIONS:
        theirs = f"{'mlp' if p in ('gate', 'up', 'down') else 'self_attn'}.{p}_proj"
        names[f"{p}.weight"] = (f"{theirs}.weight", config.shape(p), True)
        if config.biased(p):
            names[f"{p}.bias"] = (f"{theirs}.bias", config.shape(p)[1:], False)
    norms = {"before_attention": "input_layernorm", "before_mlp": "post_attention_layernorm"}
    if config.gemma:
        norms["before_mlp"] = "pre_feedforward_layernorm"
        norms.update(after_attention="post_attention_layernorm", after_mlp="post_feedforward_layernorm")
    names.update({ours: (f"{theirs}.weight", (config.width,), False) for ours, theirs in norms.items()})
    if config.qk_norm:
        names.update({f"{p}_norm": (f"self_attn.{p}_norm.weight", (config.head_size,), False) for p in "qk"})
    return names


def _names(config: TransformerConfig) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Every tensor of a model: its shape as ours, and whether theirs is transposed."""
    table = ((config.vocabulary, config.width), False)
    names = {"model.embed_tokens.weight": table, "model.norm.weight": ((config.width,), False)}
    if not config.tied:
        names["lm_head.weight"] = table
    for i in range(config.layers):
        names.update({f"model.layers.{i}.{name}": (shape, transposed) for name, shape, transposed in _layer_names(config).values()})
    return names


def _build(config: TransformerConfig, read, stack) -> Transformer:
    """A policy from a reader of one tensor and one of a list of them, stacked."""
    shapes = eqx.filter_eval_shape(Transformer.random, config, jax.random.key(0))
    policy = eqx.tree_at(lambda p: (p.embedding, p.norm), shapes, (read("model.embed_tokens.weight"), read("model.norm.weight")))
    if not config.tied:
        policy = eqx.tree_at(lambda p: p.head, policy, read("lm_head.weight"))
    for ours, (theirs, _, _) in _layer_names(config).items():
        tensor = stack([f"model.layers.{i}.{theirs}" for i in range(config.layers)])
        policy = eqx.tree_at(functools.partial(_of_layers, ours), policy, tensor)
    return policy


def _flatten(policy: Transformer):
    """(name, tensor) of every tensor of a model, as theirs."""
    config = policy.config

    def host(x: Array) -> np.ndarray:
        return np.asarray(x, jnp.dtype(config.dtype))

    yield "model.embed_tokens.weight", host(policy.embedding)
    for i in range(config.layers):
        for ours, (theirs, _, transposed) in _layer_names(config).items():
            tensor = host(_of_layers(ours, policy)[i])
            yield f"model.layers.{i}.{theirs}", np.ascontiguousarray(tensor.T if transposed else tensor)
    yield "model.norm.weight", host(policy.norm)
    if not config.tied:
        yield "lm_head.weight", host(policy.head)


def _of_layers(path: str, policy: Transformer):
    return operator.attrgetter(path)(policy.layers)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}); a model directory has {CONFIG} and {SINGLE}.") from error


def _json(text: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelError(f"{file} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds a {type(content).__name__}, but an object is expected.")
    return content


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _safetensors():
    try:
        import safetensors
    except ImportError as error:
        raise ModelError("Model directories need the package safetensors: pip install safetensors.") from error
    return safetensors
