"""Stored evidence: one JSON file a claim, `<folder>/<family>/<key>.json`, and what it is still worth.

Evidence is stale when a source that it depends on has changed, and the claim's own text is fingerprinted apart, so that a threshold cannot
move without a new run. Reading it imports no claim.
"""

from __future__ import annotations

import ast
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from polopt.claims import sources
from polopt.methods import registry
from polopt.methods.registry import Entry

FORMAT = 1


def folder(chosen: str | os.PathLike | None = None) -> Path:
    """Where evidence lies: what was chosen, else `evidence` here if there is one (in the repository), else the user's own."""
    if chosen is not None:
        return Path(chosen)
    here = Path("evidence")
    if here.is_dir():
        return here
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "polopt" / "evidence"


def path_of(entry: Entry, directory: Path) -> Path:
    return directory / entry.family / f"{entry.key}.json"


def claim_path(entry: Entry) -> Path:
    return Path(__file__).parent / entry.family / f"{entry.key}.py"


class Fingerprints(NamedTuple):
    """Of what a result depends on."""

    text: str  # the claim's own file, without the analysis, which may follow the result, and the cost
    sources: dict[str, str]  # every other source by its path


def fingerprints_of(entry: Entry) -> Fingerprints:
    found = sources.fingerprints(f"polopt.claims.{entry.family}.{entry.key}", entry.module)
    own = claim_path(entry).relative_to(sources.ROOT).as_posix()
    return Fingerprints(sources.fingerprint(claim_path(entry)), {path: digest for path, digest in found.items() if path != own})


@dataclass(frozen=True)
class Standing:
    """How a method's evidence stands. `stored` is what its file holds; None when there is none."""

    entry: Entry
    has_claim: bool
    stored: dict[str, Any] | None
    new_text: bool  # the claim's text is no longer the one that was run
    changed: tuple[str, ...]  # sources that are no longer the same, or joined, or left
    analysis: str

    @property
    def stale(self) -> bool:
        return self.new_text or bool(self.changed)

    @property
    def current(self) -> bool:
        return self.stored is not None and not self.stale

    @property
    def verdict(self) -> str | None:
        return self.stored["verdict"] if self.stored else None

    @property
    def examined(self) -> bool:
        """Whether somebody has looked into why the claim does not hold."""
        return bool(self.analysis) and self.verdict not in (None, "holds")

    @property
    def words(self) -> str:
        """The verdict with what qualifies it."""
        if self.verdict is None:
            return "not run" if self.has_claim else "no claim"
        notes = ["examined" if self.examined else "not examined"] if self.verdict == "fails" else []
        notes += ["stale"] if self.stale else []
        return self.verdict + (f" ({', '.join(notes)})" if notes else "")

    @property
    def why_stale(self) -> str:
        parts = ["the claim's text has changed"] if self.new_text else []
        parts += [f"{', '.join(self.changed)} changed"] if self.changed else []
        return "; ".join(parts)


def standing(entry: Entry, directory: Path) -> Standing:
    has_claim = claim_path(entry).exists()
    stored = read(path_of(entry, directory))
    if stored is None or not has_claim:
        return Standing(entry, has_claim, stored, stored is not None, (), _analysis(entry) if has_claim else "")
    then, now = stored["sources"], fingerprints_of(entry)
    changed = tuple(sorted(path for path in {*then, *now.sources} if then.get(path) != now.sources.get(path)))
    return Standing(entry, True, stored, stored["claim"]["fingerprint"] != now.text, changed, _analysis(entry))


def standings(directory: Path, family: str | None = None) -> list[Standing]:
    return [standing(entry, directory) for entry in registry.entries(family)]


def _analysis(entry: Entry) -> str:
    """The claim's analysis, read from its source."""
    for node in ast.walk(ast.parse(claim_path(entry).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Claim":
            for keyword in node.keywords:
                if keyword.arg == "analysis":
                    return " ".join(ast.literal_eval(keyword.value).split())
    return ""


def read(path: Path) -> dict[str, Any] | None:
    """What a file holds; None when there is no file."""
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The evidence {path} is damaged ({error}); run the claim again with `polopt verify {path.stem}`.") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f"The evidence {path} is not of format {FORMAT}; run the claim again with `polopt verify {path.stem}`.")
    return stored


def write(path: Path, value: dict[str, Any]) -> None:
    """Write as JSON with a row of numbers on one line, so that a change reads well in a diff; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(dumps(value) + "\n", encoding="utf-8")
    os.replace(new, path)


def dumps(value, indent: str = "") -> str:
    deeper = indent + " "
    if isinstance(value, dict) and value:
        inner = (f"{deeper}{json.dumps(str(k), ensure_ascii=False)}: {dumps(v, deeper)}" for k, v in value.items())
        return "{\n" + ",\n".join(inner) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(v, (dict, list, tuple)) for v in value):
        return "[\n" + ",\n".join(deeper + dumps(v, deeper) for v in value) + f"\n{indent}]"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(dumps, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return "null"
    return json.dumps(value if value is None or isinstance(value, (bool, int, float, str, dict)) else str(value), ensure_ascii=False)
