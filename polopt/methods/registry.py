"""Finds the methods: one file each, in a folder of its family. Listing them imports none of them."""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent


class UnknownMethod(ValueError):
    """No method has this key."""


@dataclass(frozen=True)
class Entry:
    """What the first lines of a method's file say: title, then authors, year and source."""

    key: str
    family: str
    title: str
    authors: str
    year: int
    arxiv: str | None

    @property
    def module(self) -> str:
        return f"polopt.methods.{self.family}.{self.key}"

    @property
    def path(self) -> Path:
        return ROOT / self.family / f"{self.key}.py"

    @property
    def docstring(self) -> str:
        return ast.get_docstring(ast.parse(self.path.read_text())) or ""

    def bibtex(self) -> str:
        """A BibTeX entry for the paper."""
        authors = self.authors.replace(", et al", " and others").replace(", ", " and ")
        lines = [f"  title  = {{{{{self.title}}}}},", f"  author = {{{authors}}},", f"  year   = {{{self.year}}},"]
        if self.arxiv:
            lines += [f"  eprint = {{{self.arxiv}}},", "  archivePrefix = {arXiv},"]
        return "\n".join([f"@misc{{{self.key}{self.year},", *lines, "}"])


_HEAD = re.compile(r'^"""(?P<title>[^\n]+)\.\n\n(?P<authors>[^\n]+)\. (?P<year>\d{4})\.(?: arXiv:(?P<arxiv>\d{4}\.\d{4,5}))?')


def entries(family: str | None = None) -> list[Entry]:
    """Every method, sorted by family and key. ValueError names the families when `family` is unknown."""
    known = families()
    if family is not None and family not in known:
        raise ValueError(f"There is no family {family!r}. Families: {', '.join(known)}.")
    found = []
    for name in known if family is None else [family]:
        for path in sorted((ROOT / name).glob("[!_]*.py")):
            with path.open() as file:
                head = _HEAD.match(file.read(1500))
            if head is None:
                raise ValueError(f"{path.name} does not start with a title, then authors, year and source; see CONTRIBUTING.md.")
            found.append(Entry(path.stem, name, head["title"], head["authors"], int(head["year"]), head["arxiv"]))
    return found


def families() -> list[str]:
    return sorted(p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists())


def find(name: str) -> Entry:
    """The entry of a key, or of `key:variant`."""
    key = name.partition(":")[0]
    known = {entry.key: entry for entry in entries()}
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(near)}?" if near else "See `polopt list`."
        raise UnknownMethod(f"There is no method {key!r}. {hint}")
    return known[key]


def composition(function: Callable) -> Callable:
    """Marks a function of a method's file that composes it: from a task (or None, for the general defaults) to a method."""
    function.__polopt_composition__ = True
    return function


def compositions(name: str) -> dict[str, Callable]:
    """The compositions of a method's file by name: the key itself, then its variants as `key:variant`."""
    entry = find(name)
    module = importlib.import_module(entry.module)
    marked = {n: f for n, f in vars(module).items() if getattr(f, "__polopt_composition__", False) and f.__module__ == module.__name__}
    return {(n if n == entry.key else f"{entry.key}:{n}"): f for n, f in marked.items()}


def load(name: str) -> Callable:
    """The composition called `key` or `key:variant`."""
    known = compositions(name)
    if not known:
        raise UnknownMethod(f"{name} is an analysis: nothing is trained by it. `polopt show {name}` says what it measures.")
    if name not in known:
        raise UnknownMethod(f"There is no variant {name!r}. Compositions of this method: {', '.join(known)}.")
    return known[name]
