"""Running claims: both sides on the same seeds, the verdict, and the evidence that is kept of it."""

from __future__ import annotations

import contextlib
import datetime
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from polopt.claims import claim as claims
from polopt.claims import evidence
from polopt.claims.claim import Claim
from polopt.claims.evidence import Fingerprints
from polopt.methods import registry
from polopt.methods.registry import Entry
from polopt.run.charts import binned
from polopt.run.statistics import Estimate, interquartile_mean

POINTS = 50  # of a curve that is kept
PILOT = 1000  # the first seed of a run that only tries a claim out


def run(claim: Claim, seeds: Sequence[int]) -> dict[str, Any]:
    """The result of a claim on these seeds: verdict, checks, and the numbers and curves of every side."""
    began = time.perf_counter()
    sides = claim.run(list(seeds))
    numbers = {name: {measure: _rounded(values, 8) for measure, values in side.numbers.items()} for name, side in sides.items()}
    for name, measures in numbers.items():
        for measure, values in measures.items():
            if np.shape(values) != (len(seeds),):
                raise ValueError(f"{measure} of {name} has the shape {np.shape(values)}, but the claim of {claim.method} ran on {len(seeds)} seeds.")
    return {
        **judge(claim, numbers),
        "seeds": list(seeds),
        "sides": {
            name: {"configuration": side.configuration, "numbers": numbers[name], "curves": {k: _curve(*c) for k, c in side.curves.items()}}
            for name, side in sides.items()
        },
        "seconds": round(time.perf_counter() - began, 1),
    }


def judge(claim: Claim, numbers: dict[str, dict[str, Any]], **options) -> dict[str, Any]:
    """The verdict and every check's effect from the numbers of each side; options as in `bootstrap_interval`."""
    checks = []
    for check in claim.checks:
        effect = Estimate(*map(float, check.effect(numbers, **options)))
        checks.append(
            {
                "name": check.name,
                "expected": check.expectation,
                "measure": check.measure,
                "side": check.side,
                "over": check.over,
                "ratio": check.ratio,
                "threshold": check.threshold,
                "above": check.above is not None,
                "neutral": check.neutral,
                "statistic": check.statistic,
                "effect": list(effect),
                "verdict": check.verdict(effect),
            }
        )
    return {"verdict": claims.worst([c["verdict"] for c in checks]), "checks": checks}


def evidence_of(entry: Entry, claim: Claim, fingerprints: Fingerprints, result: dict[str, Any]) -> dict[str, Any]:
    """What is stored of a result: with the claim's text, the machine, and the fingerprints of the sources as they were before it ran."""
    from polopt.run.run import machine, versions

    return {
        "format": evidence.FORMAT,
        "method": entry.key,
        "family": entry.family,
        "claim": {
            "statement": claim.statement,
            "baseline": claim.baseline,
            "task": claim.task,
            "seeds": claim.seeds,
            "slow": claim.slow,
            "fingerprint": fingerprints.text,
        },
        **result,
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "sources": fingerprints.sources,
    }


def _rounded(values, digits: int):
    """Numbers as JSON holds them, to so many significant digits: the verdict is that of the stored numbers."""
    return [float(f"{v:.{digits}g}") for v in np.asarray(values, np.float64)]


def _curve(x, y, x_title: str = "") -> dict[str, Any]:
    """A curve in at most POINTS points: x (time,), and y (seeds, time)."""
    x, y = binned(np.asarray(x, np.float64), np.asarray(y, np.float64).T, POINTS)
    return {"x title": x_title, "x": _rounded(x, 6), "y": [_rounded(row, 3) for row in y.T]}


# -- the command -------------------------------------------------------------------------------------------------------


def select(names: Sequence[str], directory: Path, *, family: str | None, every: bool, stale: bool, slow: bool) -> list[Entry]:
    """The methods whose claims are meant: those named; else those of a family (or all) that have a claim, slow ones apart."""
    if names:
        if family or every or stale or slow:
            raise ValueError("`polopt verify` takes methods or one of --family, --all, --stale and --slow, not both.")
        found = [registry.find(name) for name in names]
        for entry in found:
            if not claims.exists(entry):
                claims.load(entry)  # says what is missing
        return found
    if not (family or every or stale or slow):
        raise ValueError("`polopt verify` needs to know what to run: a method as in `polopt verify ppo`, --family F, --all, --stale or --slow.")
    entries = registry.entries(family)
    missing = [entry.key for entry in entries if not claims.exists(entry)]
    if missing:
        print(f"without a claim: {', '.join(missing)}")
    found = [entry for entry in entries if entry.key not in missing]
    if stale:
        found = [entry for entry in found if not evidence.standing(entry, directory).current]
    if every and slow:
        return found
    return [entry for entry in found if _is_slow(entry) == slow]


def _is_slow(entry: Entry) -> bool:
    try:
        return claims.load(entry).slow
    except Exception:  # it is run, and then says what is wrong
        return False


def verify(
    entries: Sequence[Entry],
    directory: Path,
    *,
    seeds: int | None = None,
    pilot: bool = False,
    verbose: bool = False,
    json_file: str | None = None,
) -> int:
    """Run the claims of these methods, print every verdict, and store what was run with the claim's own seeds. 1 when something broke."""
    from polopt.run.run import _keep_compiled_programs

    if seeds is not None and seeds < 2:
        raise ValueError(f"--seeds is {seeds}, but an interval needs at least 2 seeds, and one to trust at least 10.")
    _keep_compiled_programs()
    results, broken, counts = [], [], dict.fromkeys(claims.WORST_FIRST[::-1], 0)
    began = time.perf_counter()
    for i, entry in enumerate(entries):
        try:
            fingerprints = evidence.fingerprints_of(entry)
            claim = claims.load(entry)
            count = seeds or claim.seeds
            first = PILOT if pilot else 0
            with _progress(f"{i + 1} of {len(entries)}: {entry.key}", claim.seconds * count / claim.seeds):
                result = run(claim, range(first, first + count))
                found = evidence_of(entry, claim, fingerprints, result)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # one broken claim does not keep the others from being run
            broken.append(entry.key)
            print(f"{entry.key}: BROKEN: {' '.join(str(error).split()) or type(error).__name__}", flush=True)
            if verbose or not isinstance(error, ValueError):
                traceback.print_exc(file=sys.stderr)
            continue
        finally:
            jax.clear_caches()  # a process may map so much memory, of which each compiled program takes some
        counts[result["verdict"]] += 1
        results.append(found)
        print("\n".join(lines(entry, claim, result, verbose)), flush=True)
        if pilot or count != claim.seeds:
            which = f"seeds {first} to {first + count - 1}"
            print(f"  not stored: run on {which}; the claim's verdict is that of the seeds 0 to {claim.seeds - 1}")
        else:
            evidence.write(evidence.path_of(entry, directory), found)
            print(f"  stored in {evidence.path_of(entry, directory)}")
    if len(entries) > 1:
        total = ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + (f", {len(broken)} broken ({', '.join(broken)})" if broken else "")
        print(f"{len(entries)} claims in {_duration(time.perf_counter() - began)}: {total}")
    if json_file:
        Path(json_file).write_text(evidence.dumps(results) + "\n", encoding="utf-8")
        print(f"numbers: {json_file}")
    return 1 if broken else 0


def lines(entry: Entry, claim: Claim, result: dict[str, Any], verbose: bool = False) -> list[str]:
    """A result in words."""
    first, *others = entry.authors.split(", ")
    source = f"{first.split()[-1]}{' et al.' if others else ''} {entry.year}" + (f", arXiv:{entry.arxiv}" if entry.arxiv else "")
    note = ""
    if result["verdict"] == claims.FAILS:
        note = " (examined: see the analysis)" if claim.analysis else " (nobody has looked into why)"
    said = [
        f"{entry.key}: {result['verdict'].upper()}{note}",
        f"  claim     {claim.statement} ({source})",
        f"  baseline  {claim.baseline}",
        f"  task      {claim.task}",
    ]
    width = max(len(c["name"]) for c in result["checks"])
    for c in result["checks"]:
        value, low, high = c["effect"]
        said.append(f"  {c['name']:<{width}}  {value:.4g} [{low:.4g}, {high:.4g}]  expected {c['expected']}: {c['verdict']}")
    kinds = " or ".join(dict.fromkeys(c["statistic"] for c in result["checks"]))
    said.append(f"  ({kinds} over {len(result['seeds'])} paired seeds with its 95 % bootstrap interval; {_duration(result['seconds'])})")
    if claim.analysis and result["verdict"] != claims.HOLDS:
        said.append(f"  analysis  {' '.join(claim.analysis.split())}")
    return said + (_curves(result) if verbose else [])


def _curves(result) -> list[str]:
    """The numbers of every side, and its curves drawn small: the interquartile mean over seeds."""
    said = []
    for name, side in result["sides"].items():
        said.append(f"  {name}")
        for measure, values in side["numbers"].items():
            said.append(f"    {measure}: {', '.join(f'{v:.4g}' for v in values)}")
    names = dict.fromkeys(curve for side in result["sides"].values() for curve in side["curves"])
    for curve in names:
        drawn = {name: _middle(side["curves"][curve]) for name, side in result["sides"].items() if curve in side["curves"]}
        known = np.concatenate([y[np.isfinite(y)] for y in drawn.values()])
        width = max(map(len, drawn))
        said.append(f"  {curve}, from {known.min():.4g} (lowest) to {known.max():.4g} (highest)")
        for name, y in drawn.items():
            said.append(f"    {name:<{width}}  {sparkline(y, known.min(), known.max())}  ends at {y[np.isfinite(y)][-1]:.4g}")
    return said


def _middle(curve) -> np.ndarray:
    y = np.array(curve["y"], np.float64).T
    return np.array([interquartile_mean(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in y])


def sparkline(values, low: float, high: float) -> str:
    """A line of text that rises and falls with the values; a space where there is none."""
    blocks = "▁▂▃▄▅▆▇█"
    scale = (len(blocks) - 1) / ((high - low) or 1.0)
    return "".join(blocks[round((v - low) * scale)] if np.isfinite(v) else " " for v in values)


@contextlib.contextmanager
def _progress(what: str, expected: float):
    """Says what is running and for how long: a live line on a terminal, else one line at the start and one a minute."""
    done = threading.Event()
    began = time.perf_counter()
    live = sys.stderr.isatty()

    def say():
        pause = 0.5 if live else 60.0
        while not done.wait(pause):
            text = f"{what}, {time.perf_counter() - began:.0f} s of about {expected:.0f} s"
            print(f"\r\033[K{text}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)

    print(f"{what}, about {expected:.0f} s on two idle cores", end="" if live else "\n", file=sys.stderr, flush=True)
    ticker = threading.Thread(target=say, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()
        if live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
