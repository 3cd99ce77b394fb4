"""Language tasks as a user names them: a model, and a task, a file of data or a verifier. And what a run keeps of them.

    model   "tiny" for a small decoder made for the task, or a directory in the Hugging Face layout
    task    a name of `polopt.data.tasks`, such as arithmetic or reasoning_gym:countdown; the exact testbeds bring their own model
    data    a file of prompts with answers, demonstrations or preferences, where no task is named
    verifier  a function that grades completions, or the folder of a run that has learnt a reward model

The model that training starts from is kept in the run's folder where it was made or warmed up by the run itself.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.core import parts
from polopt.data import tasks, text_files, text_tasks
from polopt.data.dataset import DataError
from polopt.data.language import LanguageTask
from polopt.data.preferences import PreferenceTask
from polopt.data.synthetic import SPACES
from polopt.data.testbeds import TESTBEDS
from polopt.data.tokenizer import CharacterTokenizer, HuggingFaceTokenizer, save_tokenizer
from polopt.methods import registry
from polopt.policies.language import huggingface
from polopt.policies.language.sampling import Sampling, generate
from polopt.policies.language.transformer import Transformer, tiny
from polopt.run.checkpoint import digest
from polopt.run.rewards import graded, learnt_at, ungraded

TINY = "tiny"
TINY_WARM_START = 400  # iterations of supervised learning, after which a tiny model is right now and then
START = "model"  # the folder in a run's


@dataclasses.dataclass(frozen=True)
class Source:
    """What a language task was made of, as a run remembers it."""

    model: str | None = None
    task: str | None = None
    data: str | None = None
    verifier: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    warm_start: int | None = None


def wanted(method) -> type | None:
    """LanguageTask or PreferenceTask where a method takes one; None otherwise."""
    kinds = method.takes if isinstance(method.takes, tuple) else (method.takes,)
    return next((kind for kind in kinds if kind in (LanguageTask, PreferenceTask)), None)


def pose(source: Source, method, steps: int, directory: Path | None = None) -> LanguageTask | PreferenceTask:
    """The task for a method, with the model that training starts from. `directory` is the folder of a run that has kept that model."""
    rewards = learnt_at(source.verifier)
    if rewards is None:
        return _pose(source, method, steps, directory)
    return graded(_pose(dataclasses.replace(source, verifier=ungraded), method, steps, directory, rewards.tokenizer), rewards)


def _pose(source: Source, method, steps: int, directory: Path | None, tokenizer=None) -> LanguageTask | PreferenceTask:
    """`tokenizer` is the one that a file's texts are put into for a tiny model; by default one of their characters."""
    if source.task in TESTBEDS:
        return tasks.make_language_task(source.task, verifier=source.verifier, steps=steps, **dict(source.options))
    if source.model is None:
        raise DataError(f"No model is given; give --model {TINY}, or --model DIRECTORY in the Hugging Face layout.")
    if (source.task is None) == (source.data is None):
        given = "Neither" if source.task is None else "Both"
        raise DataError(f"{given} a task and data are given, but one of them says what is learnt; give --task arithmetic, or --data FILE.jsonl.")
    posed = _posed(source, method, steps, tokenizer)
    kept = None if directory is None else directory / START
    if kept is not None and kept.exists():
        return posed.with_model(huggingface.load(kept))
    model = _small(posed) if source.model == TINY else huggingface.load(source.model)
    if model.vocabulary < posed.tokenizer.size:
        known = f"The model {source.model} knows {model.vocabulary} tokens, but its tokenizer has {posed.tokenizer.size}"
        raise DataError(f"{known}; give a model and a tokenizer that belong together.")
    _check_context(posed, model)
    posed = posed.with_model(model)
    iterations = source.warm_start if source.warm_start is not None else TINY_WARM_START if _taught_first(source, method, posed) else 0
    return posed.with_model(warmed_up(posed, iterations)) if iterations else posed


def _check_context(posed, model) -> None:
    """DataError where a prompt with its completion is longer than what the model can see."""
    prompts = posed.preferences.prompts if isinstance(posed, PreferenceTask) else posed.prompts
    context, longest = model.config.context, prompts.tokens.shape[1]
    if longest + posed.length > context:
        raise DataError(
            f"The prompts of {posed.name} have up to {longest} tokens and their completions up to {posed.length}, but the model sees {context} in "
            "all; take a model with a longer context, or shorten them by the task's options length and longest (which leaves longer prompts out)."
        )


def _taught_first(source: Source, method, posed) -> bool:
    """Whether a warm start is the default: a model without any skill cannot earn a reward, but supervised learning needs none."""
    shown = isinstance(posed, LanguageTask) and posed.prompts.demonstration is not None
    return source.model == TINY and shown and not _learns_demonstrations(method)


def _learns_demonstrations(method) -> bool:
    return getattr(method, "imitates", False)


def _posed(source: Source, method, steps: int, characters=None):
    options = dict(source.options)
    if source.task in SPACES:
        posed = tasks.make_language_task(source.task, verifier=source.verifier, steps=steps, **options)
        if source.model != TINY:
            tokenizer = HuggingFaceTokenizer(source.model)
            if any(tokenizer.encode(c) != posed.tokenizer.encode(c) for c in posed.tokenizer.alphabet):
                found = f"The task {source.task} is written in single characters, each a token, but the tokenizer of {source.model} has others"
                raise DataError(f"{found}; take --model {TINY}, or a task in words such as reasoning_gym:NAME.")
        return posed
    place = source.task or source.data
    if source.model != TINY:
        tokenizer = HuggingFaceTokenizer(source.model)
    elif place.endswith(text_files.SUFFIXES):
        tokenizer = characters or characters_of(place)
    elif place.startswith(tasks.WORDS):
        raise DataError(f"The task {place} is written in words, which a tiny model has no tokenizer for; give --model DIRECTORY.")
    elif source.data is None:
        return tasks.make_language_task(place, steps=steps, **options)  # which says what is wrong with the name
    else:
        tokenizer = None
    if source.data is None:
        return tasks.make_language_task(place, tokenizer=tokenizer, verifier=source.verifier, steps=steps, **options)
    if not place.endswith(text_files.SUFFIXES):
        raise DataError(f"The data are {place}, but a file of {' or '.join(text_files.SUFFIXES)} is expected; a task is named with --task.")
    if wanted(method) is PreferenceTask:
        if source.verifier not in (None, ungraded):
            raise DataError(f"Preferences are graded by a reward model, not by {source.verifier}; give a run of bt as the verifier, or none.")
        return text_tasks.preference_task(place, tokenizer, steps=steps, **options)
    if _learns_demonstrations(method) and source.verifier is None:
        return text_tasks.demonstration_task(place, tokenizer, steps=steps, **options)
    return tasks.make_language_task(place, tokenizer=tokenizer, verifier=source.verifier, steps=steps, **options)


def characters_of(path: str) -> CharacterTokenizer:
    """A tokenizer of the characters that are in a file's texts."""

    def texts(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from texts(inner)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield str(value)

    return CharacterTokenizer("".join(sorted({c for row in text_files.read_rows(path) for text in texts(row.entries) for c in text})))


def _small(task) -> Transformer:
    """A decoder of 2 layers and width 64 with random parameters: always the same, so that seeds differ in what they learn alone."""
    return Transformer.random(tiny(task.tokenizer.size), jax.random.key(0))


def warmed_up(task: LanguageTask, iterations: int):
    """The task's model after some iterations of supervised learning on its demonstrations."""
    if not isinstance(task, LanguageTask) or task.prompts.demonstration is None:
        raise DataError(f"A model is warmed up on demonstrations, but {task.name} has none; set --warm-start 0.")
    task = dataclasses.replace(task, steps=iterations)
    method = parts.replace(registry.load("sft")(task), {"anneal": False})
    learn = jax.jit(lambda task, state: jax.lax.fori_loop(0, iterations, lambda _, s: method.step(task, s)[0], state))
    return learn(task, method.init(task, jax.random.key(0))).policy


def keep_model(task, directory: Path) -> None:
    """Write the model that training starts from into a run's folder."""
    save_model(task.model, task.tokenizer, directory / START)


def save_model(policy, tokenizer, directory) -> None:
    """Write a model with its tokenizer as a directory in the Hugging Face layout."""
    if not isinstance(policy, Transformer):
        raise DataError("A policy that is a table has no model directory; it is in the run's checkpoints.")
    huggingface.save(policy, directory)
    save_tokenizer(tokenizer, directory)


def options_of(task: str | None) -> tuple[str | None, tuple[tuple[str, Any], ...]]:
    """A task's name and its options, from NAME:option=value,option=value; a name may itself hold a colon."""
    if task is None or "=" not in task:
        return task, ()
    name, _, words = task.rpartition(":")
    pairs = [word.partition("=") for word in words.split(",")]
    if not name or not all(option and sign for option, sign, _ in pairs):
        raise DataError(f"The task is {task!r}, but a name, or a name with options such as countdown:numbers=4,largest=9, is expected.")
    return name, tuple((option.strip(), _value(text.strip())) for option, _, text in pairs)


def _value(text: str):
    """A number where the text is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# -- judging a policy --------------------------------------------------------------------------------------------------


def held_out_returns(policy, task, key, *, episodes: int, stochastic: bool = False):
    """Rewards and lengths, each (episodes,), of completions of held-out prompts; with fewer prompts than episodes they come again.

    Without a verifier the return is the mean log-probability of a demonstration's tokens, or for preferences 1 where the response with the
    higher score has gained more log-probability since the start of training than the other, and else 0. Of a reward model it is 1 where that
    response has the higher reward.
    """
    k_rows, k_write = jax.random.split(key)
    if task.verifier is None or not _writes(policy):
        return _preferred(policy, task, k_rows, episodes) if isinstance(task, PreferenceTask) else _likelihood(policy, task, k_rows, episodes)
    prompts = task.held_out.prompts if isinstance(task, PreferenceTask) else task.held_out
    rows = _rows(k_rows, len(prompts), episodes)
    made = _write(policy, task, prompts, rows, k_write, stochastic)
    graded = task.verifier(prompts, rows, made.tokens, made.mask)
    return jnp.where(graded.valid, graded.reward, 0.0), jnp.sum(made.mask, axis=1).astype(jnp.float32)


def _writes(policy) -> bool:
    """Whether it is a language policy; a reward model only reads."""
    return hasattr(policy, "start")


def _write(policy, task, prompts, rows, key, stochastic: bool):
    options = dict(length=task.length, stop=task.stop, sampling=Sampling(greedy=not stochastic))
    return generate(policy, prompts.tokens[rows], prompts.mask[rows], key, **options)


def _rows(key, count: int, wanted: int):
    """`wanted` rows of `count`, each as often as every other but for one time."""
    turns = -(-wanted // count)
    return jnp.concatenate([jax.random.permutation(k, count) for k in jax.random.split(key, turns)])[:wanted].astype(jnp.int32)


def _likelihood(policy, task, key, episodes: int):
    prompts = task.held_out
    if prompts.demonstration is None:
        raise DataError(f"The task {task.name} has neither a verifier nor demonstrations, so that nothing can be evaluated.")
    rows = _rows(key, len(prompts), episodes)
    mask = prompts.demonstration_mask[rows]
    scored = policy.score(prompts.tokens[rows], prompts.mask[rows], prompts.demonstration[rows], mask, entropy=False)
    lengths = jnp.sum(mask, axis=1).astype(jnp.float32)
    return jnp.sum(scored.log_prob, axis=1) / jnp.maximum(lengths, 1.0), lengths


def _preferred(policy, task, key, episodes: int):
    held = task.held_out
    rows = _rows(key, len(held.prompts), episodes)
    prompts, mask = held.prompts.tokens[rows], held.prompts.mask[rows]

    def gained(k):
        response = held.responses[rows, k], held.mask[rows, k]
        if not _writes(policy):
            return policy(held.prompts, rows, *response).reward
        given = prompts, mask, *response
        return jnp.sum(policy.score(*given, entropy=False).log_prob - task.model.score(*given, entropy=False).log_prob, axis=1)

    gains = jnp.stack([gained(k) for k in range(held.responses.shape[1])], axis=1)
    best, worst = jnp.argmax(held.score[rows], axis=1), jnp.argmin(held.score[rows], axis=1)
    ahead = jnp.take_along_axis(gains, best[:, None], axis=1) > jnp.take_along_axis(gains, worst[:, None], axis=1)
    return ahead[:, 0].astype(jnp.float32), jnp.sum(held.mask[rows, 0], axis=1).astype(jnp.float32)


def samples(policy, task, key, count: int = 8) -> list[dict[str, Any]]:
    """Some held-out prompts, what the policy writes after them at temperature 1, and its reward (None without a verifier); none of a reward model."""
    if not _writes(policy):
        return []
    prompts = task.held_out.prompts if isinstance(task, PreferenceTask) else task.held_out
    k_rows, k_write = jax.random.split(key)
    rows = _rows(k_rows, len(prompts), count)
    made = jax.jit(lambda policy, rows, key: _write(policy, task, prompts, rows, key, True))(policy, rows, k_write)
    rewards = [None] * count
    if task.verifier is not None:
        graded = task.verifier(prompts, rows, made.tokens, made.mask)
        rewards = [float(r) if ok else None for r, ok in zip(np.asarray(graded.reward), np.asarray(graded.valid))]
    found = []
    for i, row in enumerate(np.asarray(rows)):
        given = np.asarray(prompts.tokens[row])[np.asarray(prompts.mask[row])]
        wrote = np.asarray(made.tokens[i])[np.asarray(made.mask[i])]
        decode = task.tokenizer.decode
        found.append({"prompt": decode(given), "completion": decode(wrote), "reward": rewards[i], "finished": bool(made.finished[i])})
    return found


class Writer:
    """A language policy in the hands of a user: text in, text out. `writer(prompt)` takes the likeliest tokens; with a JAX key it draws them."""

    def __init__(self, policy, task):
        self.policy, self.task = policy, task

    def __call__(self, prompt: str | list[str], key=None, *, sampling: Sampling | None = None, length: int | None = None) -> str | list[str]:
        from polopt.data.prompts import make_prompts

        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        given = make_prompts([self.task.tokenizer.encode(text) for text in texts])
        sampling = sampling or Sampling(greedy=key is None)
        options = dict(length=length or self.task.length, stop=self.task.stop, sampling=sampling)
        key = jax.random.key(0) if key is None else key
        made = generate(self.policy, jnp.asarray(given.tokens), jnp.asarray(given.mask), key, **options)
        said = [self.task.tokenizer.decode(np.asarray(t)[np.asarray(m)]) for t, m in zip(made.tokens, made.mask)]
        return said[0] if isinstance(prompt, str) else said


def described(source: Source, task) -> dict[str, Any]:
    """What run.json keeps."""
    facts = {k: v for k, v in dataclasses.asdict(source).items() if k != "options"}
    paths = {k: os.path.abspath(v) for k, v in facts.items() if k in ("model", "data", "verifier") and isinstance(v, str) and os.path.exists(v)}
    return {**facts, **paths, "options": dict(source.options), "notes": list(getattr(task, "notes", ())), "digest": digest_of(task)}


def digest_of(task) -> str:
    """Of what is learnt from and evaluated on, whatever the model."""
    return digest({"learnt": task.preferences if isinstance(task, PreferenceTask) else task.prompts, "held_out": task.held_out})


def remembered(facts: dict[str, Any]) -> Source:
    """The source from what run.json keeps."""
    facts = {k: v for k, v in facts.items() if k not in ("notes", "digest")}
    return Source(**{**facts, "options": tuple(facts["options"].items())})
