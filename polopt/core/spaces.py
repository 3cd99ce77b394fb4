"""Spaces: what an observation or an action may be. Frozen and hashable, so that they are static under `jax.jit`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Discrete:
    """Whole numbers 0 ... n-1, as an int32 scalar."""

    n: int

    @property
    def shape(self):
        return ()

    @property
    def dtype(self):
        return "int32"


@dataclass(frozen=True)
class MultiDiscrete:
    """A vector of whole numbers; entry i lies in 0 ... nvec[i]-1."""

    nvec: tuple[int, ...]

    @property
    def shape(self):
        return (len(self.nvec),)

    @property
    def dtype(self):
        return "int32"


@dataclass(frozen=True)
class MultiBinary:
    """A vector of n zeros and ones, as int32."""

    n: int

    @property
    def shape(self):
        return (self.n,)

    @property
    def dtype(self):
        return "int32"


@dataclass(frozen=True)
class Box:
    """An array of `shape` between `low` and `high`: each one number for all entries, or a tuple with one for each."""

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    shape: tuple[int, ...]
    dtype: str = "float32"

    @staticmethod
    def of(low, high, shape, dtype="float32") -> "Box":
        """A box from arrays; bounds that are equal everywhere are kept as one number."""

        def compact(bound):
            bound = np.broadcast_to(np.asarray(bound, np.float64), shape)
            if bound.size and np.all(bound == bound.flat[0]):
                return float(bound.flat[0])
            return tuple(float(b) for b in bound.ravel())

        return Box(compact(low), compact(high), tuple(shape), str(np.dtype(dtype)))

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """`low` and `high` as float32 arrays of `shape`. Numbers beyond float32's half range count as infinite."""

        def full(bound):
            array = np.asarray(bound, np.float64)
            array = array.reshape(self.shape) if array.ndim else np.full(self.shape, array)
            limit = float(np.finfo(np.float32).max) / 2
            return np.where(np.abs(array) >= limit, np.copysign(np.inf, array), array).astype(np.float32)

        return full(self.low), full(self.high)

    @property
    def bounded(self) -> bool:
        low, high = self.bounds()
        return bool(np.all(np.isfinite(low)) and np.all(np.isfinite(high)))


@dataclass(frozen=True)
class Dict:
    """Named spaces; a value is a dict of arrays with these names."""

    items: tuple[tuple[str, Any], ...]


Space = Discrete | MultiDiscrete | MultiBinary | Box | Dict


def zeros(space: Space):
    """A value of the space's shape and type filled with zeros."""
    if isinstance(space, Dict):
        return {name: zeros(inner) for name, inner in space.items}
    return jnp.zeros(space.shape, space.dtype)


def cast(space: Space, value):
    """`value`, batched or not, with the types of its space."""
    if isinstance(space, Dict):
        return {name: cast(inner, value[name]) for name, inner in space.items}
    return jnp.asarray(value, space.dtype)


def sample(space: Space, key):
    """A random value: uniform where the space is bounded, standard normal where it is not."""
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.n)
    if isinstance(space, MultiDiscrete):
        return jax.random.randint(key, space.shape, 0, jnp.array(space.nvec))
    if isinstance(space, MultiBinary):
        return jax.random.bernoulli(key, shape=space.shape).astype(jnp.int32)
    if isinstance(space, Dict):
        return {name: sample(inner, k) for (name, inner), k in zip(space.items, jax.random.split(key, len(space.items)))}
    low, high = space.bounds()
    finite = np.isfinite(low) & np.isfinite(high)
    uniform = jax.random.uniform(key, space.shape, minval=np.where(finite, low, 0), maxval=np.where(finite, high, 1))
    return jnp.where(finite, uniform, jax.random.normal(key, space.shape)).astype(space.dtype)


def size(space: Space) -> int:
    """How many numbers `flatten` gives for the space's vector part."""
    if isinstance(space, Discrete):
        return space.n
    if isinstance(space, MultiDiscrete):
        return sum(space.nvec)
    if isinstance(space, MultiBinary):
        return space.n
    if isinstance(space, Dict):
        return sum(size(inner) for _, inner in space.items)
    return 0 if is_image(space) else math.prod(space.shape)


def is_image(space: Space) -> bool:
    """Whether a box is an image: three axes, (height, width, channels)."""
    return isinstance(space, Box) and len(space.shape) == 3


def images(space: Space) -> tuple[Box, ...]:
    """The image spaces inside a space, in order."""
    if isinstance(space, Dict):
        return tuple(image for _, inner in space.items for image in images(inner))
    return (space,) if is_image(space) else ()


def flatten(space: Space, value):
    """One unbatched value as `(vector, pictures)`: a float32 vector of length `size(space)` and a tuple of images in [0, 1] or as they are.

    Whole numbers become one-hot. Images of whole numbers 0 ... 255 are divided by 255.
    """
    if isinstance(space, Dict):
        pairs = [flatten(inner, value[name]) for name, inner in space.items]
        return jnp.concatenate([v for v, _ in pairs]), tuple(p for _, many in pairs for p in many)
    if isinstance(space, Discrete):
        return jax.nn.one_hot(value, space.n), ()
    if isinstance(space, MultiDiscrete):
        return jnp.concatenate([jax.nn.one_hot(value[i], n) for i, n in enumerate(space.nvec)]), ()
    if is_image(space):
        scale = 255.0 if space.dtype == "uint8" else 1.0
        return jnp.zeros((0,), jnp.float32), (jnp.asarray(value, jnp.float32) / scale,)
    return jnp.ravel(value).astype(jnp.float32), ()


def from_gymnasium(space) -> Space:
    """The space that a Gymnasium space describes; TypeError names a kind that is not supported."""
    kind = type(space).__name__
    if kind == "Discrete":
        if int(getattr(space, "start", 0)) != 0:
            raise TypeError(f"The discrete space {space} does not start at 0; wrap the environment so that it does.")
        return Discrete(int(space.n))
    if kind == "MultiDiscrete":
        if np.any(getattr(space, "start", 0)):
            raise TypeError(f"The space {space} does not start at 0; wrap the environment so that it does.")
        return MultiDiscrete(tuple(int(n) for n in np.ravel(space.nvec)))
    if kind == "MultiBinary":
        return MultiBinary(int(np.prod(space.n)))
    if kind == "Box":
        return Box.of(space.low, space.high, space.shape, _narrow(space.dtype))
    if kind == "Dict":
        return Dict(tuple((name, from_gymnasium(inner)) for name, inner in space.spaces.items()))
    raise TypeError(f"The space {space} is of kind {kind}; supported are Discrete, MultiDiscrete, MultiBinary, Box and Dict.")


def _narrow(dtype) -> str:
    """The type in which JAX keeps numbers of `dtype`: 32 bits where NumPy has 64."""
    return {"float64": "float32", "int64": "int32", "uint64": "uint32"}.get(str(np.dtype(dtype)), str(np.dtype(dtype)))
