"""A decoder-only transformer: the Llama, Qwen2, Qwen3 and Gemma 3 (text) families.

    h = embedding[x]                                       (Gemma: times sqrt(width))
    h = h + attention(norm(h));  h = h + mlp(norm(h))      in every layer (Gemma: a norm after each of the two as well)
    mlp(x) = (act(x gate) * (x up)) down                   logits = head norm(h)

Attention has `heads` queries for `kv_heads` keys and values, rotary positions, norms of queries and keys (Qwen3, Gemma 3), biases (Qwen2), and
in the sliding layers a window: a token sees itself and the window - 1 tokens before it. What a family is lies in `TransformerConfig`.

Parameters of all layers are stacked on a leading axis, and a scan over it compiles one layer, however many there are. Norms, softmax, rotary
angles and logits are at least float32, products are in the precision of the parameters.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polopt.policies.language.protocol import Scored
from polopt.policies.language.scoring import head_logits, token_scores
from polopt.policies.language.sharding import over_rows

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True)}
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
FEW_LAYERS = 4  # up to here the layers are written out: no stacking of what the backward pass needs


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Angles of the rotary embedding: position / theta^(2 i / size), slowed as long contexts need it."""

    theta: float = 10_000.0
    scaling: str = "default"  # default, linear or llama3
    factor: float = 1.0  # how much slower
    low: float = 1.0  # llama3: wavelengths above original / low are slowed
    high: float = 4.0  # llama3: those below original / high are not; between the two, smoothly
    original: int = 8192  # llama3: the context before it was lengthened

    def frequencies(self, size: int) -> np.ndarray:
        """(size / 2,) radians a position."""
        frequency = 1 / self.theta ** (np.arange(0, size, 2) / size)
        if self.scaling == "linear":
            return frequency / self.factor
        if self.scaling == "llama3":
            turns = self.original * frequency / (2 * np.pi)
            kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
            return kept * frequency + (1 - kept) * frequency / self.factor
        return frequency


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer, and what of its family it has. Hashable."""

    family: str = "llama"
    vocabulary: int = 32
    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 16
    hidden: int = 128  # units between gate and down
    context: int = 2048  # most positions
    activation: str = "silu"
    epsilon: float = 1e-6  # of the norms
    tied: bool = True  # the head is the embedding
    attention_bias: bool = False  # llama and gemma3_text: on q, k, v and o; qwen2 always has it on q, k and v
    mlp_bias: bool = False  # llama
    rotary: Rotary = Rotary()
    local_rotary: Rotary | None = None  # of the sliding layers, where they have their own
    window: int | None = None  # tokens that a sliding layer sees
    sliding: tuple[bool, ...] = ()  # which layers slide; () none
    query_scale: float | None = None  # of the attention scores; none: 1 / sqrt(head_size)
    softcap: float | None = None  # of the logits: softcap tanh(logits / softcap)
    dtype: str = "float32"  # of the parameters and products: float32 or bfloat16
    remat: bool = False  # compute each layer again in the backward pass: less memory, a third more work
    source: str = ""  # the text of the config.json that this was read from; what is not ours is written back

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"The family is {self.family!r}, but those covered are {', '.join(FAMILIES)}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"The activation is {self.activation!r}, but those covered are {', '.join(ACTIVATIONS)}.")
        if self.heads % self.kv_heads:
            raise ValueError(f"There are {self.heads} heads for {self.kv_heads} keys and values, but the first must be a multiple of the second.")
        if self.sliding and len(self.sliding) != self.layers:
            raise ValueError(f"sliding has {len(self.sliding)} entries, but there are {self.layers} layers.")
        if any(self.sliding) and self.window is None:
            raise ValueError("Layers slide, but the window is none; give the number of tokens that they see.")

    @property
    def gemma(self) -> bool:
        return self.family == "gemma3_text"

    @property
    def qk_norm(self) -> bool:
        return self.family in ("qwen3", "gemma3_text")

    def biased(self, projection: str) -> bool:
        """Whether a projection has a bias."""
        if projection in ("gate", "up", "down"):
            return self.family == "llama" and self.mlp_bias
        if self.family == "qwen2":
            return projection != "o"
        return self.attention_bias

    def shape(self, projection: str) -> tuple[int, int]:
        """(inputs, outputs) of a projection."""
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "q": (self.width, q),
            "k": (self.width, kv),
            "v": (self.width, kv),
            "o": (q, self.width),
            "gate": (self.width, self.hidden),
            "up": (self.width, self.hidden),
            "down": (self.hidden, self.width),
        }[projection]


def tiny(vocabulary: int, *, context: int = 2048) -> TransformerConfig:
    """Two layers of width 64, some 90,000 parameters: learns small tasks on a CPU within minutes."""
    return TransformerConfig("qwen3", vocabulary=vocabulary, context=context)


class Projection(eqx.Module):
    """x W + b: weight (inputs, outputs), bias (outputs,) or none; with a leading axis of layers while stacked."""

    weight: Array
    bias: Array | None

    def __call__(self, x):
        # rows by units: the gradient of a product with two leading axes takes twice the time on a CPU
        y = (x.reshape(-1, x.shape[-1]) @ self.weight).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias, y.shape)


class LowRank(eqx.Module):
    """x W + b + (x down) up scale: W and b are held, the factors down (inputs, rank) and up (rank, outputs) learn (`lora`)."""

    base: Projection
    down: Array
    up: Array
    scale: float = eqx.field(static=True)

    def __call__(self, x):
        return self.base(x) + (x @ self.down) @ self.up * self.scale


class Layer(eqx.Module):
    """Parameters of a layer, or of all of them stacked. Norm weights are as their family stores them: Gemma's are added to 1."""

    q: Projection | LowRank
    k: Projection | LowRank
    v: Projection | LowRank
    o: Projection | LowRank
    gate: Projection | LowRank
    up: Projection | LowRank
    down: Projection | LowRank
    before_attention: Array
    before_mlp: Array
    after_attention: Array | None  # Gemma
    after_mlp: Array | None  # Gemma
    q_norm: Array | None
    k_norm: Array | None


class Cache(NamedTuple):
    """keys, values: for each layer (B, kv_heads, head_size, T) and (B, kv_heads, T, head_size); seen (B, T): False on the padding;

    position (B,): of the next token in its row; slot: where all rows write next, the same for all since prompts are padded on the left.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    seen: Array
    position: Array
    slot: Array


class Transformer(eqx.Module):
    """A language policy (`protocol`)."""

    embedding: Array
    layers: Layer
    norm: Array
    head: Array | None  # None: the embedding
    config: TransformerConfig = eqx.field(static=True)

    @classmethod
    def random(cls, config: TransformerConfig, key: Array) -> "Transformer":
        """Projections N(0, 1 / inputs), those into the residual stream smaller by sqrt(2 layers), embedding N(0, 0.02^2), norms 1, biases 0."""
        dtype, unit = jnp.dtype(config.dtype), 0.0 if config.gemma else 1.0
        k_embedding, k_head, *k_projections = jax.random.split(key, 2 + len(PROJECTIONS))

        def projection(name, key):
            shape = config.shape(name)
            scale = shape[0] ** -0.5 * ((2 * config.layers) ** -0.5 if name in ("o", "down") else 1)
            bias = jnp.zeros((config.layers, shape[1]), dtype) if config.biased(name) else None
            return Projection((scale * jax.random.normal(key, (config.layers, *shape))).astype(dtype), bias)

        def norm(*shape):
            return jnp.full(shape, unit, dtype)

        around = norm(config.layers, config.width)
        heads = norm(config.layers, config.head_size) if config.qk_norm else None
        layers = Layer(
            **{name: projection(name, k) for name, k in zip(PROJECTIONS, k_projections)},
            before_attention=around,
            before_mlp=around,
            after_attention=around if config.gemma else None,
            after_mlp=around if config.gemma else None,
            q_norm=heads,
            k_norm=heads,
        )
        table = (config.vocabulary, config.width)
        embedding = (0.02 * jax.random.normal(k_embedding, table)).astype(dtype)
        head = None if config.tied else (0.02 * jax.random.normal(k_head, table)).astype(dtype)
        return cls(embedding, layers, norm(config.width), head, config)

    @property
    def vocabulary(self) -> int:
        return self.config.vocabulary

    def trainable(self):
        """Everything; with low-rank factors (`lora`) these alone."""

        def one(node):
            if not isinstance(node, LowRank):
                return jax.tree.map(lambda _: not adapted, node)
            return dataclasses.replace(jax.tree.map(lambda _: False, node), down=True, up=True)

        nodes = jax.tree.leaves(self, is_leaf=lambda node: isinstance(node, LowRank))
        adapted = any(isinstance(node, LowRank) for node in nodes)
        return jax.tree.map(one, self, is_leaf=lambda node: isinstance(node, LowRank))

    def logits(self, tokens: Array, mask: Array) -> Array:
        """(B, T, V): after every token of (B, T), padded on the left where mask is False. All logits at once: for checks, not for training."""
        hidden, _ = self._read(tokens, mask)
        return head_logits(hidden.reshape(-1, self.config.width), self._head, self.config.softcap).reshape(*tokens.shape, -1)

    def start(self, prompts: Array, mask: Array, length: int) -> tuple[Array, Cache]:
        self._check(prompts, mask, length)
        hidden, (keys, values) = self._read(prompts, mask, keep=True)
        # head_size before time for keys: both products of a decoding step then run along the last axis
        keys = [jnp.pad(k.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 0), (0, length))) for k in keys]
        values = [jnp.pad(v.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, length), (0, 0))) for v in values]
        seen = jnp.pad(mask.astype(bool), ((0, 0), (0, length)), constant_values=True)
        cache = Cache(tuple(keys), tuple(values), seen, mask.sum(-1, dtype=jnp.int32), jnp.int32(prompts.shape[1]))
        return head_logits(hidden[:, -1], self._head, self.config.softcap), cache

    def extend(self, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        config = self.config
        x = self._embed(tokens)
        angles = self._angles(cache.position)
        slots = jnp.arange(cache.seen.shape[1])
        seen = cache.seen & (slots <= cache.slot)[None]
        near = seen if config.window is None else seen & (slots > cache.slot - config.window)[None]
        keys, values = [], []
        # Written out, with a cache for each layer: inside a scan the loop over tokens would copy the whole cache at every step.
        for i in range(config.layers):
            layer = self._layer(i)
            slides = bool(config.sliding) and config.sliding[i]
            q, k, v = self._queries(layer, x, angles[slides])
            keys.append(jax.lax.dynamic_update_slice(cache.keys[i], k[..., None], (0, 0, 0, cache.slot)))
            values.append(jax.lax.dynamic_update_slice(cache.values[i], v[:, :, None], (0, 0, cache.slot, 0)))
            attended = self._attend_one(q, keys[i], values[i], near if slides else seen)
            x = self._finish(layer, x, attended)
        hidden = self._norm(x, self.norm)
        cache = Cache(tuple(keys), tuple(values), cache.seen, cache.position + 1, cache.slot + 1)
        return head_logits(hidden, self._head, config.softcap), cache

    def score(self, prompts, mask, completions, completion_mask, temperature=1.0, *, entropy: bool = True) -> Scored:
        rows, length = completions.shape
        hidden = self.states(prompts, mask, completions).reshape(rows * length, -1)
        scores = token_scores(
            hidden, self._head, completions.ravel(), completion_mask.ravel(), temperature, softcap=self.config.softcap, entropy=entropy
        )
        return Scored(*(s.reshape(rows, length) for s in scores))

    def states(self, prompts, mask, completions) -> Array:
        """(B, N, D): the hidden state before each token of the completions, from which it is drawn: what a critic of tokens reads."""
        self._check(prompts, mask, completions.shape[1])
        rows, length = completions.shape
        tokens = jnp.concatenate([prompts, completions[:, :-1]], 1)
        seen = jnp.concatenate([mask.astype(bool), jnp.ones((rows, length - 1), bool)], 1)
        return self._read(tokens, seen)[0][:, -length:]

    def embed(self, prompts, mask, completions, completion_mask) -> Array:
        """(B, D): the hidden state on the last token of each completion, or of the prompt where it is empty: what a reward model reads."""
        self._check(prompts, mask, completions.shape[1])
        mask, completion_mask = mask.astype(bool), completion_mask.astype(bool)
        hidden, _ = self._read(jnp.concatenate([prompts, completions], 1), jnp.concatenate([mask, completion_mask], 1))
        last = jnp.max(jnp.where(completion_mask, jnp.arange(completions.shape[1])[None], -1), axis=1)
        return hidden[jnp.arange(prompts.shape[0]), prompts.shape[1] + last]

    # -- a pass over whole sequences -----------------------------------------------------------------------------------

    def _read(self, tokens, mask, keep: bool = False):
        """Hidden states (B, T, D) after the last norm and, to keep, the keys and values (B, T, kv_heads, head_size) of every layer."""
        config = self.config
        mask = mask.astype(bool)
        x = self._embed(tokens)
        angles = self._angles(jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0))
        time = jnp.arange(tokens.shape[1])
        past = time[:, None] >= time[None]
        full = (past[None] & mask[:, None])[:, None]
        near = full if config.window is None else full & (time[:, None] - time[None] < config.window)[None, None]

        def layer_of(x, layer, slides):
            if isinstance(slides, bool):
                seen, turn = (near if slides else full), angles[slides]
            else:
                seen, turn = jnp.where(slides, near, full), jax.tree.map(lambda a, b: jnp.where(slides, b, a), *angles)
            q, k, v = self._queries(layer, x, turn)
            return self._finish(layer, x, self._attend(q, k, v, seen)), (k, v) if keep else None

        if config.remat:
            layer_of = jax.checkpoint(layer_of, static_argnums=(2,) if config.layers <= FEW_LAYERS or not any(config.sliding) else ())
        if config.layers <= FEW_LAYERS:
            kept = []
            for i in range(config.layers):
                x, kv = layer_of(x, self._layer(i), bool(config.sliding) and config.sliding[i])
                kept.append(kv)
        else:
            if any(config.sliding):
                x, kept = jax.lax.scan(lambda x, at: layer_of(x, *at), x, (self.layers, jnp.asarray(config.sliding)))
            else:
                x, kept = jax.lax.scan(lambda x, layer: layer_of(x, layer, False), x, self.layers)
            kept = [jax.tree.map(operator.itemgetter(i), kept) for i in range(config.layers)]
        return self._norm(x, self.norm), tuple(zip(*kept)) if keep else None

    # -- the pieces ----------------------------------------------------------------------------------------------------

    def _layer(self, i: int) -> Layer:
        return jax.tree.map(operator.itemgetter(i), self.layers)

    @property
    def _head(self):
        return self.embedding if self.head is None else self.head

    @property
    def _scale(self):
        return self.config.head_size**-0.5 if self.config.query_scale is None else self.config.query_scale

    def _embed(self, tokens):
        x = over_rows(self.embedding.at[tokens].get(mode="clip"))
        return x * jnp.asarray(self.config.width**0.5, x.dtype) if self.config.gemma else x

    def _norm(self, x, weight):
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.config.epsilon)
        weight = jnp.broadcast_to(weight, y.shape)
        return (y * (1 + weight.astype(y.dtype))).astype(x.dtype) if self.config.gemma else weight * y.astype(x.dtype)

    def _angles(self, positions):
        """(cos, sin) (..., 1, head_size / 2) of the full layers and of the sliding ones."""

        def of(rotary):
            angle = positions[..., None, None] * jnp.broadcast_to(
                jnp.asarray(rotary.frequencies(self.config.head_size), jnp.float32), (*positions.shape, 1, self.config.head_size // 2)
            )
            return jnp.cos(angle), jnp.sin(angle)

        full = of(self.config.rotary)
        return full, full if self.config.local_rotary is None else of(self.config.local_rotary)

    def _queries(self, layer, x, turn):
        """Queries, keys and values (..., heads, head_size) of x (..., D), normed and turned."""
        config = self.config
        x = self._norm(x, layer.before_attention)
        q, k, v = (p(x).reshape(*x.shape[:-1], -1, config.head_size) for p in (layer.q, layer.k, layer.v))
        if config.qk_norm:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
        return _turn(q, *turn), _turn(k, *turn), v

    def _attend(self, q, k, v, seen):
        """Attention of q (B, T, heads, head_size) over k and v (B, T, kv_heads, head_size) where seen (B, 1, T, T)."""
        if jax.default_backend() != "cpu":
            return jax.nn.dot_product_attention(q, k, v, mask=seen, scale=self._scale)
        # The same with heads before time and the queries of a group in one product: with 512 rows of 43 tokens, two kv_heads of size 16,
        # 12 ms on a CPU where the library's takes 37.
        rows, time, heads, size = q.shape
        q = q.reshape(rows, time, self.config.kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
        group = q.shape[2]
        q = q.reshape(rows, -1, group * time, size)
        k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
        weights = jnp.einsum("bkqd,bkds->bkqs", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32)) * self._scale
        weights = weights.reshape(rows, -1, group, time, time)
        # a finite number: a query on the padding sees nothing
        weights = jax.nn.softmax(jnp.where(seen[:, :, None], weights, jnp.finfo(weights.dtype).min)).astype(v.dtype)
        out = jnp.einsum("bkqs,bksd->bkqd", weights.reshape(rows, -1, group * time, time), v)
        return out.reshape(rows, -1, group, time, size).transpose(0, 3, 1, 2, 4).reshape(rows, time, heads, size)

    def _attend_one(self, q, keys, values, seen):
        """Attention of one query a head, q (B, heads, head_size), over a cache.

        Not `jax.nn.dot_product_attention`: its layout has time before heads, which takes twice as long with a query of one token.
        """
        rows, heads, size = q.shape
        q = q.reshape(rows, self.config.kv_heads, -1, size)
        weights = jnp.einsum("bkgd,bkdt->bkgt", q, keys, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32)) * self._scale
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], weights, -jnp.inf)).astype(values.dtype)
        return jnp.einsum("bkgt,bktd->bkgd", weights, values).reshape(rows, heads, size)

    def _finish(self, layer, x, attended):
        """The rest of a layer: the output projection and the mlp, each added to the stream."""
        y = layer.o(attended.reshape(*x.shape[:-1], -1))
        x = x + (self._norm(y, layer.after_attention) if self.config.gemma else y)
        y = self._norm(x, layer.before_mlp)
        y = layer.down(ACTIVATIONS[self.config.activation](layer.gate(y)) * layer.up(y))
        return x + (self._norm(y, layer.after_mlp) if self.config.gemma else y)

    def _check(self, prompts, mask, length):
        if prompts.shape != mask.shape:
            raise ValueError(f"The prompts have the shape {prompts.shape} and their mask {mask.shape}; they must be equal.")
        if prompts.shape[1] + length > self.config.context:
            raise ValueError(
                f"Prompts of {prompts.shape[1]} tokens with {length} to follow are longer than the context of {self.config.context}; "
                "shorten the prompts or the completions."
            )


def _turn(x, cos, sin):
    """Rotate each pair (x_i, x_{i + size / 2}) of x (..., heads, size) by its angle, in float32 and back."""
    a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, cos.dtype)), 2, axis=-1)
    cos, sin = (jnp.broadcast_to(c, a.shape) for c in (cos, sin))
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def parameters(policy) -> int:
    """How many numbers a policy has."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(policy))
