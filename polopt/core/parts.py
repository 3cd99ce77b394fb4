"""Parts: frozen dataclasses of hyperparameters that are pytrees.

Float fields (and nested parts) are leaves, so a method can be passed to ``jax.jit`` without recompiling when a
learning rate changes, and ``jax.vmap`` can run several values of it at once. Every other field is static.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import operator
import re
import types
import typing
from typing import Any

import jax

_COMPARE = {"above": operator.gt, "at_least": operator.ge, "below": operator.lt, "at_most": operator.le}


def hyper(default, *, above=None, at_least=None, below=None, at_most=None, choices=None):
    """A dataclass field with the range or the choices of its values, checked by `check`."""
    limits = dict(above=above, at_least=at_least, below=below, at_most=at_most, choices=choices)
    return dataclasses.field(default=default, metadata={k: v for k, v in limits.items() if v is not None})


def _is_leaf_type(annotation) -> bool:
    if annotation is float or hasattr(annotation, "__polopt_part__"):
        return True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return all(a is type(None) or _is_leaf_type(a) for a in typing.get_args(annotation))
    return typing.get_origin(annotation) is None and isinstance(annotation, type) and getattr(annotation, "_is_protocol", False)


def part(cls):
    """Make `cls` a frozen dataclass and a pytree: floats, parts and protocols of parts are leaves, the rest is static."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    cls.__polopt_part__ = True
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    data = [n for n in names if _is_leaf_type(hints[n])]
    meta = [n for n in names if n not in data]

    def flatten(self):
        return tuple(getattr(self, n) for n in data), tuple(getattr(self, n) for n in meta)

    def flatten_with_keys(self):
        return tuple((jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in data), tuple(getattr(self, n) for n in meta)

    def unflatten(static, leaves):
        self = object.__new__(cls)
        for name, value in (*zip(data, leaves), *zip(meta, static)):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def fields(value, prefix: str = "") -> dict[str, Any]:
    """Every hyperparameter of a part and of the parts inside it, by dotted name, in the order of declaration."""
    found = {}
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if dataclasses.is_dataclass(inner):
            found.update(fields(inner, f"{prefix}{f.name}."))
        else:
            found[prefix + f.name] = inner
    return found


def resolve(value, name: str) -> str:
    """The dotted name that `name` means: itself, or the only one that ends in it."""
    known = list(fields(value))
    name = name.replace("-", "_")
    if name in known:
        return name
    ends = [k for k in known if k.endswith("." + name)]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ValueError(f"The field {name!r} is ambiguous: it could be {', '.join(ends)}. Give the longer name.")
    near = difflib.get_close_matches(name, [*known, *(k.rpartition(".")[2] for k in known)], n=3)
    hint = f"Did you mean {', '.join(dict.fromkeys(near))}?" if near else f"Known fields: {', '.join(known)}."
    raise ValueError(f"There is no field {name!r} in this method. {hint}")


def replace(value, changes: dict[str, Any]):
    """A copy of a part with fields changed, given by dotted or unambiguous short names."""
    for name, new in changes.items():
        path = resolve(value, name).split(".")
        value = _replace_at(value, path, new)
    check(value)
    return value


def _replace_at(value, path, new):
    head, *rest = path
    inner = _replace_at(getattr(value, head), rest, new) if rest else new
    return dataclasses.replace(value, **{head: inner})


def check(value, prefix: str = "") -> None:
    """Raise ValueError when a hyperparameter lies outside its declared range or choices, or has the wrong type."""
    hints = typing.get_type_hints(type(value))
    for f in dataclasses.fields(value):
        given = getattr(value, f.name)
        name = prefix + f.name
        if dataclasses.is_dataclass(given):
            check(given, name + ".")
            continue
        _check_type(name, given, hints[f.name])
        if given is None or isinstance(given, bool):
            continue
        for word, limit in f.metadata.items():
            if word == "choices":
                if given not in limit:
                    raise ValueError(f"{name} is {given!r}, but it must be one of {', '.join(map(repr, limit))}.")
                continue
            many = given if isinstance(given, tuple) else (given,)
            if not all(_COMPARE[word](x, limit) for x in many):
                raise ValueError(f"{name} is {given!r}, but it must be {word.replace('_', ' ')} {limit}.")


def _check_type(name, given, annotation) -> None:
    kinds = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
    kinds = tuple(typing.get_origin(k) or k for k in kinds)
    plain = tuple(k for k in kinds if k in (int, float, bool, str, tuple, type(None)))
    if not plain or len(plain) != len(kinds) or hasattr(given, "dtype"):  # arrays are vmapped hyperparameters
        return
    ok = (type(given) in plain) or (isinstance(given, int) and not isinstance(given, bool) and float in plain)
    if not ok:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", tuple: "a list", type(None): "none"}
        raise ValueError(f"{name} is {given!r}, but it must be {' or '.join(words[k] for k in plain)}.")


def _walk(value, prefix: str = ""):
    """(dotted name, owner, field) of every hyperparameter, in the order of `fields`."""
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if dataclasses.is_dataclass(inner):
            yield from _walk(inner, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value, f


def field_types(value) -> dict[str, Any]:
    """The type of every hyperparameter by dotted name; choices become a Literal."""
    found = {}
    for name, owner, f in _walk(value):
        hint = typing.get_type_hints(type(owner))[f.name]
        if "choices" in f.metadata:
            hint = typing.Literal[tuple(f.metadata["choices"])]
        found[name] = hint
    return found


def field_help(value) -> dict[str, str]:
    """The comment beside each hyperparameter's definition, by dotted name."""
    return {name: _comments(type(owner)).get(f.name, "") for name, owner, f in _walk(value)}


@functools.cache
def _comments(cls) -> dict[str, str]:
    found = {}
    for base in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        for line in inspect.getsource(base).splitlines():
            match = re.match(r"    (\w+):.*?  # (.*)$", line)
            if match:
                found[match[1]] = match[2].strip()
    return found


def describe(value, indent: str = "") -> list[str]:
    """A part as lines: each hyperparameter with its value and meaning, inner parts indented."""
    lines = []
    helps = _comments(type(value))
    for f in dataclasses.fields(value):
        inner = getattr(value, f.name)
        if dataclasses.is_dataclass(inner):
            summary = (inspect.getdoc(type(inner)) or "").splitlines()[0]
            lines.append(f"{indent}{f.name}: {type(inner).__name__} - {summary}")
            lines += describe(inner, indent + "  ")
        else:
            lines.append(f"{indent}{f.name} = {_shown(inner)}" + (f"    ({helps[f.name]})" if f.name in helps else ""))
    return lines


def _shown(value) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
