"""Language models over several devices: rows of a batch along the axis `data`, the parameters of a layer along the axis `tensor`.

    q, k, v, gate, up     by outputs: each device has some heads, some units
    o, down               by inputs: each device adds its part to the stream
    embedding, head       by tokens of the vocabulary
    all else              whole on every device

Only where arrays lie is said; the compiler puts in what devices have to tell each other. The numbers are those of one device but for the order
of sums. What an axis does not divide evenly stays whole. Moments of an optimiser lie as their parameters do.
"""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, TENSOR = "data", "tensor"
BY_OUTPUTS, BY_INPUTS = ("q", "k", "v", "gate", "up"), ("o", "down")


def make_mesh(data: int = 1, tensor: int = 1) -> Mesh:
    """data times tensor devices. ValueError where there are fewer."""
    devices = jax.devices()
    if data * tensor > len(devices):
        raise ValueError(f"data={data},tensor={tensor} takes {data * tensor} devices, but there are {len(devices)} ({devices[0].platform}).")
    return jax.make_mesh((data, tensor), (DATA, TENSOR), axis_types=(AxisType.Auto,) * 2, devices=devices[: data * tensor])


def over_rows(x: jax.Array) -> jax.Array:
    """The same array with its first axis along `data`, where a mesh with that axis is set and divides it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or DATA not in mesh.axis_names or x.shape[0] % mesh.shape[DATA]:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(DATA))


def placed(tree, mesh: Mesh):
    """A pytree with the parameters of transformers in it, and whatever has their names, along `tensor`; the rest whole."""

    def place(path, x):
        return jax.device_put(x, NamedSharding(mesh, _layout([_word(key) for key in path], x, mesh.shape[TENSOR])))

    return jax.tree_util.tree_map_with_path(place, tree)


def _layout(names: list[str], x, count: int) -> PartitionSpec:
    axis = _axis(names)
    if axis is None or x.ndim < -axis or x.shape[axis] % count:
        return PartitionSpec()
    return PartitionSpec(*[None] * (x.ndim + axis), TENSOR, *[None] * (-axis - 1))


def _axis(names: list[str]) -> int | None:
    """Which axis of a leaf lies along `tensor`, counted from the end."""
    if names[-1:] in (["embedding"], ["head"]):
        return -2
    if "layers" not in names[:-1]:
        return None
    projection, leaf = names[names.index("layers") + 1], names[-1]
    if projection in BY_OUTPUTS:
        return -1 if leaf in ("weight", "bias", "up") else None  # a low-rank `down` has all inputs
    return -2 if projection in BY_INPUTS and leaf in ("weight", "down") else None


def _word(key) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))
