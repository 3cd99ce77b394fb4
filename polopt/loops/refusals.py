"""Why a loop cannot take an environment or a dataset, where several loops give the same reason; each is None when it can."""

from __future__ import annotations

from polopt.core import spaces


def several_objectives(env) -> str | None:
    if env.objectives:
        return f"takes one reward, but {env.name} has {env.objectives} objectives. Take a multi-objective method"
    return None


def several_actions(env) -> str | None:
    if isinstance(env.action_space, spaces.Dict):
        return f"takes one action, but {env.name} wants a dict of actions. Wrap the environment so that it takes a box or whole numbers"
    return None


def unbounded_actions(env, cure: str = "Wrap the environment so that they are finite") -> str | None:
    if isinstance(env.action_space, spaces.Box) and not env.action_space.bounded:
        return f"needs finite bounds of the actions, but those of {env.name} are {env.action_space}. {cure}"
    return None


def squashed_without_bounds(env, bounds: str) -> str | None:
    if bounds == "squash" and isinstance(env.action_space, spaces.Box) and not env.action_space.bounded:
        return f"cannot squash actions into the unbounded space of {env.name}. Set bounds to clip"
    return None
