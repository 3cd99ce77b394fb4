"""A whole GRPO iteration, generation included, against TRL with the same sizes, in turn.

    python benchmarks/grpo.py [--rounds 3] [--trl PYTHON]

The model is the tiny one (2 layers of width 64); every completion has 32 tokens; one update an iteration, no penalty; a reward that both sides
compute from the first token. Prints milliseconds an iteration (median), the ratio within each round, seconds to compile, the share of the machine's
matrix-product rate, eight seeds by vmap against one, versions, cores and load. TRL's interpreter is named by --trl or POLOPT_PEER_TRL.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from machine import machine, product_rate

from polopt.core import parts
from polopt.data.prompts import Graded
from polopt.data.tasks import make_language_task
from polopt.loops.language import NoPenalty
from polopt.methods.reasoning.grpo import grpo
from polopt.policies.language.transformer import Transformer, parameters, tiny
from polopt.run.huge_pages import start_again
from polopt.run.language import save_model

PEER = Path(__file__).parent / "peers" / "trl_grpo.py"
LENGTH, ITERATIONS, WARM = 32, 20, 3


class FirstIsADigit(eqx.Module):
    """1 where a completion begins with a digit."""

    digits: tuple[int, ...] = eqx.field(static=True)
    host = False

    def __call__(self, prompts, index, tokens, mask):
        reward = jnp.any(tokens[:, :1] == jnp.asarray(self.digits)[None], axis=1).astype(jnp.float32)
        return Graded(reward, jnp.ones(reward.shape, bool))


def posed():
    task = make_language_task("arithmetic")
    digits = tuple(task.tokenizer.encode("0123456789"))
    task = dataclasses.replace(task, verifier=FirstIsADigit(digits), length=LENGTH, stop=(), steps=10_000)
    return task.with_model(Transformer.random(tiny(task.tokenizer.size), jax.random.key(0)))


def ours(task, prompts: int, completions: int, seeds: int = 1):
    """(seconds of each iteration, seconds to compile)."""
    method = parts.replace(dataclasses.replace(grpo(task), penalty=NoPenalty()), {"prompts": prompts, "completions": completions, "anneal": False})
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    state = jax.jit(jax.lax.map, static_argnums=0)(lambda key: method.init(task, key), keys)
    step = lambda state: jax.vmap(lambda s: method.step(task, s)[0])(state) if seeds > 1 else method.step(task, state)[0]  # noqa: E731
    state = state if seeds > 1 else jax.tree.map(lambda x: x[0], state)
    start = time.perf_counter()
    program = jax.jit(step).lower(state).compile()
    compiled = time.perf_counter() - start
    took = []
    for i in range(WARM + ITERATIONS):
        start = time.perf_counter()
        state = jax.block_until_ready(program(state))
        took += [time.perf_counter() - start] if i >= WARM else []
    return took, compiled


def theirs(task, interpreter: str, prompts: int, completions: int):
    with tempfile.TemporaryDirectory() as folder:
        save_model(task.model, task.tokenizer, folder)
        settings = dict(model=folder, prompts=prompts, completions=completions, length=LENGTH, iterations=ITERATIONS, warm=WARM)
        done = subprocess.run([interpreter, str(PEER), json.dumps(settings)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"TRL's side ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl", default=os.environ.get("POLOPT_PEER_TRL"), help="TRL's interpreter; without one only our side is timed")
    options = parser.parse_args()
    start_again()  # with memory in huge pages, as the command line does; whatever is started from here has them, too
    task, rate = posed(), product_rate()
    print(f"{machine(rate)}, {parameters(task.model)} parameters")
    for prompts, completions in ((8, 8), (64, 8)):
        ratios, mine = [], []
        for _ in range(options.rounds):
            took, compiled = ours(task, prompts, completions)
            mine.append(statistics.median(took))
            line = f"{prompts:3} x {completions}: polopt {1e3 * mine[-1]:7.1f} ms, compile {compiled:.1f} s"
            if options.trl:
                found = theirs(task, options.trl, prompts, completions)
                peer = statistics.median(found["seconds"])
                ratios.append(peer / mine[-1])
                line += f", TRL {1e3 * peer:7.1f} ms, {ratios[-1]:.2f} x; {found['versions']}, {found['threads']} threads"
            print(line, flush=True)
        # of each token: 2 a parameter to write it, 2 to score it and 4 for the gradient; a prompt counts as 6 tokens
        tokens = prompts * completions * LENGTH
        share = (8 * tokens + 6 * 8 * prompts * completions) * parameters(task.model) / statistics.median(mine) / rate
        ratio = f", median ratio {statistics.median(ratios):.2f}" if ratios else ""
        print(f"{prompts:3} x {completions}: {100 * share:.0f} % of the product rate{ratio}")
    one, eight = (statistics.median(ours(task, 8, 8, seeds)[0]) for seeds in (1, 8))
    print(f"eight seeds by vmap: {eight / one:.1f} x the time of one")


if __name__ == "__main__":
    main()
