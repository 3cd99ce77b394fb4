"""Updates per second of off-policy and offline methods against their peers, in turn.

    python benchmarks/updates.py [--rounds 3] [--only sac td3] [--sb3 PYTHON] [--d3rlpy PYTHON]

HalfCheetah's sizes (17 observations, 6 actions), batches of 256 out of 100,000 random transitions, two layers of 256 units, each library's own
defaults of the method otherwise. Nobody acts. Prints updates a second (median over rounds), the ratio within each round, seconds to compile,
the share of the machine's matrix-product rate, four seeds by vmap against one, versions, cores and load. The peers' interpreters are named by
options or by POLOPT_PEER_SB3 (which has SBX beside it) and POLOPT_PEER_D3RLPY; a peer without one is left out.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from machine import machine, product_rate

from polopt.core import parts, spaces
from polopt.data.dataset import Dataset, DataTask
from polopt.loops.offline import Offline
from polopt.methods import registry
from polopt.run.huge_pages import start_again

PEERS = Path(__file__).parent / "peers"
SIZES = {"rows": 100_000, "observations": 17, "actions": 6, "batch": 256, "hidden": 256, "updates": 1000, "warm": 100}
RIVALS = {"sac": ("sb3", "sbx"), "td3": ("sb3", "sbx"), "iql": ("d3rlpy",), "td3_bc": ("d3rlpy",)}
SCRIPTS = {"sb3": "sb3_updates.py", "sbx": "sb3_updates.py", "d3rlpy": "d3rlpy_updates.py"}


def transitions() -> Dataset:
    rng, n = np.random.default_rng(0), SIZES["rows"]
    seen = rng.normal(size=(n + 1, SIZES["observations"])).astype(np.float32)
    action = rng.uniform(-1, 1, size=(n, SIZES["actions"])).astype(np.float32)
    reward = rng.normal(size=n).astype(np.float32)
    cut = np.arange(1, n + 1) % 1000 == 0
    box = spaces.Box(-np.inf, np.inf, (SIZES["observations"],)), spaces.Box(-1.0, 1.0, (SIZES["actions"],))
    return Dataset(seen[:-1], action, reward, seen[1:], np.zeros(n, bool), cut, *box).on_device()


def posed(key: str):
    """The method's rule on logged transitions, whatever loop it has otherwise; and its task."""
    task = DataTask(transitions(), 10**9, None)
    method = registry.load(key)(task if registry.load(key)(None).takes is DataTask else None)
    if not isinstance(method, Offline):
        method = Offline(method.rule)
    hidden = (SIZES["hidden"],) * 2
    widths = {name: hidden for name in parts.fields(method) if name.endswith(".hidden")}
    return parts.replace(method, {**widths, "updates": SIZES["updates"], "batch_size": SIZES["batch"]}), task


def ours(key: str, seeds: int = 1) -> dict:
    method, task = posed(key)
    state = jax.lax.map(lambda k: method.init(task, k), jax.vmap(jax.random.key)(jnp.arange(seeds)))
    state = state if seeds > 1 else jax.tree.map(lambda x: x[0], state)

    def many(method, state):
        return jax.vmap(lambda s: method.step(task, s)[0])(state) if seeds > 1 else method.step(task, state)[0]

    start = time.perf_counter()
    program = jax.jit(many).lower(method, state).compile()
    compiled = time.perf_counter() - start
    state = jax.block_until_ready(program(method, state))
    start = time.perf_counter()
    jax.block_until_ready(program(method, state))
    return {"rate": seeds * SIZES["updates"] / (time.perf_counter() - start), "compile": compiled}


def operations(key: str) -> float:
    """FLOP of one update, by the compiler's count."""
    method, task = posed(key)
    method = dataclasses.replace(method, updates=1)
    state = method.init(task, jax.random.key(0))
    drawn = method.minibatches(task.dataset, state.normaliser)(jax.random.key(0))
    update = jax.jit(lambda learner, batch, key: method.rule.update(learner, batch, 0.0, key))
    return update.lower(state.learner, drawn, jax.random.key(1)).compile().cost_analysis()["flops"]


def theirs(peer: str, interpreter: str, key: str) -> dict:
    settings = json.dumps({**SIZES, "library": peer, "method": key})
    done = subprocess.run([interpreter, str(PEERS / SCRIPTS[peer]), settings], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{peer} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--sb3", default=os.environ.get("POLOPT_PEER_SB3"))
    parser.add_argument("--d3rlpy", default=os.environ.get("POLOPT_PEER_D3RLPY"))
    options = parser.parse_args()
    start_again()  # with memory in huge pages, as the command line does; the peers have them, too
    interpreters = {"sb3": options.sb3, "sbx": options.sb3, "d3rlpy": options.d3rlpy}
    product = product_rate()
    print(machine(product))
    for key in options.only:
        peers = [peer for peer in RIVALS[key] if interpreters[peer]]
        mine, found = [], {peer: [] for peer in peers}
        for _ in range(options.rounds):
            mine.append(ours(key))
            for peer in peers:
                found[peer].append(theirs(peer, interpreters[peer], key))
        rate = statistics.median(r["rate"] for r in mine)
        together = statistics.median(ours(key, seeds=4)["rate"] for _ in range(options.rounds))
        share = rate * operations(key) / product
        print(
            f"{key:8} {rate:7.0f} updates/s, compile {statistics.median(r['compile'] for r in mine):.1f} s, {100 * share:.0f} % of the product rate; "
            f"four seeds by vmap {together / rate:.2f} x one in total",
            flush=True,
        )
        for runs in found.values():
            ratio = statistics.median(a["rate"] / b["rate"] for a, b in zip(mine, runs))
            last, rate = runs[-1], statistics.median(r["rate"] for r in runs)
            print(f"  {ratio:5.2f} x {last['versions']} ({rate:.0f} updates/s, {last['threads']} threads)", flush=True)


if __name__ == "__main__":
    main()
