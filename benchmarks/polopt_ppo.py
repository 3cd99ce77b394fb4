"""PPO of polopt, timed in the same way as the peers are.

    python polopt_ppo.py SETTINGS

SETTINGS is one JSON object with the keys of `SETTINGS` in benchmarks/ppo.py. Prints one line of JSON; benchmarks/README.md
tells what is measured.
"""

import importlib.metadata
import json
import sys
import time

import jax
import numpy as np

import polopt
from polopt.core.parts import replace
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.run.evaluate import episode_returns


def compose(settings: dict, task: ControlTask):
    changes = {
        "network.hidden": tuple(settings["hidden"]),
        "network.activation": settings["activation"],
        "critic_network.hidden": tuple(settings["hidden"]),
        "critic_network.activation": settings["activation"],
        "num_envs": settings["num_envs"],
        "num_steps": settings["num_steps"],
        "epochs": settings["epochs"],
        "minibatches": settings["minibatches"],
        "learning_rate": settings["learning_rate"],
        "anneal": settings["anneal"],
        "discount": settings["gamma"],
        "lam": settings["gae_lambda"],
        "clip": settings["clip"],
        "value_clip": settings["value_clip"],
        "entropy_coefficient": settings["entropy"],
        "value_coefficient": settings["value"],
        "max_grad_norm": settings["max_grad_norm"],
        "normalise_observations": settings["normalise"],
        "normalise_rewards": settings["normalise"],
    }
    return replace(registry.load("ppo")(task), changes)


def main(settings: dict) -> dict:
    env, apart = make(settings["env"]), make(settings["env"])  # simulators of its own for evaluation
    batch = settings["num_envs"] * settings["num_steps"]
    every = max(1, settings["evaluate_every"] // batch)
    chunks = max(1, settings["steps"] // (batch * every))
    task = ControlTask(env, chunks * every * batch)
    method = compose(settings, task)
    seeds = settings["seeds"]
    keys = jax.random.split(jax.random.key(settings["seed"]), seeds)

    def over_seeds(function, *arguments):
        """`function` for every seed at once; for one seed without an axis, which environments on the host need."""
        if seeds > 1:
            return jax.vmap(function)(*arguments)
        return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], arguments)))

    def train(state):
        return over_seeds(lambda one: jax.lax.fori_loop(0, every, lambda _, s: method.step(task, s)[0], one), state)

    start = time.perf_counter()
    state = jax.jit(lambda keys: over_seeds(lambda key: method.init(task, key), keys))(keys)
    train = jax.jit(train).lower(state).compile()
    compile_seconds = time.perf_counter() - start

    @jax.jit
    def returns_of(state, keys):
        episodes = settings["evaluation_episodes"]
        return over_seeds(lambda s, key: episode_returns(method.policy(s), apart, key, episodes=episodes, stochastic=True)[0], state, keys)

    seconds, returns, reached = 0.0, [], None
    for i in range(chunks):
        start = time.perf_counter()
        state = jax.block_until_ready(train(state))
        seconds += time.perf_counter() - start
        returns.append(float(np.mean(returns_of(state, jax.random.split(jax.random.key(1000 + i), seeds)))))
        if reached is None and returns[-1] >= settings["threshold"]:
            reached = ((i + 1) * every * batch, seconds)
    steps = chunks * every * batch * seeds
    return {
        "trainer": "polopt",
        "steps": steps,
        "steps_per_second": steps / seconds,
        "compile_seconds": compile_seconds,
        "final_return": returns[-1],
        "steps_to_threshold": reached and reached[0],
        "seconds_to_threshold": reached and reached[1],
        "returns": returns,
        "versions": {"polopt": polopt.__version__} | {name: importlib.metadata.version(name) for name in ("gymnax", "gymnasium", "jax")},
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
