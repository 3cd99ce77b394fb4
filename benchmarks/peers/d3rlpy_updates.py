"""IQL or TD3+BC of d3rlpy on random transitions, timed; run with the interpreter of its own virtual environment.

    python d3rlpy_updates.py SETTINGS

SETTINGS is one JSON object with the keys of `SIZES` in benchmarks/updates.py and `method`. Prints one line of JSON.
"""

import importlib.metadata
import json
import sys
import time

import d3rlpy
import numpy as np
import torch


def main(settings):
    rng, n = np.random.default_rng(0), settings["rows"]
    data = d3rlpy.dataset.MDPDataset(
        observations=rng.normal(size=(n, settings["observations"])).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(n, settings["actions"])).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        terminals=np.zeros(n, np.float32),
        timeouts=(np.arange(1, n + 1) % 1000 == 0).astype(np.float32),
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
    )
    config = {"iql": d3rlpy.algos.IQLConfig, "td3_bc": d3rlpy.algos.TD3PlusBCConfig}[settings["method"]]
    algorithm = config(batch_size=settings["batch"]).create(device="cpu:0")  # its networks have two layers of 256 by default
    algorithm.build_with_dataset(data)

    def train(count):
        for _ in range(count):
            algorithm.update(data.sample_transition_batch(settings["batch"]))

    train(settings["warm"])
    start = time.perf_counter()
    train(settings["updates"])
    seconds = time.perf_counter() - start
    versions = f"d3rlpy {importlib.metadata.version('d3rlpy')}"
    print(json.dumps({"rate": settings["updates"] / seconds, "threads": torch.get_num_threads(), "versions": versions}))


main(json.loads(sys.argv[1]))
