"""`fit`, `load` and `Run`: a run is a folder, and everything printed can be found in it again."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pickle
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import parts
from polopt.data.behaviour import behaviour_column, checked
from polopt.data.dataset import DataTask
from polopt.envs.host import clear_errors
from polopt.envs.make import make
from polopt.envs.task import ControlTask
from polopt.methods import registry
from polopt.policies import saved
from polopt.run import records
from polopt.run.agent import Agent
from polopt.run.data import load_data
from polopt.run.loggers import make_logger
from polopt.run.posing import DEFAULTS, Posed, RunError, compose, counted, dataset_of, environment_of, fits, pose, spaces_of
from polopt.run.progress import Progress
from polopt.run.statistics import bootstrap_interval, interquartile_mean
from polopt.run.training import Plan, Seeds, Training, TrainingFailed, earned

FORMAT = 1
KEYS = ("format", "method", "fields", "env", "named_env", "steps", "seeds", "evaluation", "versions", "log")  # of run.json
LIBRARIES = ("polopt", "jax", "jaxlib", "equinox", "optax", "orbax-checkpoint", "gymnax", "gymnasium", "numpy", "mujoco", "envpool")


def fit(
    method,
    env=None,
    *,
    data=None,
    evaluate_on=None,
    model=None,
    task=None,
    verifier: str | None = None,
    warm_start: int | None = None,
    devices: str | None = None,
    steps: int | None = None,
    seeds: int | list[int] = 1,
    out: str | os.PathLike | None = None,
    evaluations: int = 20,
    episodes: int | None = None,
    final_episodes: int | None = None,
    log: str | None = None,
    quiet: bool = False,
    command: str | None = None,
    **changes,
) -> "Run":
    """Train a method on an environment, or from a dataset, and return the finished (or stopped) run.

    method:      a key such as "ppo" or "ppo:kl_penalty", or a composed method such as `OnPolicy(...)`.
    env:         a name such as "CartPole-v1" or "gym:HalfCheetah-v5", an environment, or a class or function that `polopt.make_env` takes.
    data:        instead of an environment a dataset, or what `polopt.load_data` takes; for methods that learn from data.
    evaluate_on: the environment (as `env`) in which policies learnt from data are evaluated; without one nothing is.
    model:       for methods of language models: "tiny", or a directory in the Hugging Face layout.
    task:        what a language model learns: a name such as "arithmetic" or "reasoning_gym:countdown", a `LanguageTask` or a `PreferenceTask`;
                 or `data`, a file of prompts, demonstrations or preferences. A name may be followed by options, "countdown:numbers=4".
    verifier:    who grades completions: "FILE.py:FUNCTION", or the folder of a run that has learnt a reward model; by default the task itself, or
                 for the questions in `data` math-verify against their answers.
    warm_start:  iterations of supervised learning on the task's demonstrations before training; by default 400 for "tiny", else 0.
    devices:     several devices for a language model, "data=4,tensor=2": the rows of a batch over four, each layer over two. By default one.
    steps:       environment steps a seed, all copies counted, or updates where data are given; rounded up to whole iterations. By default
                 500,000. Of a language method the iterations, by default 300.
    seeds:       how many seeds (0, 1, ...), or which.
    out:         the run's folder; must be empty or new. By default `runs/METHOD-ENV`, numbered.
    evaluations: how often to evaluate and save during the run; `episodes` each, `final_episodes` at the end (by default 10 and 20, of a
                 language method 64 and 256 completions of held-out prompts).
    log:         "tensorboard", "wandb", "mlflow", "trackio", or several with commas.
    changes:     hyperparameters of the method, by name; a dotted name is written with a double underscore.

    Raises RunError, ValueError or TypeError for a user's mistake before anything is trained.
    """
    numbers = _seed_numbers(seeds)
    posed = pose(method, env, data=data, evaluate_on=evaluate_on, model=model, task=task, verifier=verifier, warm_start=warm_start, steps=steps)
    if devices is not None and not posed.language:
        raise RunError(f"devices is for methods of language models, but {method} is none.")
    _mesh(devices)
    usual = DEFAULTS["language" if posed.language else "control"]
    steps = posed.task.steps
    evaluations, episodes, final_episodes = counted(
        evaluations=evaluations,
        episodes=usual["episodes"] if episodes is None else episodes,
        final_episodes=usual["final_episodes"] if final_episodes is None else final_episodes,
    )
    composed = compose(method, posed.task, {name.replace("__", "."): value for name, value in changes.items()})
    name = method if isinstance(method, str) else type(method).__name__
    directory = _fresh_directory(out, name, posed.source)
    config = {
        "format": FORMAT,
        "method": name,
        "family": registry.find(method).family if isinstance(method, str) else None,
        "fields": parts.fields(composed),
        "env": posed.name,
        "named_env": posed.named,
        "data": posed.data,
        "language": posed.language,
        "devices": devices,
        "steps": steps,
        "seeds": numbers,
        "evaluation": {"evaluations": evaluations, "episodes": episodes, "final_episodes": final_episodes},
        "log": log,
        "versions": versions(),
        "machine": machine(),
        "command": command or _python_call(name, posed.name, data, evaluate_on, posed.language, steps, numbers),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    pickled = None if isinstance(method, str) else _pickled(composed)
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    with _disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            loggers = _loggers(config, directory)
        except Exception:
            for folder in made:  # as it was before, so that the next try finds no folder in its way
                shutil.rmtree(folder) if folder == directory else folder.rmdir()
            raise
        if pickled:
            (directory / "method.pkl").write_bytes(pickled)
        if posed.made:
            from polopt.run.language import keep_model

            keep_model(posed.task, directory)
        records.write_json_atomic(directory / "run.json", config)
    return _train(_run_of(posed, directory), composed, posed.task, loggers, quiet=quiet, resume=False)


def _mesh(devices: str | None):
    """The mesh that "data=4,tensor=2" means; None for one device."""
    if devices is None:
        return None
    from polopt.policies.language.sharding import make_mesh

    pairs = dict(word.partition("=")[::2] for word in devices.split(","))
    if not set(pairs) <= {"data", "tensor"} or not all(number.isdecimal() and int(number) for number in pairs.values()):
        raise RunError(f"devices is {devices!r}, but a number for data, for tensor or for both is expected, as in data=4,tensor=2.")
    return make_mesh(**{name: int(number) for name, number in pairs.items()})


def _run_of(posed: Posed, directory: Path) -> "Run":
    """The run of a posed task, holding the objects of which a name does not tell."""
    task = posed.task
    if posed.language:
        return Run(directory, task=None if posed.named else task)
    return Run(directory, None if posed.named else task.env, task.dataset if isinstance(task, DataTask) else None)


def load(directory: str | os.PathLike, env=None, data=None, task=None) -> "Run":
    """The run in a folder. `env`, `data` and `task` are needed when the run was started with objects rather than names."""
    path = Path(directory)
    if not (path / "run.json").exists():
        raise RunError(f"{path} holds no run: there is no run.json in it. Give the folder that `polopt train` named.")
    try:
        config = records.read_json(path / "run.json")
    except ValueError as error:
        raise RunError(f"{path / 'run.json'} is damaged ({error}). Bring it back from a copy, or train again into another folder.") from error
    if not isinstance(config, dict) or config.get("format", FORMAT) != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise RunError(f"{path} was written in format {found}, but this version reads format {FORMAT}. Use the version in its run.json.")
    missing = [key for key in KEYS if key not in config]
    if missing:
        raise RunError(f"{path / 'run.json'} has no {', '.join(missing)}. Bring it back from a copy, or train again into another folder.")
    return Run(path, None if env is None else environment_of(env), None if data is None else load_data(data), task)


@saved.opened_by
def _policy_of(directory: str):
    """The best policy of a run, as NumPy arrays, for methods that build on trained policies."""
    config = Path(directory) / "run.json"
    return _opened_policy(str(Path(directory).resolve()), config.stat().st_mtime_ns if config.exists() else 0)


@functools.lru_cache(maxsize=32)
def _opened_policy(directory: str, written: int):
    with jax.ensure_compile_time_eval():  # a method may ask while it is being compiled
        return jax.tree.map(np.asarray, load(directory).policy().policy)


class Run:
    """A run on disk. `fit` and `load` make it."""

    def __init__(self, directory: Path, env=None, data=None, task=None):
        self.directory = Path(directory)
        self._env, self._data, self._task = env, data, task

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.directory / "run.json").read_text())

    @property
    def status(self) -> dict[str, Any]:
        try:
            return records.read_json(self.directory / "status.json")
        except FileNotFoundError:
            return {"state": "new", "stopped": {}}
        except ValueError:
            return {"state": "unknown", "stopped": {}}

    @property
    def seeds(self) -> list[int]:
        return self.config["seeds"]

    def _rebuild(self):
        config = self.config
        given = self._pickled()
        task = self._language_task(given) if config.get("language") else self._control_task(config)
        if given is not None:
            return given, task
        method = registry.load(config["method"])(task)
        known = parts.fields(method)
        missing = [name for name in config["fields"] if name not in known]
        if missing:
            raise RunError(
                f"The run {self.directory} has the fields {', '.join(missing)}, which {config['method']} of this version does not have. "
                f"Use polopt {config['versions'].get('polopt')}."
            )
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in config["fields"].items()}
        return parts.replace(method, values), task

    def _pickled(self):
        """The method of a run that was started with one; None where its key was given."""
        file = self.directory / "method.pkl"
        if not file.exists():
            return None
        try:
            return pickle.loads(file.read_bytes())
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise RunError(f"The method in {file} cannot be read ({reason}). Make the module that defines its parts importable.") from error

    def _control_task(self, config):
        data = config.get("data")
        evaluated = not data or data["evaluated"]
        if self._env is None and evaluated and not config["named_env"]:
            raise RunError(f"The run {self.directory} was started with an environment object; pass it again: load(directory, env=...).")
        environment = self._env if self._env is not None else make(config["env"]) if evaluated else None
        if data:
            return DataTask(self._logged(data, environment).on_device(), config["steps"], environment)
        return ControlTask(environment, config["steps"])

    def _language_task(self, method=None):
        """The task of the run, with the model that it started from. `method` is the run's, where it was started with one."""
        from polopt.run import language

        config = self.config
        if self._task is None and not config["named_env"]:
            raise RunError(f"The run {self.directory} was started with a task object; pass it again: load(directory, task=...).")
        if self._task is None:
            method = method or self._pickled() or registry.load(config["method"])(None)
            self._task = language.pose(language.remembered(config["language"]), method, config["steps"], self.directory)
            if config["language"].get("digest", "") not in ("", language.digest_of(self._task)):
                place = config["language"]["data"] or config["language"]["task"]
                raise RunError(f"{place} does not give the prompts that {self.directory} was started with. Bring the file back, or train anew.")
        return dataclasses.replace(self._task, steps=config["steps"])

    def _logged(self, data: dict[str, Any], environment):
        """The dataset that the run was started with."""
        if self._data is None and data["source"] is None:
            raise RunError(f"The run {self.directory} was started with a dataset object; pass it again: load(directory, data=...).")
        if self._data is None:
            self._data = dataset_of(data["source"], environment)
        if self._data.digest() != data["digest"]:
            raise RunError(f"The dataset {self._data.name} is not the one that {self.directory} was started with. Bring that back, or train anew.")
        return self._data

    def resume(self, quiet: bool = False) -> "Run":
        """Go on from the newest sound checkpoint to the end. A finished run is returned as it is."""
        if self.status["state"] == "finished":
            if not (self.directory / "report.html").exists():  # it was stopped just then
                self.report()
            return self
        method, task = self._rebuild()
        return _train(self, method, task, _loggers(self.config, self.directory), quiet=quiet, resume=True)

    def _restored(self):
        method, task = self._rebuild()
        evaluation = self.config["evaluation"]
        plan = Plan.of(task.steps, method.steps_per_iteration, evaluation["evaluations"], evaluation["episodes"], evaluation["final_episodes"])
        training = Training(method, task, _examination(task), self.seeds, plan, self.directory, progress=Progress(1, len(self.seeds), "", quiet=True))
        notes = training.restore()
        for note in notes:
            print(note, file=sys.stderr)
        return training

    def policies(self, which: str = "best"):
        """The best or the last policy of every seed, as one pytree with a leading axis of seeds."""
        if which not in ("best", "last"):
            raise RunError(f"which is {which!r}, but it must be 'best' or 'last'.")
        training = self._restored()
        return training.best["policy"] if which == "best" else training.method.policy(training.state)

    def policy(self, seed: int | None = None, which: str = "best") -> Agent:
        """One seed's policy, ready to act on NumPy observations. By default the seed whose best policy scored highest."""
        training = self._restored()
        if seed is None:
            index = int(np.argmax(training.best["score"]))
        elif seed in self.seeds:
            index = self.seeds.index(seed)
        else:
            raise RunError(f"seed is {seed}, but the run {self.directory} has the seeds {', '.join(map(str, self.seeds))}.")
        if which not in ("best", "last"):
            raise RunError(f"which is {which!r}, but it must be 'best' or 'last'.")
        policies = training.best["policy"] if which == "best" else training.method.policy(training.state)
        if self.config.get("language"):
            from polopt.run.language import Writer

            return Writer(Seeds.pick(policies, index), training.task)
        return Agent(Seeds.pick(policies, index))

    def evaluate(self, episodes: int = 100, env=None, which: str = "best", stochastic: bool = False, key: int = 0) -> dict[str, Any]:
        """Evaluate every seed's policy on fresh episodes; the summary is returned and kept in the run's requested.jsonl."""
        (episodes,) = counted(episodes=episodes)
        policies = self.policies(which)
        task = self._evaluated_on(env, policies)
        seeds = Seeds(task, len(self.seeds))
        keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), 0x5EED + key) for seed in self.seeds])
        with clear_errors():
            run = seeds.compile(lambda t, p, k: earned(p, t, k, episodes=episodes, stochastic=stochastic), policies, keys)
            returns, lengths = (np.asarray(x) for x in run(policies, keys))
        status = self.status
        row = {"step": status.get("step"), "policy": which, "env": _name(task), "stochastic": stochastic, "key": key}
        result = {**summary(returns), **row}
        with _disk_errors(self.directory):
            records.append_line(self.directory / "requested.jsonl", {**result, "returns": returns.tolist(), "lengths": lengths.tolist()})
        return result

    def _evaluated_on(self, env, policies):
        """The task that policies are evaluated on: the run's own, or another environment."""
        if self.config.get("language"):
            if env is not None:
                raise RunError(f"The run {self.directory} is of a language model, which acts in no environment; leave --env out.")
            return self._language_task()
        environment = self.environment(env)
        if not fits(environment, policies):
            raise RunError(
                f"{environment.name} has {spaces_of(environment)}, but the policy was trained on {spaces_of(policies)}. "
                "Evaluate on an environment with the same spaces."
            )
        return ControlTask(environment, 1)

    def samples(self, count: int = 8, which: str = "last", key: int = 0) -> list[dict[str, Any]]:
        """Completions that a language policy draws after held-out prompts, `count` a seed: seed, prompt, completion, reward."""
        from polopt.run.language import samples

        if not self.config.get("language"):
            raise RunError(f"The run {self.directory} is of a policy that acts, not of a language model; film an episode with --video FILE.")
        policies, task = self.policies(which), self._language_task()
        return [
            {"seed": seed, **row}
            for i, seed in enumerate(self.seeds)
            for row in samples(Seeds.pick(policies, i), task, jax.random.fold_in(jax.random.key(seed), 0x5A3 + key), count)
        ]

    def evaluate_offline(
        self, data, which: str = "best", stochastic: bool = False, discount: float | None = None, behaviour=None, key: int = 0
    ) -> dict[str, Any]:
        """What logged data say of every seed's policy; returned, and kept in the run's offline_evaluations.jsonl.

        data:      a dataset, or what `polopt.load_data` takes.
        discount:  by default the method's own; 1 for the undiscounted return of episodes as they are in the data.
        behaviour: (n,) the probabilities of the logged actions, or the name of their column in the file; without either a column of a usual
                   name is taken, and else they are estimated by behavioural cloning.
        """
        from polopt.evaluation import offline

        if self.config.get("language"):
            raise RunError(f"The run {self.directory} is of a language model, but logged actions judge policies that act; leave --offline out.")
        policies = self.policies(which)
        dataset = load_data(data, policies) if isinstance(data, (str, os.PathLike)) else load_data(data)
        if not fits(policies, dataset):
            raise RunError(
                f"The dataset {dataset.name} has {spaces_of(dataset)}, but the policy was trained on {spaces_of(policies)}. "
                "Give data of its environment."
            )
        if isinstance(behaviour, str) or (behaviour is None and isinstance(data, (str, os.PathLike))):
            behaviour = behaviour_column(data, dataset, behaviour) if isinstance(data, (str, os.PathLike)) else _no_file(behaviour)
        elif behaviour is not None:
            behaviour = checked(behaviour, dataset)
        log = offline.prepared(dataset, behaviour, stochastic=stochastic, key=key)
        gamma = self._discount() if discount is None else discount
        found = [offline.evaluate(log, Seeds.pick(policies, i), gamma, stochastic=stochastic, key=key) for i in range(len(self.seeds))]
        result = {"data": dataset.name, "policy": which, "stochastic": stochastic, "seeds": dict(zip(map(str, self.seeds), found))}
        with _disk_errors(self.directory):
            records.append_line(self.directory / "offline_evaluations.jsonl", {"step": self.status.get("step"), "key": key, **result})
        return result

    def _discount(self) -> float:
        """The discount of the run's method."""
        config = self.config
        found = [value for name, value in config["fields"].items() if name.rpartition(".")[2] == "discount"]
        if not found:
            raise RunError(f"The method {config['method']} has no discount, so that no value is its own; give one, for example --discount 0.99.")
        return float(found[0])

    def environment(self, env=None):
        """The environment to evaluate on: the given one, or the run's own."""
        if env is not None:
            return environment_of(env)
        if self._env is not None:
            return self._env
        config = self.config
        if config.get("data") and not config["data"]["evaluated"]:
            raise RunError(f"The run {self.directory} has no environment, for it learnt from data; name one that fits them with --env.")
        return make(config["env"])

    @property
    def steps_per_iteration(self) -> int:
        return self._rebuild()[0].steps_per_iteration

    def report(self, path: str | os.PathLike | None = None) -> Path:
        """Write the HTML report (by default `report.html` in the run's folder) and the learning curve beside it."""
        from polopt.run.report import html_report, learning_curve

        path = Path(path) if path else self.directory / "report.html"
        record = records.read_record(self.directory)
        learning_curve([record], path.with_name("curve.png"))
        html_report([record], path)
        return path

    def export(self, path: str | os.PathLike, format: str = "onnx", seed: int | None = None, which: str = "best"):
        """Write one seed's whole policy as onnx, stablehlo or safetensors, after a numeric check against the original."""
        from polopt.interop.export import export

        if self.config.get("language"):
            raise RunError(f"The run {self.directory} is of a language model, which is written as a directory; take save_model(path).")
        result = export(self.policy(seed, which).policy, path, format)
        row = {"step": self.status.get("step"), "policy": which, "seed": "best" if seed is None else seed, "to": str(result.path), "format": format}
        tensors = {"inputs": [t._asdict() for t in result.inputs], "outputs": [t._asdict() for t in result.outputs]}
        with _disk_errors(self.directory):
            records.append_line(self.directory / "exports.jsonl", {**row, "largest_difference": result.largest_difference, **tensors})
        return result


    def save_model(self, path: str | os.PathLike, format: str | None = None, seed: int | None = None, which: str = "best") -> Path:
        """Write one seed's language model and its tokenizer as a directory in the Hugging Face layout, which transformers loads."""
        from polopt.run.language import save_model

        if not self.config.get("language"):
            raise RunError(f"The run {self.directory} is of a policy that acts, not of a language model; take export(path).")
        if format not in (None, "huggingface"):
            raise RunError(f"The format is {format!r}, but a language model is written as huggingface.")
        writer = self.policy(seed, which)
        with _disk_errors(self.directory):
            save_model(writer.policy, writer.task.tokenizer, path)
            row = {"step": self.status.get("step"), "policy": which, "seed": "best" if seed is None else seed, "to": str(path)}
            records.append_line(self.directory / "exports.jsonl", {**row, "format": "huggingface"})
        return Path(path)


def _no_file(column: str):
    raise RunError(f"behaviour is the name {column!r}, but the data are no file that could have such a column; give the probabilities themselves.")


def summary(returns: np.ndarray) -> dict[str, Any]:
    """Statistics of returns (seeds, episodes): per-seed means; the finite ones' mean, and interquartile mean with a 95 % bootstrap interval."""
    means = returns.mean(axis=1)
    finite = means[np.isfinite(means)]
    if not finite.size:
        raise RunError("No seed has a finite return: the environment gives rewards that are not numbers.")
    low, high = bootstrap_interval(finite)
    return {"per_seed": means.tolist(), "mean": float(finite.mean()), "iqm": float(interquartile_mean(finite)), "interval": [float(low), float(high)]}


def _keep_compiled_programs() -> None:
    """Compiled programs are kept on disk, so that the same training starts again at once. JAX's own setting takes precedence."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polopt" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _seed_numbers(seeds) -> list[int]:
    """The seeds that are meant by a number of them or a list."""
    whole = (int, np.integer)
    numbers = seeds if isinstance(seeds, (list, tuple, range, np.ndarray)) else range(seeds) if isinstance(seeds, whole) else ()
    numbers = [int(n) if isinstance(n, whole) and not isinstance(n, bool) else -1 for n in numbers]
    if isinstance(seeds, bool) or not numbers or len(set(numbers)) != len(numbers) or min(numbers) < 0 or max(numbers) >= 2**31:
        raise RunError(f"seeds is {seeds!r}, but it must be a number of at least 1 or a list of different whole numbers from 0 on. Try seeds=5.")
    return numbers


def _pickled(method) -> bytes:
    try:
        return pickle.dumps(method)
    except Exception as error:
        raise RunError(
            f"The method {type(method).__name__} cannot be saved ({error}), so that no run of it could be resumed. "
            "Define its parts at the top of a module, not inside a function."
        ) from error


def _loggers(config, directory: Path) -> list:
    return [make_logger(config["log"], config, directory)] if config["log"] else []


def _train(run: Run, method, task, loggers: list, *, quiet: bool, resume: bool) -> Run:
    _keep_compiled_programs()
    config = run.config
    evaluation = config["evaluation"]
    plan = Plan.of(task.steps, method.steps_per_iteration, evaluation["evaluations"], evaluation["episodes"], evaluation["final_episodes"])
    examination = _examination(task)
    if isinstance(task, ControlTask) and task.env.host and config["named_env"]:  # simulators of their own
        examination = dataclasses.replace(task, env=make(config["env"]))
    mesh = _mesh(config.get("devices"))
    title = records.title(config)
    total = plan.iterations * method.steps_per_iteration
    training = None
    try:
        with Progress(total, len(config["seeds"]), title, quiet=quiet) as progress, clear_errors(), _disk_errors(run.directory):
            training = Training(method, task, examination, config["seeds"], plan, run.directory, progress=progress, loggers=loggers, mesh=mesh)
            with training.signals():
                for note in _version_notes(config["versions"]) if resume else []:
                    training.note(note)
                if resume and training.checkpoints.iterations():
                    for note in training.restore():
                        training.note(note)
                else:
                    if resume:
                        training.note("There is no checkpoint yet: the run starts from its beginning.")
                    training.start()
                outcome = training.run()
                if outcome == "finished":
                    training.final_evaluation()
                    _write_summary(run)
                    _write_samples(run)
                    training.ended("finished")
                    run.report()
    except Exception as error:
        told = _out_of_memory(error, training, method, run) or error
        if training:
            with contextlib.suppress(OSError):  # a full disk may be what went wrong
                training.ended("failed", " ".join(str(told).split()))
        if told is error:
            raise
        raise told from error
    except KeyboardInterrupt:
        if training:
            training.ended("interrupted")
        raise KeyboardInterrupt(f"Stopped at once; the last checkpoint is whole. Go on with: polopt resume {run.directory}") from None
    finally:
        for logger in loggers:
            logger.close()
    return run


SIZES = ("prompts", "completions", "groups", "responses", "micro_batch", "num_envs", "num_steps", "batch_size", "capacity")  # that memory grows with


def _out_of_memory(error: Exception, training: Training | None, method, run: Run) -> RunError | None:
    """What to lower where an error says that memory ran out; None where it says something else."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in str(error):
        return None
    config = run.config
    sizes = [f"{name} ({'all' if value is None else value})" for name, value in parts.fields(method).items() if name.rpartition(".")[2] in SIZES]
    sizes += [f"the number of seeds ({len(config['seeds'])})"] if len(config["seeds"]) > 1 else []
    sizes += ["the task's length"] if config.get("language") else []
    asked = re.search(r"allocating (\d+) bytes", str(error))
    needs = [f"a single array of {int(asked[1]) / 2**30:.1f} GiB did not fit"] if asked else []
    needs += [f"an iteration takes about {training.bytes / 2**30:.1f} GiB beside the state"] if training and training.bytes else []
    return RunError(f"Memory ran out: {', and '.join(needs) or 'an allocation failed'}. Lower one of {', '.join(sizes)}, and train anew.")


def _write_summary(run: Run) -> None:
    record = records.read_record(run.directory)
    final = {e.policy: summary(np.stack(e.returns)) for e in record.evaluations if e.final}
    records.write_json_atomic(run.directory / "evaluation.json", final)


def _write_samples(run: Run, a_seed: int = 8) -> None:
    """What a language policy writes at the end, for the report."""
    if run.config.get("language"):
        with contextlib.suppress(FileNotFoundError):
            (run.directory / "samples.jsonl").unlink()
        for row in run.samples(a_seed):
            records.append_line(run.directory / "samples.jsonl", {"step": run.config["steps"], **row})


def _examination(task):
    """The task that policies are evaluated on during training; None for data without an environment."""
    if not isinstance(task, DataTask):
        return task
    return None if task.env is None else ControlTask(task.env, task.steps)


def _name(task) -> str:
    return task.env.name if isinstance(task, ControlTask) else task.name


def _version_notes(before: dict[str, str]) -> list[str]:
    now = versions()
    changed = [f"{name} {before[name]} -> {now.get(name, 'absent')}" for name in before if now.get(name) != before[name]]
    if not changed:
        return []
    return [f"The run was started with other versions ({', '.join(changed)}): it goes on, but not bit for bit. Install the old ones for that."]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": str(jax.devices()[0]),
    }


def _fresh_directory(out, method: str, env: str) -> Path:
    if out is not None:
        path = Path(out)
        if (path / "run.json").exists():
            raise RunError(f"{path} holds a run already. Go on with it by `polopt resume {path}`, or give another folder with --out.")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"{path} is not an empty folder. Give another one with --out.")
        return path
    base = f"{method}-{env}".replace("/", "-").replace(":", "-")
    number = 1
    while (path := Path("runs") / f"{base}-{number}").exists():
        number += 1
    return path


def _python_call(method: str, env: str, data, evaluate_on, language, steps: int, seeds: list[int]) -> str:
    count = len(seeds) if seeds == list(range(len(seeds))) else seeds
    if language:
        given = [f"{name}={language[name]!r}" for name in ("model", "task", "data", "verifier", "warm_start") if language.get(name) is not None]
        return f"polopt.fit({', '.join([repr(method), *(given or ['task=...']), f'steps={steps}', f'seeds={count}'])})"
    if data is None:
        return f"polopt.fit({method!r}, {env!r}, steps={steps}, seeds={count})"
    source = repr(os.fspath(data)) if isinstance(data, (str, os.PathLike)) else "data"
    evaluated = "" if evaluate_on is None else f", evaluate_on={env!r}"
    return f"polopt.fit({method!r}, data={source}{evaluated}, steps={steps}, seeds={count})"


class _disk_errors:
    """Turns a full disk or a folder that cannot be written into one sentence."""

    def __init__(self, directory: Path):
        self._directory = directory

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError):
            found = (self._directory / "run.json").exists()
            go_on = f"What was saved before is whole: go on with `polopt resume {self._directory}` once it can be written."
            advice = go_on if found else "Give another --out."
            raise RunError(f"Cannot write to {self._directory}: {error.strerror or error}. {advice}") from error


__all__ = ["Run", "RunError", "TrainingFailed", "fit", "load", "compose", "summary"]
