"""Arguments that a user gives to one of our functions through another library's configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def takes(function: Callable, name: str) -> bool:
    """Whether a function has a parameter of this name."""
    return name in inspect.signature(function).parameters


def check_arguments(name: str, function: Callable, given: Mapping[str, Any], ours: tuple[str, ...], where: str) -> None:
    """Refuse arguments that `function` does not know or that the adapter sets itself, and missing ones that it cannot do without.

    ours: what the adapter passes; where: how a user gives an argument, for the error.
    """
    base = function.func if isinstance(function, functools.partial) else function
    bound = getattr(function, "keywords", {})
    parameters = {k: p for k, p in inspect.signature(base).parameters.items() if k not in ours}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    parameters = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    unknown = [k for k in given if k not in parameters and not anything or k in ours]
    if unknown:
        known = ", ".join(parameters) or "none"
        raise ValueError(f"{name} got the argument {unknown[0]!r}, but those that can be given are: {known}. Give them as {where}.")
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in given and k not in bound]
    if missing:
        raise ValueError(f"{name} needs the argument {missing[0]!r}, which has no default. Give it as {where}.")
