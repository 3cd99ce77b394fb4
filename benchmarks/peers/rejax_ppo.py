"""PPO of rejax on a gymnax environment, timed; run with the interpreter of rejax's own virtual environment.

    python rejax_ppo.py SETTINGS

SETTINGS is one JSON object with the keys of `SETTINGS` in benchmarks/ppo.py. Prints one line of JSON; benchmarks/README.md
tells what is measured.
"""

import importlib.metadata
import json
import sys
import time

import jax
import numpy as np
from rejax import PPO
from rejax.evaluate import evaluate


def main(settings: dict) -> dict:
    if settings["anneal"] or settings["normalise"] or settings["value_clip"] != settings["clip"]:
        raise SystemExit("rejax has no annealing and clips values as it clips ratios; set anneal and normalise to false and value_clip to clip.")
    algorithm = PPO.create(
        env=settings["env"],
        num_envs=settings["num_envs"],
        num_steps=settings["num_steps"],
        num_epochs=settings["epochs"],
        num_minibatches=settings["minibatches"],
        learning_rate=settings["learning_rate"],
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        clip_eps=settings["clip"],
        ent_coef=settings["entropy"],
        vf_coef=settings["value"],
        max_grad_norm=settings["max_grad_norm"],
        agent_kwargs={"hidden_layer_sizes": tuple(settings["hidden"]), "activation": settings["activation"]},
    )
    batch = settings["num_envs"] * settings["num_steps"]
    every = max(1, settings["evaluate_every"] // batch)
    chunks = max(1, settings["steps"] // (batch * every))

    def train(state):
        return jax.lax.fori_loop(0, every, lambda _, s: algorithm.train_iteration(s), state)

    start = time.perf_counter()
    state = jax.jit(algorithm.init_state)(jax.random.key(settings["seed"]))
    train = jax.jit(train).lower(state).compile()
    compile_seconds = time.perf_counter() - start
    episodes, limit = settings["evaluation_episodes"], algorithm.env_params.max_steps_in_episode

    @jax.jit
    def returns_of(state, key):
        return evaluate(algorithm.make_act(state), key, algorithm.env, algorithm.env_params, episodes, limit)[1]

    seconds, returns, reached = 0.0, [], None
    for i in range(chunks):
        start = time.perf_counter()
        state = jax.block_until_ready(train(state))
        seconds += time.perf_counter() - start
        returns.append(float(np.mean(returns_of(state, jax.random.key(1000 + i)))))
        if reached is None and returns[-1] >= settings["threshold"]:
            reached = ((i + 1) * every * batch, seconds)
    steps = chunks * every * batch
    return {
        "trainer": "rejax",
        "steps": steps,
        "steps_per_second": steps / seconds,
        "compile_seconds": compile_seconds,
        "final_return": returns[-1],
        "steps_to_threshold": reached and reached[0],
        "seconds_to_threshold": reached and reached[1],
        "returns": returns,
        "versions": {name: importlib.metadata.version(name) for name in ("rejax", "gymnax", "jax")},
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
