"""How every method's claim stands, for people: a table in the terminal, static pages, and the totals in the README.

The pages need no server and no network. A few lines of script filter the table; without them everything is still there.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from polopt.claims.evidence import Standing
from polopt.run import charts
from polopt.run.report import _css, _settings, _table, number
from polopt.run.statistics import Estimate, estimate

SIGNS = {"holds": "✓", "fails": "✗", "inconclusive": "?", None: "–"}  # a verdict is read without its colour
MARKERS = "<!-- evidence: written by polopt evidence --readme -->", "<!-- evidence: end -->"


# -- in the terminal and the README ------------------------------------------------------------------------------------


def table(found: Sequence[Standing]) -> list[str]:
    """A line a method: verdict, the check that decides it, and why it is stale."""
    width = max((len(s.entry.key) for s in found), default=0)
    lines, family = [], None
    for s in found:
        if s.entry.family != family:
            family = s.entry.family
            lines.append(family)
        line = f"  {SIGNS[s.verdict]} {s.entry.key:<{width}}  {s.words}"
        if s.stored:
            check = deciding(s.stored)
            line += f"; {check['name']} {_effect(check)}, expected {check['expected']}"
        lines.append(line)
        if s.stored and s.stale:
            lines.append(f"    {' ' * width}  {s.why_stale}")
    return lines


def count(found: Sequence[Standing]) -> dict[str, int]:
    """How many stand how. A stale verdict counts as stale alone."""
    current = [s for s in found if s.current]
    counts = {verdict: sum(s.verdict == verdict for s in current) for verdict in ("holds", "fails", "inconclusive")}
    examined = sum(s.verdict == "fails" and s.examined for s in current)
    return counts | {"examined": examined, "stale": sum(s.stored is not None and s.stale for s in found)}


def totals(found: Sequence[Standing]) -> str:
    n = count(found)
    without = len(found) - n["holds"] - n["fails"] - n["inconclusive"] - n["stale"]
    fails = f"{n['fails']} fail" + (f" ({n['examined']} examined)" if n["fails"] else "")
    return f"{len(found)} methods: {n['holds']} hold, {fails}, {n['inconclusive']} inconclusive, {n['stale']} stale, {without} without evidence"


def update_readme(found: Sequence[Standing], path) -> None:
    """Put the totals between the markers. ValueError when they are not there."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    begin, end = MARKERS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ValueError(f"{path} has no place for the totals; put the lines {begin!r} and {end!r} where they should stand, once each.")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    path.write_text(f"{before}{begin}\nThe claims of {totals(found)}.\n{end}{after}", encoding="utf-8")


def deciding(stored: dict[str, Any]) -> dict[str, Any]:
    """The first check with the claim's verdict."""
    return next(c for c in stored["checks"] if c["verdict"] == stored["verdict"])


def _effect(check) -> str:
    value, low, high = check["effect"]
    scale = max(map(abs, check["effect"]))
    return f"{number(value, scale=scale)} [{number(low, scale=scale)}, {number(high, scale=scale)}]"


# -- pages -------------------------------------------------------------------------------------------------------------


def write(found: Sequence[Standing], directory) -> Path:
    """Write `index.html` and a page a method; the index is returned."""
    directory = Path(directory)
    tests = oracle_tests([s.entry.key for s in found])
    for s in found:
        _write(directory / s.entry.family / f"{s.entry.key}.html", s.entry.title, _method(s, tests[s.entry.key]))
    index = directory / "index.html"
    _write(index, "polopt: what the papers claim, and what holds", _index(found))
    return index


def _write(path: Path, title: str, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_css()}{_RULES}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _index(found: Sequence[Standing]) -> str:
    sections = []
    for family in dict.fromkeys(s.entry.family for s in found):
        rows = [_row(s) for s in found if s.entry.family == family]
        head = ("method", "verdict", "deciding check", "effect")
        sections.append(f'<section class="family"><h2>{escape(_words(family))}</h2>{_table("", head, rows, kind="cards methods")}</section>')
    options = "".join(f'<option value="{escape(v)}">{escape(v)}</option>' for v in ("holds", "fails", "inconclusive", "stale", "not run", "no claim"))
    families = "".join(f"<option>{escape(_words(f))}</option>" for f in dict.fromkeys(s.entry.family for s in found))
    text = (
        "Every method carries a claim of its paper as code, run against a named baseline on the same seeds. A check holds when the whole"
        " 95 % bootstrap interval of the effect is on the right side of the threshold (the stroke across the axis), fails when the whole"
        " interval is on the wrong side, and is inconclusive otherwise; a claim is as good as its worst check. Stale means that the code"
        " has changed since."
    )
    return (
        f'<header><h1>What the papers claim, and what holds</h1><p class="result">{escape(totals(found))}</p>'
        f'<p class="quiet">{escape(text)}</p></header>'
        '<form class="filter" role="search" hidden><label>search <input type="search" id="words"></label>'
        f'<label>family <select id="family"><option value="">all</option>{families}</select></label>'
        f'<label>verdict <select id="verdict"><option value="">all</option>{options}</select></label>'
        '<output id="shown" aria-live="polite"></output></form>'
        f"{''.join(sections)}<script>{_SCRIPT}</script>"
    )


def _row(s: Standing) -> tuple[str, ...]:
    entry = s.entry
    name = f'<a href="{entry.family}/{entry.key}.html">{escape(entry.key)}</a> <span class="quiet">{escape(entry.title)} ({entry.year})</span>'
    if not s.stored:
        return name, _badge(s), "–", "–"
    check = deciding(s.stored)
    others = f' <span class="quiet">(one of {len(s.stored["checks"])})</span>' if len(s.stored["checks"]) > 1 else ""
    decides = f"<span>{escape(check['name'])}, {escape(check['expected'])}{others}</span>"
    return name, _badge(s), decides, f"<span>{_bar(check)}<br>{escape(_effect(check))}</span>"


def _badge(s: Standing) -> str:
    states = [s.verdict or s.words] + (["stale"] if s.stored and s.stale else [])
    kind = f"{s.verdict or 'none'}{' stale' if s.stored and s.stale else ''}"
    return f'<span class="verdict {kind}" data-states="{" ".join(x.replace(" ", "-") for x in states)}">{SIGNS[s.verdict]} {escape(s.words)}</span>'


def _bar(check) -> str:
    """The effect and its interval on an axis that shows the threshold, and where both sides are equal if that is near."""
    numbers = [*check["effect"], check["threshold"]]
    scale = math.log if check["neutral"] == 1.0 else float  # ratios are as far below 1 as above it
    value, low, high, threshold = map(scale, numbers)
    ends = [value, low, high, threshold] + ([scale(check["neutral"])] if check["neutral"] is not None else [])
    margin = 0.08 * (max(ends) - min(ends)) or 1.0
    label = f"{check['name']}: {_effect(check)}, expected {check['expected']}: {check['verdict']}"
    return charts.interval_bar(Estimate(value, low, high), min(ends) - margin, max(ends) + margin, threshold, label)


def _method(s: Standing, tests: list[tuple[str, str]]) -> str:
    entry = s.entry
    source = f'<a href="https://arxiv.org/abs/{entry.arxiv}">arXiv:{entry.arxiv}</a>' if entry.arxiv else ""
    sections = [
        f'<p><a href="../index.html">all methods</a></p><header><h1>{escape(entry.title)}</h1>'
        f'<p class="quiet">{escape(entry.key)}, {escape(_words(entry.family))}. {escape(entry.authors)}. {entry.year}. {source}</p>'
        f'<p class="result">{_badge(s)}</p></header>'
    ]
    if s.stored and s.stale:
        sections.append(f'<section class="warnings" aria-label="Warnings"><p>This evidence is stale: {escape(s.why_stale)}.</p></section>')
    if s.stored:
        sections += [_claim(s.stored), _checks(s.stored)]
    if s.analysis:
        sections.append(f"<section><h2>Analysis</h2><p>{escape(s.analysis)}</p></section>")
    elif s.verdict == "fails":
        sections.append("<section><h2>Analysis</h2><p>Nobody has looked into why this claim fails.</p></section>")
    sections.append(f"<section><h2>Run it</h2><pre><code>polopt verify {escape(entry.key)} -v</code></pre></section>")
    sections.append(_equations(entry.docstring))
    if s.stored:
        sections += [_curves(s.stored), _numbers(s.stored)]
        names = list(s.stored["sides"])
        sections.append(_settings("Both sides", [s.stored["sides"][name]["configuration"] for name in names], names))
    sections.append(_tests(tests))
    if s.stored:
        sections.append(_origin(s))
    return "\n".join(section for section in sections if section)


def _equations(docstring: str) -> str:
    """What follows the title and source in a method's docstring: prose as paragraphs, indented lines as they are."""
    blocks = []
    for block in re.split(r"\n\s*\n", docstring)[2:]:
        for indented, lines in itertools.groupby(block.splitlines(), key=lambda line: line.startswith("  ")):
            text = "\n".join(lines)
            blocks.append(f'<pre class="equations">{escape(textwrap.dedent(text))}</pre>' if indented else f"<p>{escape(text)}</p>")
    return f"<section><h2>The method</h2>{''.join(blocks)}</section>" if blocks else ""


def _claim(stored) -> str:
    claim = stored["claim"]
    rows = [("claim", claim["statement"]), ("baseline", claim["baseline"]), ("task", claim["task"]), ("seeds", f"{claim['seeds']}, from 0 on")]
    items = "".join(f"<dt>{name}</dt><dd>{escape(str(text))}</dd>" for name, text in rows)
    return f'<section><h2>Claim</h2><dl class="claim">{items}</dl></section>'


def _checks(stored) -> str:
    rows = []
    for c in stored["checks"]:
        badge = f'<span class="verdict {c["verdict"]}">{SIGNS[c["verdict"]]} {c["verdict"]}</span>'
        rows.append((escape(c["name"]), escape(c["expected"]), escape(_effect(c)), _bar(c), badge))
    kinds = " or ".join(dict.fromkeys(c["statistic"] for c in stored["checks"]))
    caption = (
        f"Effect: {kinds} over paired seeds with its 95 % bootstrap interval; x - y is a difference, x / y a ratio within a seed."
        " The stroke across the axis is the threshold; ratios stand on a logarithmic axis."
    )
    return f"<section><h2>Checks</h2>{_table(caption, ('check', 'expected', 'effect', 'on its axis', 'verdict'), rows, kind='cards')}</section>"


def _curves(stored) -> str:
    sides = stored["sides"]
    figures = []
    for curve in dict.fromkeys(name for side in sides.values() for name in side["curves"]):
        drawn = {name: side["curves"][curve] for name, side in sides.items() if curve in side["curves"]}
        series = [_series(values, style) for style, values in enumerate(drawn.values())]
        title = next(iter(drawn.values()))["x title"]
        label = f"{curve}{f' against {title}' if title else ''} for {', '.join(drawn)}"
        key = "".join(f"<li>{charts.line_sample(i)} {escape(name)}</li>" for i, name in enumerate(drawn))
        wide, narrow = (charts.line_chart(series, *size, label, title) for size in ((900, 360), (360, 280)))
        pictures = f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
        figures.append(f'<figure><figcaption>{escape(curve)}</figcaption><ul class="legend">{key}</ul>{pictures}</figure>')
    if not figures:
        return ""
    text = "The strong line is the interquartile mean over seeds, the band its 95 % bootstrap interval, thin lines are seeds."
    return f'<section><h2>Curves</h2>{"".join(figures)}<p class="quiet">{text}</p></section>'


def _series(curve, style: int) -> charts.Series:
    singles = np.array(curve["y"], np.float64).T
    finite = [row[np.isfinite(row)] for row in singles]
    rows = [estimate(row, resamples=charts.BAND_RESAMPLES) if row.size else (np.nan,) * 3 for row in finite]
    return charts.Series(style, np.array(curve["x"]), *np.array(rows, np.float64).T, singles)


def _numbers(stored) -> str:
    columns = {f"{measure}: {name}": side["numbers"][measure] for name, side in stored["sides"].items() for measure in side["numbers"]}
    rows = [(escape(name), *(number(v) for v in values)) for name, values in columns.items()]
    head = ("measure and side", *(f"seed {seed}" for seed in stored["seeds"]))
    return f"<section><h2>Numbers</h2><details><summary>of every seed</summary>{_table('', head, rows)}</details></section>"


def _tests(tests) -> str:
    """Test names are sentences, and read as such."""
    if not tests:
        return ""
    groups = []
    for file, members in itertools.groupby(tests, key=lambda test: test[0]):
        items = "".join(f"<li>{escape(_words(name.removeprefix('test_')))}</li>" for _, name in members)
        groups.append(f'<h3><code>{escape(file)}</code></h3><ul class="tests">{items}</ul>')
    return f'<section><h2>Oracle tests</h2><p class="quiet">Tests that name this method.</p>{"".join(groups)}</section>'


def _origin(s: Standing) -> str:
    stored = s.stored
    facts = {"day": stored["day"], "duration": f"{stored['seconds']:g} s"}
    for group in ("machine", "versions"):
        facts |= {f"{group}: {key}": value for key, value in stored[group].items()}
    paths = sorted({*stored["sources"], *s.changed})
    files = "".join(f"<li><code>{escape(path)}</code>{' (changed since)' if path in s.changed else ''}</li>" for path in paths)
    sources = f"<details><summary>{len(stored['sources'])} sources that the numbers depend on</summary><ul class=\"tests\">{files}</ul></details>"
    return _settings("Where the numbers come from", [facts], [s.entry.key]) + sources


def oracle_tests(keys: Sequence[str], root: Path = Path("tests")) -> dict[str, list[tuple[str, str]]]:
    """For every key the tests that name it, as (file, function); none where there is no folder of tests.

    What treats all methods alike, the contracts, and the tests of claims are left out.
    """
    found: dict[str, list[tuple[str, str]]] = {key: [] for key in keys}
    patterns = {key: re.compile(rf"(?<![a-z0-9]){re.escape(key)}(?![a-z0-9])") for key in keys}
    for file in sorted(root.rglob("test_*.py")):
        if file.relative_to(root).parts[0] in ("contracts", "claims"):
            continue
        text = file.read_text(encoding="utf-8")
        lines = text.lower().splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                words = "\n".join(lines[start - 1 : node.end_lineno])
                for key, pattern in patterns.items():
                    if file.stem == f"test_{key}" or pattern.search(words):
                        found[key].append((file.as_posix(), node.name))
    return found


def _words(name: str) -> str:
    return name.replace("_", " ")


_RULES = """
a{color:inherit;text-underline-offset:.15em}
.verdict{display:inline-block;padding:.05em .5em;border:1.5px solid currentColor;border-radius:.3em;font-weight:600;white-space:nowrap}
.verdict.holds{color:#00663f}
.verdict.fails{color:#a5241c;border-width:3px;border-style:double}
.verdict.inconclusive{color:var(--warn);border-style:dashed}
.verdict.stale{color:var(--quiet);font-weight:400}
.verdict.none{color:var(--quiet);border-style:dotted}
@media(prefers-color-scheme:dark){.verdict.holds{color:#52d39b}.verdict.fails{color:#ff9a8f}}
.filter{display:flex;flex-wrap:wrap;gap:.6em 1.2em;align-items:end;background:var(--soft);padding:.7em .9em;margin-top:1.4em}
.filter{position:sticky;top:0;z-index:1}
.filter[hidden]{display:none}
.filter input,.filter select{font:inherit;display:block;max-width:100%;padding:.2em .4em}
.filter input,.filter select{background:var(--paper);color:var(--ink);border:1px solid var(--quiet);border-radius:.2em}
.methods{width:100%}
.methods th[scope=row]{white-space:normal;min-width:14rem;padding-right:1.4em}
.methods td:nth-child(3){white-space:normal;min-width:12rem}
.methods td,.methods thead th{text-align:left}
pre.equations{font-size:.78rem;white-space:pre;overflow-x:auto;overflow-wrap:normal}
.claim{display:grid;grid-template-columns:auto 1fr;gap:.3em 1.2em;margin:0}
.claim dt{color:var(--quiet)}
.claim dd{margin:0}
.tests{padding-left:1.2em;margin:.3em 0;overflow-wrap:anywhere}
h3 code{font-size:.85rem;font-weight:400;overflow-wrap:anywhere}
.result .verdict{font-size:1.2rem}
p.result{font-weight:600}
@media(max-width:639px){
.claim{display:block}
.claim dd{margin:0 0 .6em}
.methods th[scope=row]{min-width:0}
.filter{position:static}
}
"""

_SCRIPT = """
const form = document.querySelector('.filter'), words = document.getElementById('words');
const family = document.getElementById('family'), verdict = document.getElementById('verdict');
const rows = [...document.querySelectorAll('.family tbody tr')];
function filter() {
  const wanted = words.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const home = row.closest('section').querySelector('h2').textContent;
    const text = (home + ' ' + row.textContent).toLowerCase();
    const states = row.querySelector('.verdict').dataset.states.split(' ');
    const fits = wanted.every(w => text.includes(w)) && (!family.value || family.value === home)
      && (!verdict.value || states.includes(verdict.value.replace(' ', '-')));
    row.hidden = !fits;
    row.style.display = fits ? '' : 'none';
    shown += fits;
  }
  for (const section of document.querySelectorAll('.family'))
    section.hidden = ![...section.querySelectorAll('tbody tr')].some(row => !row.hidden);
  document.getElementById('shown').textContent = shown + ' of ' + rows.length;
}
words.value = decodeURIComponent(location.hash.slice(1));  // index.html#ppo is a search that can be linked to
form.hidden = false;
form.addEventListener('input', filter);
form.addEventListener('submit', event => event.preventDefault());
filter();
"""
