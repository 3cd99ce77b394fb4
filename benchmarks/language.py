"""Language policies: time to write and to learn with the tiny model, and memory at a large vocabulary.

    python benchmarks/language.py [--rows 512] [--length 32] [--repeats 8]

Prints milliseconds (the least of ten, and the processor time of both cores, which a busy machine changes less) for 512 completions of 32 tokens:
generation, scores, and scores with their gradient at once and in micro-batches; seconds to compile; and the temporary memory of a gradient through
the scores of 16,384 tokens over 151,936, with and without chunks.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp

from polopt.policies.language.sampling import generate
from polopt.policies.language.scoring import token_scores
from polopt.policies.language.transformer import Transformer, parameters, tiny
from polopt.run.huge_pages import start_again

VOCABULARY, PROMPT = 32, 12


def measure(name, function, *arguments):
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    compiled = time.perf_counter() - start
    jax.block_until_ready(program(*arguments))
    wall, cpu = [], []
    for _ in range(10):
        start, start_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(program(*arguments))
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    print(f"{name:40} {1e3 * min(wall):7.0f} ms   processor {1e3 * min(cpu):7.0f} ms   compile {compiled:5.1f} s", flush=True)


def loss(policy, batch):
    scored = policy.score(*batch)
    return (scored.log_prob - 0.01 * scored.entropy).sum()


def accumulated(rows):
    """The gradient as a sum over micro-batches of `rows`."""

    def gradient(policy, batch):
        parts = jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), batch)

        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.grad(loss)(policy, part)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, policy), parts)[0]

    return gradient


def memory(chunk, tokens=16_384, vocabulary=151_936, width=64):
    def total(hidden, head, targets, mask):
        log_prob, entropy = token_scores(hidden, head, targets, mask, chunk=chunk)
        return (log_prob - entropy).sum()

    shapes = [((tokens, width), "float32"), ((vocabulary, width), "float32"), ((tokens,), "int32"), ((tokens,), "bool")]
    program = jax.jit(jax.grad(total, (0, 1))).lower(*(jax.ShapeDtypeStruct(*s) for s in shapes)).compile()
    return program.memory_analysis().temp_size_in_bytes / 2**30


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512, help="completions")
    parser.add_argument("--length", type=int, default=32, help="tokens a completion")
    parser.add_argument("--repeats", type=int, default=8, help="completions a prompt")
    options = parser.parse_args()
    start_again()  # with memory in huge pages, as the command line does; whatever is started from here has them, too
    policy = Transformer.random(tiny(VOCABULARY), jax.random.key(0))
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {parameters(policy)} parameters, {options.rows} x {options.length} tokens")
    prompts = jax.random.randint(jax.random.key(1), (options.rows // options.repeats, PROMPT), 0, VOCABULARY)
    mask = jnp.ones(prompts.shape, bool)

    def write(policy, key):
        return generate(policy, prompts, mask, key, length=options.length, repeats=options.repeats)

    measure("generation", write, policy, jax.random.key(2))
    out = write(policy, jax.random.key(2))
    batch = (*(jnp.repeat(x, options.repeats, axis=0) for x in (prompts, mask)), out.tokens, out.mask)
    measure("scores", lambda p, b: p.score(*b), policy, batch)
    measure("scores and gradient", jax.grad(loss), policy, batch)
    for rows in (32, 64, 128):
        if options.rows % rows == 0:
            measure(f"scores and gradient, {rows} rows at a time", accumulated(rows), policy, batch)
    print(f"memory at vocabulary 151,936, 16,384 tokens: {memory(None):.2f} GiB in chunks, {memory(16_384):.2f} GiB at once")


if __name__ == "__main__":
    main()
