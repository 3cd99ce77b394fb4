"""A reward model that a run has learnt, as the verifier of another run."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

import equinox as eqx
import jax

from polopt.data.dataset import DataError
from polopt.data.preferences import PreferenceTask


class Rewards(NamedTuple):
    """What a run has learnt: `model` is a verifier; which tokens it reads, and how many at most (None for no bound)."""

    place: str
    model: Any
    tokenizer: Any
    context: int | None


def ungraded(prompts, completions):
    """The verifier of a task while it is made, which can judge nothing; `graded` puts the reward model in its place."""
    return [None] * len(completions)


def learnt_at(place: str | None) -> Rewards | None:
    """The reward model of the run in a folder; None where `place` is no folder, and so a function's."""
    if place is None or not os.path.isdir(place):
        return None
    from polopt.run.run import load

    run = load(place)
    found = run.policy() if run.config.get("language") else None
    if found is None or not hasattr(found.policy, "members"):
        raise DataError(f"The verifier {place} is a run of {run.config['method']}, which learns no reward; give a run of bt or rm_ensemble.")
    trunk = eqx.combine(jax.tree.map(lambda x: x[0], found.policy.params), found.policy.rest).trunk
    return Rewards(str(place), found.policy, found.task.tokenizer, getattr(getattr(trunk, "config", None), "context", None))


def graded(task, rewards: Rewards):
    """The task with the reward model as its verifier; DataError where the two do not read the same tokens."""
    if task.tokenizer != rewards.tokenizer:
        raise DataError(
            f"The reward model in {rewards.place} reads the tokens of another tokenizer than {task.name} is written in; train both from one --model."
        )
    longest = (task.preferences.prompts if isinstance(task, PreferenceTask) else task.prompts).tokens.shape[1] + task.length
    if rewards.context is not None and longest > rewards.context:
        raise DataError(
            f"The prompts of {task.name} with their completions have up to {longest} tokens, but the reward model in {rewards.place} sees "
            f"{rewards.context}; lower the task's options length and longest, or train a reward model with a longer context."
        )
    return dataclasses.replace(task, verifier=rewards.model)
