"""Export of a deployed policy - normaliser, network, squashing and scaling together - checked against the policy itself.

The exported function takes a batch of observations of any size and gives the most likely actions. A recurrent policy's
takes its carry first and gives the next one first; the carry of a new episode is zeros.

    onnx         a graph for onnxruntime: inputs `observation` or `observation.<name>`, `carry...`; outputs `action`, `next_carry...`
    stablehlo    a serialised `jax.export`, read by `load_stablehlo`
    safetensors  the parameters by their path in the tree, with what is needed to rebuild the policy as metadata; read by `load_safetensors`
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox
import jax
import jax.export
import jax.extend.core
import jax.numpy as jnp
import numpy as np

import polopt
from polopt.core import spaces

FORMATS = ("onnx", "stablehlo", "safetensors")
TOLERANCE = 1e-5
COMPARED = ((5, 7), (1, 5))  # batches of 5 observations over 7 steps, then of 1 over 5


class ExportError(ValueError):
    """An export that could not be made or does not act as the policy does, in one sentence."""


class Tensor(NamedTuple):
    """An input or output of an exported policy; the first axis of `shape` is "batch"."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written, and the largest difference found from the policy's own actions and carries.

    A difference is relative to the largest of 1, the action's bounds and the values compared.
    """

    path: Path
    format: str
    largest_difference: float
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def export(policy, path: str | os.PathLike, format: str) -> Exported:
    """Write `policy` to `path` as "onnx", "stablehlo" or "safetensors"; nothing is written unless it acts as the policy does."""
    if format not in FORMATS:
        raise ExportError(f"The export format is {format!r}, but it must be one of {', '.join(FORMATS)}.")
    path = _writable(Path(path))
    if any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(policy.initial_carry())):
        raise ExportError("The policy's initial carry is not zero, but whoever runs an export starts episodes with zeros; let the policy do so too.")
    content, function = {"onnx": _to_onnx, "stablehlo": _to_stablehlo, "safetensors": _to_safetensors}[format](policy)
    largest = _largest_difference(policy, function, format)
    _write(path, content)
    inputs, outputs = _signature(policy)
    return Exported(path, format, largest, inputs, outputs)


def load_stablehlo(path: str | os.PathLike) -> Callable:
    """The exported function: `act(observation) -> action`, or `act(carry, observation) -> (carry, action)` with memory; all batched."""
    return _stablehlo_function(_read(Path(path)), path)


def load_safetensors(path: str | os.PathLike, like):
    """A copy of the policy `like` with the parameters of the file; its spaces and network must be those of the exported policy."""
    _need("safetensors")
    content = _read(Path(path))
    stored, metadata = _parse_safetensors(content, path)
    difference = _first_difference(metadata["policy"], _describe(like))
    if difference:
        raise ExportError(f"The policy in {path} is not built like the one given: {difference}; give a policy of the same spaces and network.")
    paths, tree = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(tree, [jnp.asarray(stored[_dotted(p)]) for p, _ in paths])


# The batched function and its signature


def _is_recurrent(policy) -> bool:
    return bool(jax.tree.leaves(policy.initial_carry()))


def _batched(policy) -> Callable:
    """`act` without a key over a batch, with the carry only where there is memory."""
    if _is_recurrent(policy):
        return jax.vmap(lambda carry, observation: policy.act(carry, observation))
    return jax.vmap(lambda observation: policy.act(policy.initial_carry(), observation)[1])


def _example(policy) -> tuple:
    """One unbatched set of arguments of `_batched`, as shapes and types."""
    observation = jax.eval_shape(lambda: spaces.sample(policy.observation_space, jax.random.key(0)))
    return (jax.eval_shape(policy.initial_carry), observation) if _is_recurrent(policy) else (observation,)


def _with_batch(example, size):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype), example)


def _dotted(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _tensors(name: str, example) -> tuple[Tensor, ...]:
    leaves = jax.tree_util.tree_flatten_with_path(example)[0]
    return tuple(Tensor(".".join(filter(None, (name, _dotted(path)))), str(leaf.dtype), ("batch", *leaf.shape)) for path, leaf in leaves)


def _signature(policy) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    example = _example(policy)
    carry, action = jax.eval_shape(lambda *given: policy.act(*given), jax.eval_shape(policy.initial_carry), example[-1])
    inputs = _tensors("carry", example[:-1][0] if _is_recurrent(policy) else ()) + _tensors("observation", example[-1])
    return inputs, _tensors("next_carry", carry) + _tensors("action", action)


# The formats: each gives the bytes of the file and the batched function that these bytes mean


def _to_onnx(policy) -> tuple[bytes, Callable]:
    _need("jax2onnx", "onnx", "onnxruntime")
    import jax2onnx
    import onnxruntime

    inputs, outputs = _signature(policy)
    example = _with_batch(_example(policy), *jax.export.symbolic_shape("batch"))
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of shapes that onnxruntime works out by itself
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    try:
        # Traced before conversion: jax2onnx puts its own functions in the place of jax.numpy's, and some of those go wrong under vmap.
        program = jax.make_jaxpr(_batched(policy))(*example)
        with _kept_as_it_is(jnp):
            model = jax2onnx.to_onnx(
                jax.extend.core.jaxpr_as_fun(_without_empty_arrays(_each_output_once(program))),
                jax.tree.leaves(example),
                model_name="polopt_policy",
                input_names=[tensor.name for tensor in inputs],
                output_names=[tensor.name for tensor in outputs],
            )
        facts = model.metadata_props.add()
        facts.key, facts.value = "polopt", json.dumps(_facts(policy))
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"The policy holds an operation that cannot be brought to ONNX ({_line(error)}); try stablehlo or safetensors.") from error
    result = jax.tree.structure(jax.eval_shape(_batched(policy), *example))

    def run(*arguments):
        flat = [np.asarray(leaf) for leaf in jax.tree.leaves(arguments)]
        try:
            found = session.run(None, dict(zip([tensor.name for tensor in inputs], flat)))
        except Exception as error:  # such as of a policy that takes a gradient: jax2onnx loses the size of the batch in it
            raise ExportError(f"The policy in ONNX does not run in onnxruntime ({_line(error)}); try stablehlo or safetensors.") from error
        return jax.tree.unflatten(result, found)

    return content, run


@contextlib.contextmanager
def _kept_as_it_is(module):
    """Undo what is put in the place of the module's functions: jax2onnx leaves a `jnp.cumsum` behind that takes its axis by keyword only."""
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def _each_output_once(program: jax.extend.core.ClosedJaxpr) -> jax.extend.core.ClosedJaxpr:
    """The program with a sum of its own for an output that is another one too, such as an action that is also remembered: a name means one value."""
    outputs = program.jaxpr.outvars
    again = [any(other is output for other in outputs[:i]) for i, output in enumerate(outputs)]
    if not any(again):
        return program

    def apart(*arguments):
        found = jax.extend.core.jaxpr_as_fun(program)(*arguments)
        return [x + jnp.zeros((), x.dtype) if twice else x for x, twice in zip(found, again)]

    return jax.make_jaxpr(apart)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.jaxpr.invars))


def _without_empty_arrays(program: jax.extend.core.ClosedJaxpr) -> jax.extend.core.ClosedJaxpr:
    """The program with arrays of length 0 left out of what it concatenates: onnxruntime refuses to make them."""

    def cleaned(step):
        if step.primitive.name != "concatenate":
            return step
        filled = [given for given in step.invars if given.aval.shape[step.params["dimension"]] != 0]
        return step.replace(invars=filled or step.invars[:1])

    return program.replace(jaxpr=program.jaxpr.replace(eqns=[cleaned(step) for step in program.jaxpr.eqns]))


def _to_stablehlo(policy) -> tuple[bytes, Callable]:
    example = _with_batch(_example(policy), *jax.export.symbolic_shape("batch"))
    try:
        content = bytes(jax.export.export(jax.jit(_batched(policy)), platforms=("cpu", "cuda", "rocm", "tpu"))(*example).serialize())
    except Exception as error:
        raise ExportError(f"The policy cannot be exported with a batch of any size ({_line(error)}); try safetensors.") from error
    return content, _stablehlo_function(content, "the export")


def _stablehlo_function(content: bytes, name) -> Callable:
    try:
        exported = jax.export.deserialize(bytearray(content))
    except Exception as error:
        raise ExportError(f"{name} is not a StableHLO export of polopt ({_line(error)}).") from error
    return jax.jit(exported.call)


def _to_safetensors(policy) -> tuple[bytes, Callable]:
    _need("safetensors")
    from safetensors.numpy import save

    arrays = {_dotted(path): np.ascontiguousarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(policy)[0]}
    content = save(arrays, metadata={"polopt": json.dumps(_facts(policy))})
    restored, _ = _parse_safetensors(content, "the export")
    leaves = [jnp.asarray(restored[name]) for name in arrays]
    return content, jax.jit(_batched(jax.tree.unflatten(jax.tree.structure(policy), leaves)))


def _parse_safetensors(content: bytes, name) -> tuple[dict, dict]:
    """The arrays and polopt's metadata of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(content)
        # the header is a length of eight bytes and that many bytes of JSON; the reader of whole files gives no metadata
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return arrays, json.loads(header["__metadata__"]["polopt"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ExportError(f"{name} is not a safetensors export of polopt ({_line(error)}).") from error


# What is written beside the numbers


def _facts(policy) -> dict[str, Any]:
    versions = {module.__name__: module.__version__ for module in (polopt, jax, equinox)}
    described = {"observation_space": policy.observation_space, "action_space": policy.action_space, "policy": policy}
    return {name: _describe(value) for name, value in described.items()} | {"versions": versions}


def _describe(value):
    """A tree of modules, spaces and sizes as JSON: classes by name, arrays by shape and type."""
    if dataclasses.is_dataclass(value):
        return {"kind": type(value).__name__} | {f.name: _describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_describe(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _describe(item) for name, item in value.items()}
    if hasattr(value, "dtype"):
        return {"shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no infinity
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _first_difference(stored, given, where: str = "policy") -> str:
    """Where two descriptions part, in words; empty when they do not."""
    if isinstance(stored, dict) and isinstance(given, dict) and stored.keys() == given.keys():
        pairs = [(stored[name], given[name], f"{where}.{name}") for name in stored]
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        pairs = [(a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(stored, given))]
    else:
        return "" if stored == given else f"{where} is {_short(stored)} in the file and {_short(given)} in the policy given"
    return next(filter(None, (_first_difference(*pair) for pair in pairs)), "")


def _short(description) -> str:
    if isinstance(description, dict):
        return description.get("kind", str(description))
    return f"a list of {len(description)}" if isinstance(description, list) and any(isinstance(d, dict) for d in description) else repr(description)


# The check


def _largest_difference(policy, function: Callable, format: str) -> float:
    """Run both on random observations, the carry moving on from batch to batch; ExportError when they differ by more than TOLERANCE."""
    own = jax.jit(_batched(policy))
    sample = jax.jit(jax.vmap(lambda key: spaces.sample(policy.observation_space, key)))
    recurrent, differences = _is_recurrent(policy), [0.0]
    for size, steps in COMPARED:
        carry = jax.tree.map(lambda leaf, size=size: jnp.zeros((size, *leaf.shape), leaf.dtype), policy.initial_carry())
        for step in range(steps):
            observation = sample(jax.random.split(jax.random.key(1000 * size + step), size))
            arguments = (carry, observation) if recurrent else (observation,)
            expected, found = own(*arguments), function(*arguments)
            (after, action), (found_after, found_action) = (expected, found) if recurrent else ((carry, expected), (carry, found))
            differences += [_difference(a, b, 1.0) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(found_after))]
            if isinstance(policy.action_space, spaces.Box):
                differences.append(_difference(action, found_action, _reach(policy.action_space)))
            else:
                _compare_choices(policy, carry, observation, np.asarray(action), np.asarray(found_action), format)
            carry = after
    worst = float(np.max(differences))  # NaN when one is
    if not worst <= TOLERANCE:
        raise ExportError(f"The {format} export differs from the policy by {worst:.1e}, more than {TOLERANCE:.0e}; nothing was written.")
    return worst


def _reach(space: spaces.Box) -> np.ndarray:
    """The largest finite bound of each entry, at least 1: what the rounding of a scaled action is measured against."""
    return np.maximum(1, np.max([np.where(np.isfinite(bound), np.abs(bound), 1) for bound in space.bounds()], axis=0))


def _difference(expected, found, scale) -> float:
    expected, found = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    if expected.shape != found.shape:
        return math.inf
    return float(np.max(np.abs(expected - found) / np.maximum(scale, np.abs(expected)), initial=0))


def _compare_choices(policy, carry, observation, expected, found, format: str) -> None:
    """ExportError when an action differs although it is not as likely as the policy's own."""
    if expected.shape != found.shape:
        raise ExportError(f"The {format} export gives actions of shape {found.shape}, but the policy's have {expected.shape}; nothing was written.")
    for i in np.flatnonzero(np.any((expected != found).reshape(len(expected), -1), axis=1)):
        one_carry, one = jax.tree.map(lambda leaf, i=i: leaf[i], (carry, observation))
        gap = math.inf
        if hasattr(policy, "actor"):
            _, distribution = policy.actor(one_carry, *policy.normaliser(one))
            gap = float(distribution.log_prob(jnp.asarray(expected[i])) - distribution.log_prob(jnp.asarray(found[i])))
        if not gap <= TOLERANCE:
            choices = f"{found[i].tolist()} where the policy chooses {expected[i].tolist()}"
            raise ExportError(f"The {format} export chooses {choices}, and the two are not equally likely; nothing was written.")


# Files and packages


def _need(*packages: str) -> None:
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ExportError(f"This export needs the package {name}, which cannot be imported ({error}); try pip install polopt[export].") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]


def _writable(path: Path) -> Path:
    folder = path.parent
    if not folder.is_dir():
        raise ExportError(f"The policy cannot be written to {path}, because {folder} is not a folder; make it first or name another file.")
    if path.is_dir():
        raise ExportError(f"The policy cannot be written to {path}, because that is a folder; name a file in it.")
    if not os.access(folder, os.W_OK):
        raise ExportError(f"The policy cannot be written to {path}, because {folder} may not be written to; name another file.")
    return path


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: an export of the same name stays until the new one is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ExportError(f"The policy could not be written to {path}: {error.strerror}.") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"The policy cannot be read from {path}: {error.strerror}.") from error
