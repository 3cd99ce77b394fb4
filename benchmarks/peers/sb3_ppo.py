"""PPO of Stable-Baselines3 on a Gymnasium environment, timed; run with the interpreter of its own virtual environment.

    python sb3_ppo.py SETTINGS

SETTINGS is one JSON object with the keys of `SETTINGS` in benchmarks/ppo.py. Prints one line of JSON; benchmarks/README.md
tells what is measured.
"""

import importlib.metadata
import json
import sys
import time

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}
VECTORS = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}


class Evaluate(BaseCallback):
    """Evaluates after every `every` rollouts, with the clock stopped."""

    def __init__(self, environments, every: int, settings: dict):
        super().__init__()
        self.environments, self.every, self.settings = environments, every, settings
        self.rollouts, self.paused, self.returns, self.reached = 0, 0.0, [], None

    def _on_training_start(self):
        self.start = time.perf_counter()

    def _on_rollout_start(self):
        # a rollout starts when the update of the one before is done
        if self.rollouts and self.rollouts % self.every == 0:
            self._evaluate()

    def _on_rollout_end(self):
        self.rollouts += 1

    def _on_training_end(self):
        self.finished = self.seconds()
        self._evaluate()

    def _on_step(self) -> bool:
        return True

    def seconds(self) -> float:
        return time.perf_counter() - self.start - self.paused

    def _evaluate(self):
        seconds, stopped = self.seconds(), time.perf_counter()
        if isinstance(self.environments, VecNormalize):
            self.environments.obs_rms = self.training_env.obs_rms
        mean, _ = evaluate_policy(self.model, self.environments, self.settings["evaluation_episodes"], deterministic=False, warn=False)
        self.returns.append(float(mean))
        if self.reached is None and mean >= self.settings["threshold"]:
            self.reached = (self.num_timesteps, seconds)
        self.paused += time.perf_counter() - stopped


def environments(settings: dict, seed: int, training: bool):
    vector = make_vec_env(settings["env"].removeprefix("gym:"), settings["num_envs"], seed=seed, vec_env_cls=VECTORS[settings["vector"]])
    if not settings["normalise"]:
        return vector
    return VecNormalize(vector, training=training, norm_reward=training, gamma=settings["gamma"])


def main(settings: dict) -> dict:
    torch.set_num_threads(settings["threads"])
    batch = settings["num_envs"] * settings["num_steps"]
    every = max(1, settings["evaluate_every"] // batch)
    steps = max(1, settings["steps"] // (batch * every)) * every * batch
    model = PPO(
        "MlpPolicy",
        environments(settings, settings["seed"], training=True),
        n_steps=settings["num_steps"],
        batch_size=batch // settings["minibatches"],
        n_epochs=settings["epochs"],
        learning_rate=(lambda left: left * settings["learning_rate"]) if settings["anneal"] else settings["learning_rate"],
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        clip_range=settings["clip"],
        clip_range_vf=settings["value_clip"],
        ent_coef=settings["entropy"],
        vf_coef=settings["value"],
        max_grad_norm=settings["max_grad_norm"],
        policy_kwargs={"net_arch": list(settings["hidden"]), "activation_fn": ACTIVATIONS[settings["activation"]]},
        seed=settings["seed"],
        device="cpu",
    )
    evaluate = Evaluate(environments(settings, 10_000 + settings["seed"], training=False), every, settings)
    model.learn(steps, callback=evaluate)
    reached = evaluate.reached
    return {
        "trainer": "stable-baselines3",
        "steps": steps,
        "steps_per_second": steps / evaluate.finished,
        "compile_seconds": 0.0,
        "final_return": evaluate.returns[-1],
        "steps_to_threshold": reached and reached[0],
        "seconds_to_threshold": reached and reached[1],
        "returns": evaluate.returns,
        "versions": {name: importlib.metadata.version(name) for name in ("stable-baselines3", "gymnasium", "torch")},
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
