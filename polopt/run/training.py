"""Training: compiled chunks of iterations for several seeds, with evaluation, checkpoints and a clean stop between them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.data.dataset import DataTask
from polopt.envs.errors import ActionError
from polopt.envs.host import clear_errors
from polopt.envs.task import ControlTask
from polopt.run import records
from polopt.run.checkpoint import Checkpoints
from polopt.run.evaluate import episode_returns

EPISODE = ("episode/return", "episode/length", "episode/count")
CHUNKS = 100  # a run is cut into about this many compiled calls


class TrainingFailed(RuntimeError):
    """Every seed has stopped."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a run is, and when it is evaluated and saved.

    iterations:  of the method, in all.
    every:       iterations between two evaluations; a checkpoint follows each.
    episodes:    of each periodic evaluation, a seed.
    final_episodes: of the last evaluation, a seed.
    """

    iterations: int
    every: int
    episodes: int
    final_episodes: int

    @staticmethod
    def of(steps: int, steps_per_iteration: int, evaluations: int, episodes: int, final_episodes: int) -> "Plan":
        iterations = max(1, math.ceil(steps / steps_per_iteration))
        return Plan(iterations, max(1, math.ceil(iterations / max(1, evaluations))), episodes, final_episodes)

    @property
    def chunk(self) -> int:
        return max(1, min(self.every, math.ceil(self.iterations / CHUNKS)))


def on_host(task) -> bool:
    """Whether learning from a task calls code on the host: an environment's or a verifier's. A dataset's does not, whatever it is evaluated on."""
    return not isinstance(task, DataTask) and (task.env.host if isinstance(task, ControlTask) else task.host)


def earned(policy, task, key, *, episodes: int, stochastic: bool = False):
    """Returns and lengths, each (episodes,), of a policy on a task of any kind."""
    if isinstance(task, ControlTask):
        return episode_returns(policy, task.env, key, episodes=episodes, stochastic=stochastic)
    from polopt.run.language import held_out_returns  # transformers and tokenizers, which control does not need

    return held_out_returns(policy, task, key, episodes=episodes, stochastic=stochastic)


class Seeds:
    """Runs a function of one seed's arguments for all seeds: by `vmap` in JAX, one after another on the host.

    mesh: the devices that a language model lies on, where it is not one; see `polopt.policies.language.sharding`.
    """

    def __init__(self, task, count: int, mesh=None):
        self.task, self.count, self.together, self.mesh = task, count, not on_host(task), mesh

    def task_of(self, slot: int):
        """The task with the host environment of this slot; a JAX environment has none, and a verifier on the host serves all."""
        if self.together or not hasattr(self.task, "env"):
            return self.task
        return dataclasses.replace(self.task, env=self.task.env.with_slot(slot))

    def compile(self, function: Callable, *args, shared=(), rescue: Callable | None = None):
        """`function(task, *args)` compiled for all seeds; arguments whose position is in `shared` carry no seed axis. The function that is given
        back knows how many bytes it takes beside its arguments, as `bytes`; 0 where the compiler does not say.

        rescue: `rescue(index, error, values)` gives the result of a seed whose policy gave a host simulator actions that are not
        finite; it is also asked beforehand, with the error None, and may then answer for the seed instead of letting it run.
        """
        if self.mesh is not None:
            return self._over_devices(function, shared)
        if self.together:
            axes = (None, *(None if i in shared else 0 for i in range(len(args))))
            compiled = jax.jit(jax.vmap(function, in_axes=axes)).lower(self.task, *args).compile()
            together = functools.partial(compiled, self.task)
            together.bytes = _temporary_bytes(compiled)
            return together
        one = [a if i in shared else self.pick(a, 0) for i, a in enumerate(args)]
        compiled = jax.jit(function).lower(self.task_of(0), *one).compile()

        def in_turn(*values):
            parts = []
            for seed in range(self.count):
                mine = [v if i in shared else self.pick(v, seed) for i, v in enumerate(values)]
                result = rescue(seed, None, mine) if rescue else None
                try:
                    with clear_errors():
                        parts.append(result or jax.block_until_ready(compiled(self.task_of(seed), *mine)))
                except ActionError as error:
                    if rescue is None:
                        raise
                    parts.append(rescue(seed, error, mine))
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)

        in_turn.bytes = _temporary_bytes(compiled)
        return in_turn

    def _over_devices(self, function: Callable, shared):
        """Seeds one after another, each over all devices; compiled when it is called, for where its arguments lie."""
        compiled = jax.jit(function)

        def in_turn(*values):
            with jax.set_mesh(self.mesh):
                parts = [compiled(self.task, *(v if i in shared else self.pick(v, k) for i, v in enumerate(values))) for k in range(self.count)]
                return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)

        in_turn.bytes = 0
        return in_turn

    @staticmethod
    def pick(tree, seed: int):
        return jax.tree.map(lambda x: x[seed], tree)


def _temporary_bytes(compiled) -> int:
    """What a compiled program allocates for itself, by the compiler's estimate."""
    known = compiled.memory_analysis()
    return 0 if known is None else known.temp_size_in_bytes


def run_chunk(task, method, state, count, size: int):
    """Up to `size` iterations, `count` of them run: the state and each iteration's metrics, rows from `count` on left zero."""
    step = jax.jit(lambda state: method.step(task, state))  # traced once, for its shapes and for the loop
    like = jax.eval_shape(step, state)[1]
    log = jax.tree.map(lambda m: jnp.zeros((size, *m.shape), m.dtype), like)

    def iteration(i, carry):
        state, log = carry
        state, metrics = step(state)
        return state, jax.tree.map(lambda rows, m: rows.at[i].set(m), log, metrics)

    return jax.lax.fori_loop(0, count, iteration, (state, log))


class Training:
    """A run in memory: its state for every seed, and what has been written of it."""

    def __init__(self, method, task, examination, seeds: list[int], plan: Plan, directory: Path, *, progress, loggers=(), mesh=None):
        """examination: the task that policies are evaluated on, None where there is none. mesh: as of `Seeds`."""
        if mesh is not None:
            task = _over(mesh, task)
            examination = None if examination is None else _over(mesh, examination)
        self.method, self.task, self.examination = method, task, examination
        self.seed_numbers, self.plan, self.directory = seeds, plan, Path(directory)
        self.seeds = Seeds(task, len(seeds), mesh)
        self.evaluation_seeds = None if examination is None else Seeds(examination, len(seeds), mesh)
        self.progress, self.loggers = progress, loggers
        self.keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        self.checkpoints = Checkpoints(self.directory / "checkpoints")
        self.iteration, self.seconds, self.compile_seconds = 0, 0.0, 0.0
        self.bytes = 0  # that an iteration takes beside the state, once it is compiled
        self.stopped: dict[int, str] = {}
        self.stop_requested = threading.Event()
        self._evaluators: dict[int, Callable] = {}

    # -- starting ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Fresh state for every seed."""
        self.progress.compiling()
        began = time.perf_counter()
        self.state = self._placed(self._initial())
        policy = self.method.policy(self.state)
        self.best = {"policy": policy, "score": jnp.full((len(self.seed_numbers),), -jnp.inf)}
        self.compile_seconds += time.perf_counter() - began

    def _initial(self):
        """Every seed's fresh state; in JAX one seed after another too, for several orthogonal matrices at once can hang jaxlib on few cores."""
        if self.seeds.together:
            return jax.jit(lambda task, keys: jax.lax.map(lambda key: self.method.init(task, key), keys))(self.task, self.keys)
        return self.seeds.compile(lambda task, key: self.method.init(task, key), self.keys)(self.keys)

    def _placed(self, tree):
        return tree if self.seeds.mesh is None else _over(self.seeds.mesh, tree)

    def restore(self) -> list[str]:
        """State from the newest sound checkpoint; the notes name damaged ones. Readers of the records drop what is then written anew."""
        tree, meta, notes = self._saved()
        self.state, self.best = self._placed(tree["state"]), self._placed(tree["best"])
        self.iteration, self.seconds = meta["iteration"], meta["seconds"]
        self.compile_seconds = meta["compile_seconds"]
        self.stopped = {int(k): v for k, v in meta["stopped"].items()}
        return notes

    def _saved(self):
        shape = jax.eval_shape(jax.vmap(lambda key: self.method.init(self.task, key)), self.keys) if self.seeds.together else self._host_shape()
        best = {"policy": jax.eval_shape(self.method.policy, shape), "score": jax.ShapeDtypeStruct((len(self.seed_numbers),), jnp.float32)}
        return self.checkpoints.restore({"state": shape, "best": best})

    def _host_shape(self):
        one = jax.eval_shape(lambda key: self.method.init(self.seeds.task_of(0), key), self.keys[0])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.seed_numbers), *x.shape), x.dtype), one)

    # -- the main loop -------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Train to the end or to a stop: "finished" or "interrupted". TrainingFailed when no seed is left."""
        if self.stop_requested.is_set():
            return self._interrupted()
        began = time.perf_counter()
        size = self.plan.chunk
        arguments = (self.method, self.state, jnp.int32(0))
        chunk = self.seeds.compile(lambda task, *rest: run_chunk(task, *rest, size), *arguments, shared=(0, 2), rescue=self._rescue)
        refresh = None if self.seeds.together else self.seeds.compile(lambda task, state: self.method.refresh(task, state), self.state)
        self.compile_seconds += time.perf_counter() - began
        self.bytes = chunk.bytes
        if refresh and self.iteration:
            self.state = refresh(self.state)
        while self.iteration < self.plan.iterations:
            if self.stop_requested.is_set():
                return self._interrupted()
            due = self.plan.every - self.iteration % self.plan.every
            count = min(size, due, self.plan.iterations - self.iteration)
            self._advance(chunk, count)
            if self.iteration % self.plan.every == 0 or self.iteration == self.plan.iterations:
                self._evaluate_and_save()
                if refresh:
                    self.state = refresh(self.state)
        return "finished"

    def _advance(self, chunk, count: int) -> None:
        began = time.perf_counter()
        before = self.state
        after, log = jax.block_until_ready(chunk(self.method, self.state, jnp.int32(count)))
        self.seconds += time.perf_counter() - began
        log = {name: np.asarray(rows)[:, :count] for name, rows in log.items()}
        self.state = self._keep_good(before, after, log)
        self.iteration += count
        self._record(log)
        if len(self.stopped) == len(self.seed_numbers):
            self._fail()

    def _fail(self) -> None:
        """Every seed has stopped: keep what they were before, and say why."""
        if self.iteration not in self.checkpoints.iterations():
            self.save()
        raise TrainingFailed(
            f"Every seed stopped: {'; '.join(f'seed {s}: {why}' for s, why in self.stopped.items())}. "
            f"The last good state is kept in {self.directory}. Try a smaller learning rate, or normalise observations and rewards."
        )

    def _rescue(self, index: int, error, values):
        """For a stopped seed the state as it was and no metrics; None to let the seed run."""
        seed = self.seed_numbers[index]
        if error is not None:
            self._stop(seed, f"the action was not finite after step {self.iteration * self.method.steps_per_iteration}")
        if seed not in self.stopped:
            return None
        task = self.seeds.task_of(index)
        metrics = jax.eval_shape(self.method.step, task, values[1])[1]
        return values[1], jax.tree.map(lambda m: jnp.full((self.plan.chunk, *m.shape), jnp.nan, m.dtype), metrics)

    def _stop(self, seed: int, why: str) -> None:
        self.stopped[seed] = why
        others = "; the others go on" if len(self.stopped) < len(self.seed_numbers) else ""
        self.note(f"Seed {seed} stopped: {why}. Its last good state is kept{others}.")

    def note(self, text: str) -> None:
        """Show a sentence, and keep it in the run's folder."""
        records.append_line(self.directory / "notes.jsonl", {"step": self.iteration * self.method.steps_per_iteration, "note": text})
        self.progress.note(text)

    def _keep_good(self, before, after, log):
        """The new state, but the old one for every seed whose metrics or policy are not finite: that seed has stopped."""
        failed = np.zeros(len(self.seed_numbers), bool)
        for name, rows in log.items():
            bad = ~np.isfinite(rows)
            for index in np.flatnonzero(bad.any(axis=1)):
                seed = self.seed_numbers[index]
                failed[index] = True
                if seed not in self.stopped:
                    first = self.iteration + int(np.argmax(bad[index])) + 1
                    value = rows[index, np.argmax(bad[index])]
                    self._stop(seed, f"{name} was {value} at step {first * self.method.steps_per_iteration}")
        for name, bad in _broken(self.method.policy(before), self.method.policy(after)):
            for index in np.flatnonzero(bad):
                seed = self.seed_numbers[index]
                if seed not in self.stopped:
                    last = self.iteration + next(iter(log.values())).shape[1]
                    self._stop(seed, f"the policy's {name} was not finite at step {last * self.method.steps_per_iteration}")
        failed |= np.array([seed in self.stopped for seed in self.seed_numbers])
        if not failed.any():
            return after
        return _choose(failed, before, after)

    def _record(self, log) -> None:
        alive = np.array([seed not in self.stopped for seed in self.seed_numbers])
        row = {}
        if "episode/count" in log:  # nobody acts where a dataset is learnt from
            counts = log["episode/count"].sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                row = {"return": log["episode/return"].sum(axis=1) / counts, "length": log["episode/length"].sum(axis=1) / counts, "episodes": counts}
        row.update({name: rows.mean(axis=1) for name, rows in log.items() if name not in EPISODE})
        row = {name: np.where(alive, values, np.nan) for name, values in row.items()}
        step = self.iteration * self.method.steps_per_iteration
        records.append_line(
            self.directory / "metrics.jsonl",
            {"step": step, "iteration": self.iteration, "seconds": self.seconds, **{name: values.tolist() for name, values in row.items()}},
        )
        self._status("running")
        for logger in self.loggers:
            pairs = [(name, i, v[i]) for name, v in row.items() for i in range(len(self.seed_numbers)) if np.isfinite(v[i])]
            logger.log(step, {f"{name}/seed{self.seed_numbers[i]}": float(value) for name, i, value in pairs})
        self.progress.update(step, self.seconds, row["return"].tolist() if "return" in row else ())

    # -- evaluation and checkpoints ------------------------------------------------------------------------------------

    def evaluate(self, policy, episodes: int, salt: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns and lengths (seeds, episodes) of a policy that has a leading seed axis."""
        keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 0x0E7A1), salt))(self.keys)

        def unscored(index, error, values):
            return (jnp.full((episodes,), jnp.nan),) * 2 if error else None

        if episodes not in self._evaluators:
            self._evaluators[episodes] = self.evaluation_seeds.compile(
                lambda task, policy, key: earned(policy, task, key, episodes=episodes), policy, keys, rescue=unscored
            )
        returns, lengths = self._evaluators[episodes](policy, keys)
        return np.asarray(returns), np.asarray(lengths)

    def _evaluate_and_save(self) -> None:
        policy = self.method.policy(self.state)
        if self.examination is None:  # without one no policy is better than the last
            self.best = {"policy": policy, "score": self.best["score"]}
            return self.save()
        returns, lengths = self.evaluate(policy, self.plan.episodes, self.iteration)
        self._write_evaluation("last", False, returns, lengths)
        score = jnp.asarray(returns.mean(axis=1))
        self._stop_unscored(np.asarray(score))
        better = np.asarray(score > self.best["score"])
        self.best = _choose(~better, self.best, {"policy": policy, "score": score})
        self.save()
        if len(self.stopped) == len(self.seed_numbers):
            self._fail()

    def _stop_unscored(self, score: np.ndarray) -> None:
        """Stop the seeds whose policy earns no finite return, and take them back to their last checkpoint, if there is one."""
        seeds = [seed for seed, s in zip(self.seed_numbers, score) if not np.isfinite(s) and seed not in self.stopped]
        for seed in seeds:
            self._stop(seed, f"the return of its evaluation was not finite at step {self.iteration * self.method.steps_per_iteration}")
        if seeds and self.checkpoints.iterations():
            saved = self._saved()[0]["state"]
            self.state = _choose(np.isin(self.seed_numbers, seeds), saved, self.state)

    def final_evaluation(self) -> None:
        """Evaluate the last and the best policy, both on the same episodes, which no training or choice has seen."""
        if self.examination is None:
            return
        for name, policy in (("last", self.method.policy(self.state)), ("best", self.best["policy"])):
            returns, lengths = self.evaluate(policy, self.plan.final_episodes, 0x0F17A1)
            self._write_evaluation(name, True, returns, lengths)

    def _write_evaluation(self, which: str, final: bool, returns, lengths) -> None:
        step = self.iteration * self.method.steps_per_iteration
        records.append_line(
            self.directory / "evaluations.jsonl",
            {"step": step, "iteration": self.iteration, "policy": which, "final": final, "returns": returns.tolist(), "lengths": lengths.tolist()},
        )
        means = returns.mean(axis=1)
        for logger in self.loggers:
            logger.log(step, {f"evaluation/{which}/seed{seed}": float(means[i]) for i, seed in enumerate(self.seed_numbers)})
        if not final:
            self.progress.evaluated(step, float(means.mean()), float(means.min()), float(means.max()))

    def save(self) -> None:
        meta = {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "stopped": {str(k): v for k, v in self.stopped.items()},
        }
        self.checkpoints.save(self.iteration, {"state": self.state, "best": self.best}, meta)

    def _interrupted(self) -> str:
        # A host environment's state cannot be saved in mid-episode: its last checkpoint stands, so that the resumed run
        # equals one that was never stopped.
        if self.seeds.together and self.iteration not in self.checkpoints.iterations():
            self.save()
        self._status("interrupted")
        return "interrupted"

    def ended(self, state: str, why: str | None = None) -> None:
        """Write down how the run ended, and why."""
        if why:
            records.append_line(self.directory / "notes.jsonl", {"step": self.iteration * self.method.steps_per_iteration, "note": why})
        self._status(state)

    def _status(self, state: str) -> None:
        records.write_json_atomic(
            self.directory / "status.json",
            {
                "state": state,
                "step": self.iteration * self.method.steps_per_iteration,
                "seconds": self.seconds,
                "compile_seconds": self.compile_seconds,
                "stopped": {str(k): v for k, v in self.stopped.items()},
            },
        )

    @contextlib.contextmanager
    def signals(self):
        """A context in which Ctrl-C and SIGTERM ask for a stop after the current chunk; a second one stops at once."""
        with _StopOnSignal(self.stop_requested):
            try:
                yield
            except (TrainingFailed, OSError):
                raise
            except Exception:  # simulators in processes of their own end by the signal that this process has only noted
                if self.seeds.together or not self.stop_requested.is_set():
                    raise
                self._interrupted()


class _StopOnSignal:

    def __init__(self, flag: threading.Event):
        self._flag, self._previous = flag, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self._flag.is_set():
            raise KeyboardInterrupt
        self._flag.set()


def _over(mesh, tree):
    from polopt.policies.language.sharding import placed  # transformers, which control does not need

    return placed(tree, mesh)


def _broken(before, after):
    """(name, by seed) of the leaves that hold numbers which are finite before and not after."""
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after)):
        if jnp.issubdtype(new.dtype, jnp.inexact):
            bad = np.isfinite(np.asarray(old)) & ~np.isfinite(np.asarray(new))
            yield jax.tree_util.keystr(path).lstrip("."), bad.reshape(len(bad), -1).any(axis=1)


def _choose(first: np.ndarray, a, b) -> Any:
    """By seed: the leaves of `a` where `first`, else those of `b`."""
    return jax.tree.map(lambda x, y: jnp.where(first.reshape(first.shape + (1,) * (x.ndim - 1)), x, y), a, b)
