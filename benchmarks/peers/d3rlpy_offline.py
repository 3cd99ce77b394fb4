"""BC, TD3+BC, IQL or CQL of d3rlpy on one of the project's datasets; run with the interpreter of its own virtual environment.

    python d3rlpy_offline.py SETTINGS

SETTINGS is one JSON object: `SIZES` of benchmarks/offline.py, `method`, `data` (an .npz), `env` and `seeds`. Prints one line of JSON with the mean
return of each seed's last policy.
"""

import importlib.metadata
import json
import sys

import d3rlpy
import gymnasium
import numpy as np


def configured(settings, low, high):
    sizes, rate = d3rlpy.models.VectorEncoderFactory([settings["hidden"]] * 2), settings["learning_rate"]
    common = {
        "batch_size": settings["batch"],
        "action_scaler": d3rlpy.preprocessing.MinMaxActionScaler(minimum=low, maximum=high),
        "reward_scaler": d3rlpy.preprocessing.MultiplyRewardScaler(settings["reward_scale"]),
    }
    if settings["method"] == "bc":
        return d3rlpy.algos.BCConfig(**common, learning_rate=rate, encoder_factory=sizes)
    common |= {"actor_learning_rate": rate, "critic_learning_rate": rate, "actor_encoder_factory": sizes, "critic_encoder_factory": sizes}
    if settings["method"] == "td3_bc":
        return d3rlpy.algos.TD3PlusBCConfig(**common, observation_scaler=d3rlpy.preprocessing.StandardObservationScaler())
    if settings["method"] == "iql":
        return d3rlpy.algos.IQLConfig(**common, value_encoder_factory=sizes)
    return d3rlpy.algos.CQLConfig(**common, alpha_learning_rate=0.0)  # the weight stays at conservative_weight, 5


def mean_return(algorithm, env, episodes, seed):
    total = 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=1_000_000 + 1000 * seed + episode)
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(algorithm.predict(observation[None])[0])
            total, over = total + reward, terminated or truncated
    return float(total / episodes)


def main(settings):
    env = gymnasium.make(settings["env"])
    file = np.load(settings["data"])
    data = d3rlpy.dataset.MDPDataset(
        observations=file["observation"],
        actions=file["action"],
        rewards=file["reward"],
        terminals=file["terminated"].astype(np.float32),
        timeouts=(file["truncated"] & ~file["terminated"]).astype(np.float32),
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
    )
    returns = []
    for seed in settings["seeds"]:
        d3rlpy.seed(seed)
        algorithm = configured(settings, env.action_space.low, env.action_space.high).create(device="cpu:0")
        adapter = d3rlpy.logging.NoopAdapterFactory()
        algorithm.fit(data, n_steps=settings["updates"], n_steps_per_epoch=settings["updates"], logger_adapter=adapter, show_progress=False)
        returns.append(mean_return(algorithm, env, settings["episodes"], seed))
    print(json.dumps({"returns": returns, "versions": f"d3rlpy {importlib.metadata.version('d3rlpy')}"}))


main(json.loads(sys.argv[1]))
