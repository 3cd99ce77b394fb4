"""A language model of Qwen2.5-0.5B's sizes, random weights, bfloat16: tokens a second to write and to learn, and how much of the device they use.

    python benchmarks/gpu.py [--rows 64] [--prompt 256] [--length 1024] [--micro-batch 8] [--layers 24]

Prints, for generation, tokens a second and the share of the device's memory bandwidth (parameters and cache read once a token); for a gradient
through the scores of the same completions, in micro-batches, tokens a second and the share of its FLOP rate (6 a parameter and token, and the
products of attention); then seconds to compile, peak memory, and versions. The device's rates are those of its data sheet, by --tflops and
--gigabytes-per-second where it is not known here. A CPU takes fewer --rows, --layers and a shorter --length.
"""

import argparse
import time

import jax
import jax.numpy as jnp
from machine import product_rate

from polopt.policies.language.sampling import generate
from polopt.policies.language.transformer import Rotary, Transformer, TransformerConfig, parameters

# dense bfloat16 TFLOP/s and GB/s, by what the device calls itself
DATA_SHEETS = {"H200": (989, 4800), "H100": (989, 3350), "A100": (312, 2039), "L40S": (362, 864), "L4": (121, 300), "A10G": (70, 600)}


def config(layers: int) -> TransformerConfig:
    return TransformerConfig(
        family="qwen2",
        vocabulary=151_936,
        width=896,
        layers=layers,
        heads=14,
        kv_heads=2,
        head_size=64,
        hidden=4864,
        context=32_768,
        rotary=Rotary(theta=1e6),
        dtype="bfloat16",
        remat=True,
    )


def timed(program, *arguments) -> float:
    jax.block_until_ready(program(*arguments))
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - start


def compiled(function, *arguments):
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - start


def rates(options) -> tuple[float, float | None]:
    """(FLOP/s, bytes/s) of the device; of a CPU the first is measured and the second unknown."""
    device = jax.devices()[0]
    known = next((rates for name, rates in DATA_SHEETS.items() if name in device.device_kind), (None, None))
    tflops, gigabytes = options.tflops or known[0], options.gigabytes_per_second or known[1]
    flops = 1e12 * tflops if tflops else product_rate()
    return flops, 1e9 * gigabytes if gigabytes else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tflops", type=float)
    parser.add_argument("--gigabytes-per-second", type=float)
    options = parser.parse_args()
    if options.rows % options.micro_batch:
        parser.error(f"--rows is {options.rows}, which --micro-batch {options.micro_batch} does not divide")
    device, (flops, bandwidth) = jax.devices()[0], rates(options)
    policy = Transformer.random(config(options.layers), jax.random.key(0))
    size = parameters(policy)
    print(f"{device.device_kind}, jax {jax.__version__}: {size / 1e6:.0f} million parameters, {flops / 1e12:.2f} TFLOP/s", flush=True)

    rows, prompt, length = options.rows, options.prompt, options.length
    prompts = jax.random.randint(jax.random.key(1), (rows, prompt), 0, 151_936)
    mask = jnp.ones(prompts.shape, bool)
    write, seconds = compiled(lambda p, *x: generate(p, *x, length=length), policy, prompts, mask, jax.random.key(2))
    took = timed(write, policy, prompts, mask, jax.random.key(2))
    a_position = 2 * 2 * policy.config.layers * policy.config.kv_heads * policy.config.head_size  # keys and values, two bytes each
    read = length * (2 * size + rows * a_position * (prompt + length / 2))
    share = f", {100 * read / took / bandwidth:.0f} % of the bandwidth" if bandwidth else f", {read / took / 1e9:.1f} GB/s read"
    print(f"generation: {rows * length / took:,.0f} tokens/s ({took:.2f} s){share}; compile {seconds:.1f} s", flush=True)

    made = write(policy, prompts, mask, jax.random.key(2))
    pieces = jax.tree.map(lambda x: x.reshape(-1, options.micro_batch, *x.shape[1:]), (prompts, mask, made.tokens, made.mask))

    def gradient(policy, pieces):
        def add(total, piece):
            slope = jax.grad(lambda p: p.score(*piece, entropy=False).log_prob.sum())(policy)
            return jax.tree.map(jnp.add, total, slope), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, policy), pieces)[0]

    learn, seconds = compiled(gradient, policy, pieces)
    took = timed(learn, policy, pieces)
    tokens = rows * (prompt + length)
    attention = 12 * policy.config.layers * policy.config.heads * policy.config.head_size * rows * (prompt + length) ** 2 / 2
    share = 100 * (6 * size * tokens + attention) / took / flops
    print(f"gradient: {tokens / took:,.0f} tokens/s ({took:.2f} s), {share:.0f} % of the FLOP rate, layers recomputed; compile {seconds:.1f} s")
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        print(f"peak memory {peak / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
