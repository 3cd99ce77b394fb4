"""Networks: one observation in, one output out; every leaf is an array, sizes and activations are static."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part

ACTIVATIONS = {"tanh": jax.nn.tanh, "relu": jax.nn.relu, "swish": jax.nn.swish, "gelu": jax.nn.gelu, "elu": jax.nn.elu}


class Linear(eqx.Module):
    """x @ weight + bias with an orthogonal weight of the given gain and a zero bias; x (inputs,) to (outputs,).

    The weight is (inputs, outputs): under vmap products then keep the batch axis in front, without a transpose. Measured against (outputs, inputs),
    a gradient step of two layers of 256 with batch 256 takes half to two thirds of the time, one of two layers of 64 the same.
    """

    weight: jax.Array
    bias: jax.Array

    def __init__(self, inputs: int, outputs: int, key, gain: float = math.sqrt(2)):
        self.weight = jax.nn.initializers.orthogonal(gain)(key, (inputs, outputs))
        self.bias = jnp.zeros((outputs,))

    def __call__(self, x):
        return x @ self.weight + self.bias


class Conv(eqx.Module):
    """A two-dimensional convolution of one (height, width, channels) image, orthogonal weights, no padding."""

    weight: jax.Array
    bias: jax.Array
    stride: int = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, key):
        flat = jax.nn.initializers.orthogonal(math.sqrt(2))(key, (size * size * inputs, outputs))
        self.weight = flat.reshape(size, size, inputs, outputs)
        self.bias = jnp.zeros((outputs,))
        self.stride = stride

    def __call__(self, x):
        strides = (self.stride, self.stride)
        y = jax.lax.conv_general_dilated(x[None], self.weight, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y[0] + self.bias[None, None]


class ImageEncoder(eqx.Module):
    """The three-layer convolution of Mnih et al. (2015) for images of at least 36 pixels a side, one 3x3 layer of 16 below."""

    layers: tuple[Conv, ...]
    features: int = eqx.field(static=True)

    def __init__(self, shape: tuple[int, int, int], key):
        height, width, channels = shape
        plan = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if min(height, width) >= 36 else [(16, 3, 1)]
        layers = []
        for k, (outputs, size, stride) in zip(jax.random.split(key, len(plan)), plan):
            layers.append(Conv(channels, outputs, size, stride, k))
            height, width, channels = (height - size) // stride + 1, (width - size) // stride + 1, outputs
        if min(height, width) < 1:
            raise ValueError(f"The image observation of shape {shape} is too small to convolve; it needs at least 3 x 3 pixels.")
        self.layers = tuple(layers)
        self.features = height * width * channels

    def __call__(self, image):
        for layer in self.layers:
            image = jax.nn.relu(layer(image))
        return jnp.ravel(image)


class GRU(eqx.Module):
    """A gated recurrent unit (Cho et al., 2014): carry (size,), x (inputs,) to (carry, output) with output = carry."""

    input: Linear
    hidden: Linear
    size: int = eqx.field(static=True)

    def __init__(self, inputs: int, size: int, key):
        k1, k2 = jax.random.split(key)
        self.input, self.hidden, self.size = Linear(inputs, 3 * size, k1, 1.0), Linear(size, 3 * size, k2, 1.0), size

    def initial(self):
        return jnp.zeros((self.size,))

    def __call__(self, carry, x):
        ir, iz, ic = jnp.split(self.input(x), 3)
        hr, hz, hc = jnp.split(self.hidden(carry), 3)
        reset, update = jax.nn.sigmoid(ir + hr), jax.nn.sigmoid(iz + hz)
        carry = (1 - update) * jnp.tanh(ic + reset * hc) + update * carry
        return carry, carry


class LSTM(eqx.Module):
    """A long short-term memory (Hochreiter & Schmidhuber, 1997) with a forget bias of 1; the carry is (cell, output)."""

    input: Linear
    hidden: Linear
    size: int = eqx.field(static=True)

    def __init__(self, inputs: int, size: int, key):
        k1, k2 = jax.random.split(key)
        self.input, self.hidden, self.size = Linear(inputs, 4 * size, k1, 1.0), Linear(size, 4 * size, k2, 1.0), size

    def initial(self):
        return jnp.zeros((self.size,)), jnp.zeros((self.size,))

    def __call__(self, carry, x):
        cell, output = carry
        i, f, g, o = jnp.split(self.input(x) + self.hidden(output), 4)
        cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        output = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (cell, output), output


@part
class Feedforward:
    """The shape of a network between input and output that remembers nothing."""

    hidden: tuple[int, ...] = hyper((64, 64), at_least=1)  # width of each hidden layer
    activation: str = hyper("tanh", choices=tuple(ACTIVATIONS))  # after each hidden layer

    core = "none"


@part
class Network(Feedforward):
    """The shape of a network between observation and output."""

    core: str = hyper("none", choices=("none", "gru", "lstm"))  # a recurrent core before the hidden layers
    core_size: int = hyper(64, at_least=1)  # units of the recurrent core


class Torso(eqx.Module):
    """Encoder, optional recurrent core and hidden layers; maps (carry, vector, images) to (carry, features)."""

    encoders: tuple[ImageEncoder, ...]
    core: GRU | LSTM | None
    layers: tuple[Linear, ...]
    activation: str = eqx.field(static=True)
    features: int = eqx.field(static=True)

    def __init__(self, spec: Feedforward, inputs: int, images: tuple[tuple[int, int, int], ...], key):
        k_images, k_core, k_layers = jax.random.split(key, 3)
        self.encoders = tuple(ImageEncoder(shape, jax.random.fold_in(k_images, i)) for i, shape in enumerate(images))
        width = inputs + sum(encoder.features for encoder in self.encoders)
        self.core = None if spec.core == "none" else {"gru": GRU, "lstm": LSTM}[spec.core](width, spec.core_size, k_core)
        width = width if self.core is None else spec.core_size
        layers = []
        for i, hidden in enumerate(spec.hidden):
            layers.append(Linear(width, hidden, jax.random.fold_in(k_layers, i)))
            width = hidden
        self.layers, self.activation, self.features = tuple(layers), spec.activation, width

    def initial(self):
        """The carry at the start of an episode: () without a core."""
        return () if self.core is None else self.core.initial()

    def __call__(self, carry, vector, images):
        x = jnp.concatenate([vector, *(encode(image) for encode, image in zip(self.encoders, images))])
        if self.core is not None:
            carry, x = self.core(carry, x)
        for layer in self.layers:
            x = ACTIVATIONS[self.activation](layer(x))
        return carry, x
