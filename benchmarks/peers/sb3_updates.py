"""SAC or TD3 of Stable-Baselines3, or of SBX, on random transitions, timed; run with the interpreter of its own virtual environment.

    python sb3_updates.py SETTINGS

SETTINGS is one JSON object with the keys of `SIZES` in benchmarks/updates.py, `library` (sb3 or sbx) and `method`. Prints one line of JSON.
"""

import importlib.metadata
import json
import sys
import time

import gymnasium
import numpy as np
import torch


class Still(gymnasium.Env):
    """An environment of the right sizes that nobody acts in."""

    def __init__(self, observations: int, actions: int):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observations,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (actions,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action):
        return np.zeros(self.observation_space.shape, np.float32), 0.0, False, False, {}


def main(settings):
    if settings["library"] == "sbx":
        import jax
        import sbx as library

        name, ready = "sbx-rl", lambda model: jax.block_until_ready(model.policy.qf_state.params)
    else:
        import stable_baselines3 as library

        name, ready = "stable-baselines3", lambda model: None
    width = [settings["hidden"]] * 2
    make = {"sac": library.SAC, "td3": library.TD3}[settings["method"]]
    env = Still(settings["observations"], settings["actions"])
    # the collection before the first update is all random; a step of it gives the model its logger and buffer
    sizes = {"batch_size": settings["batch"], "buffer_size": settings["rows"], "policy_kwargs": {"net_arch": width}}
    model = make("MlpPolicy", env, **sizes, learning_starts=10**9, device="cpu")
    model.learn(2)
    rng = np.random.default_rng(0)
    buffer = model.replay_buffer
    buffer.observations[:] = rng.normal(size=buffer.observations.shape)
    buffer.next_observations[:] = rng.normal(size=buffer.next_observations.shape)
    buffer.actions[:] = rng.uniform(-1, 1, size=buffer.actions.shape)
    buffer.rewards[:] = rng.normal(size=buffer.rewards.shape)
    buffer.pos, buffer.full = 0, True

    def train(count):
        if settings["library"] == "sbx":  # its updates of one call are one compiled loop
            model.train(batch_size=settings["batch"], gradient_steps=count)
        else:
            model.train(gradient_steps=count, batch_size=settings["batch"])
        ready(model)

    count = settings["updates"]
    start = time.perf_counter()
    train(count if settings["library"] == "sbx" else settings["warm"])
    warm = time.perf_counter() - start
    start = time.perf_counter()
    train(count)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {"rate": count / seconds, "warm": warm, "threads": torch.get_num_threads(), "versions": f"{name} {importlib.metadata.version(name)}"}
        )
    )


main(json.loads(sys.argv[1]))
