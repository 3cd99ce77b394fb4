"""What a run came to: a picture of the learning curve, and one HTML page with everything that was recorded.

The page is a single static file: no network, no script. It reads at phone width, without colour, and in the dark.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from html import escape
from itertools import combinations
from pathlib import Path

import numpy as np

from polopt.run import charts
from polopt.run.charts import Series, compact, line_chart, over_seeds
from polopt.run.records import Record, read_lines
from polopt.run.statistics import Estimate, paired_effect, probability_of_improvement

_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v", "cross": "P"}


def learning_curve(records: Sequence[Record], path) -> None:
    """Write a PNG of return against environment steps, one panel an environment, one line a run.

    The line is the interquartile mean over seeds, the band its 95 % bootstrap interval, the thin lines are the seeds. Filled
    markers are evaluations of the last policy, larger hollow ones of the best. Runs differ in dashes and markers too.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups, names = _by_environment(records), labels(records)
    figure = Figure(figsize=(8, 4.8 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (env, members) in zip(np.ravel(figure.subplots(len(groups), squeeze=False)), groups.items()):
        every = [charts.return_series(records[i], i) for i in members]
        end = max([s.steps.max() for s in every if s.steps.size] + [p.step for s in every for p in s.points] + [1])
        for k, (i, series) in enumerate(zip(members, every)):
            _draw(axes, series, names[i], charts.beside(k, len(members)) * end)
        heading = records[members[0]].title if len(members) == 1 else env
        axes.set_title(_literal(textwrap.fill(heading, 70)), loc="left", fontsize=12)
        axes.set_xlabel(records[members[0]].horizontal)
        axes.set_ylabel("return of an episode")
        axes.set_xlim(0, 1.03 * end)
        axes.xaxis.set_major_formatter(lambda value, _: compact(value))
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if any(p.policy == "best" for s in every for p in s.points):
            axes.plot([], [], "o", color="0.3", mfc="none", ms=9, label="hollow: best policy, not the last")
        # Below the axes a legend of any size hides no curve.
        key = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False, fontsize=9, handlelength=4)
        key.set_title("interquartile mean over seeds with its 95 % interval", prop={"size": 9})
    figure.savefig(path, format="png", dpi=150)


def _draw(axes, series: Series, name: str, shift: float) -> None:
    """One run: band, seeds, line and evaluations, these moved sideways by `shift` steps."""
    colour = charts.COLOURS[series.style % 6]
    dashes = charts.DASHES[(series.style + series.style // 6) % 6]
    sign = _MARKERS[charts.MARKERS[series.style % 6]]
    axes.fill_between(series.steps, series.low, series.high, color=colour, alpha=0.18, linewidth=0)
    for single in series.singles.T:
        axes.plot(series.steps, single, color=colour, alpha=0.3, linewidth=0.6)
    line = dict(color=colour, linewidth=2, linestyle=(0, tuple(d / 2 for d in dashes)) if dashes else "-")
    axes.plot(series.steps, series.middle, **line)
    axes.plot([], [], label=_literal(name), marker=sign, **line)
    for policy, fill, size in (("last", colour, 6), ("best", "none", 9)):
        for point in (p for p in series.points if p.policy == policy):
            x, (value, *ends) = point.step + shift, point.score
            axes.plot([x, x], ends, color=colour, linewidth=1.2)
            axes.plot(x, value, sign, color=colour, mfc=fill, ms=size, zorder=3)


def _literal(text: str) -> str:
    """Text in which matplotlib sees no mathematics."""
    return text.replace("$", r"\$")


def labels(records: Sequence[Record]) -> list[str]:
    """The shortest names that tell the runs apart: method, method and environment, or directory."""
    for choice in (
        [str(r.config["method"]) for r in records],
        [r.title for r in records],
        [r.directory.name for r in records],
    ):
        if len(set(choice)) == len(records):
            return choice
    return [f"{r.directory} ({i + 1})" for i, r in enumerate(records)]


def html_report(records: Sequence[Record], path) -> None:
    """Write one HTML page about one or several runs; runs are compared where they share an environment."""
    if not records:
        raise ValueError("There is no run to report; give at least one run directory.")
    names = labels(records)
    title = records[0].title if len(records) == 1 else f"{len(records)} runs: {', '.join(names)}"
    sections = (
        _header(records, title),
        _commands(records, names),
        _warnings(records, names),
        _evaluations(records, names),
        _comparison(records, names),
        _curves(records, names),
        _samples(records, names),
        _diagnostics(records, names),
        _settings("Hyperparameters", [r.config.get("fields") or {} for r in records], names),
        _settings("Versions and machine", [_origin(r) for r in records], names),
    )
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_css()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )
    Path(path).write_text(page, encoding="utf-8")


def _samples(records: Sequence[Record], names: list[str]) -> str:
    """What language policies wrote at the end after held-out prompts; nothing for policies that act."""
    tables = []
    for record, name in zip(records, names):
        rows = [
            (
                escape(row["prompt"]),
                escape(row["completion"]) + ("" if row["finished"] else " …"),
                "not graded" if row["reward"] is None else number(row["reward"]),
                str(row["seed"]),
            )
            for row in read_lines(record.directory / "samples.jsonl")
        ]
        if rows:
            tables.append(_table(name if len(records) > 1 else "", ("prompt", "completion", "reward", "seed"), rows, kind="settings cards"))
    note = '<p class="quiet">Held-out prompts, and what the last policy drew after them at temperature 1; … where the length cut it.</p>'
    return f"<section><h2>Samples</h2>{note}{''.join(tables)}</section>" if tables else ""


def _header(records: Sequence[Record], title: str) -> str:
    if len(records) > 1:
        environments = ", ".join(_by_environment(records))
        return f'<header><h1>{escape(title)}</h1><p class="quiet">on {escape(environments)}</p></header>'
    (record,) = records
    evaluation = record.evaluation()
    score = over_seeds(evaluation.scores) if evaluation else None
    result = ""
    if score:
        known = int(np.isfinite(evaluation.scores).sum())
        seeds = f"{known} of {_many(len(record.seeds), 'seed')}" if known < len(record.seeds) else _many(known, "seed")
        words = f"interquartile mean over {seeds}; {_interval_words(score)}" if known > 1 else "one seed, so no interval"
        result = f'<p class="result"><strong>{number(score.value)}</strong> return of the last policy <span class="quiet">({words})</span></p>'
    return f'<header><h1>{escape(title)}</h1><p class="quiet">{escape(_summary(record))}</p>{result}</header>'


def _summary(record: Record) -> str:
    """One line: how many seeds and steps, when, how far, how fast."""
    config, status = record.config, record.status
    parts = [_many(len(record.seeds), "seed")]
    if "steps" in config:
        parts.append(f"{config['steps']:,} steps each")
    if "started" in config:
        parts.append(f"started {str(config['started'])[:16].replace('T', ' ')}")
    parts.append(_state(record))
    step, seconds = status.get("step"), status.get("seconds")
    if step and seconds:
        parts.append(f"{compact(float(f'{step * len(record.seeds) / seconds:.3g}'))} steps a second over all seeds")
    return ", ".join(parts)


def _state(record: Record) -> str:
    status = record.status
    state = str(status.get("state", "state unknown"))
    if state == "running":
        state = "running or killed"  # a killed process cannot change its own state
    if state != "finished" and status.get("step") is not None:
        state += f" at step {status['step']:,}"
    if status.get("seconds"):
        state += f" after {_duration(status['seconds'])} of training"
    return state


def _warnings(records: Sequence[Record], names: list[str]) -> str:
    """What a reader must know before trusting the numbers: stopped seeds, a run that did not finish, damaged lines."""
    found = []
    for record, name in zip(records, names):
        prefix = f"{name}: " if len(records) > 1 else ""
        found += [f"{prefix}Seed {seed} stopped: {why}." for seed, why in record.stopped.items()]
        if record.status.get("state") != "finished":
            found.append(f"{prefix}The run is not finished ({_state(record)}); its numbers are preliminary.")
        if record.unreadable:
            found.append(f"{prefix}The records hold {_many(record.unreadable, 'line')} that could not be read, left out here.")
    items = "".join(f"<li>{escape(text)}</li>" for text in found)
    return f'<section class="warnings" aria-label="Warnings"><ul>{items}</ul></section>' if found else ""


def _evaluations(records: Sequence[Record], names: list[str]) -> str:
    if len(records) == 1:
        return f"<section><h2>Evaluation</h2>{_seed_table(records[0])}</section>"
    rows = []
    for i, (record, name) in enumerate(zip(records, names)):
        cells = [f"{charts.line_sample(i)} {escape(name)}"]
        for policy in ("last", "best"):
            evaluation = record.evaluation(policy)
            score = over_seeds(evaluation.scores) if evaluation else None
            cells += [number(score.value), _interval(score)] if score else ["–", "–"]
        known = sum(int(np.isfinite(e.scores).sum()) for e in [record.evaluation()] if e)
        rows.append((*cells, f"{known} of {len(record.seeds)}"))
    caption = "Return of a policy: interquartile mean over seeds, with its 95 % bootstrap interval."
    head = ("run", "last policy", "its interval", "best policy", "its interval", "seeds")
    details = "".join(f"<details><summary>Seeds of {escape(n)}</summary>{_seed_table(r)}</details>" for r, n in zip(records, names))
    return f"<section><h2>Evaluation</h2>{_table(caption, head, rows, kind='cards')}{details}</section>"


def _seed_table(record: Record) -> str:
    """Return by seed for the last and the best policy, and their mean, interquartile mean and interval."""
    found = {policy: e for policy in ("last", "best") if (e := record.evaluation(policy))}
    if not found:
        return "<p>No evaluation has been recorded yet.</p>"
    columns = [e.scores for e in found.values()]
    stopped = record.stopped
    rows = [(f"{seed}{' (stopped)' * (seed in stopped)}", *(number(c[i]) for c in columns)) for i, seed in enumerate(record.seeds)]
    none = Estimate(math.nan, math.nan, math.nan)
    estimates = [over_seeds(c) or none for c in columns]
    rows.append(("mean", *(number(float(np.mean(c[np.isfinite(c)]))) if np.isfinite(c).any() else "–" for c in columns)))
    rows.append(("interquartile mean", *(number(e.value) for e in estimates)))
    rows.append(("95 % interval from", *(number(e.low) for e in estimates)))
    rows.append(("to", *(number(e.high) for e in estimates)))
    episodes = sorted({len(r) for e in found.values() for r in e.returns})
    when = ", ".join(f"{policy} at step {e.step:,}{'' if e.final else ' (not final)'}" for policy, e in found.items())
    caption = f"Mean return over {' or '.join(map(str, episodes))} episodes a seed. Evaluated: {when}."
    return _table(caption, ("seed", *(f"{policy} policy" for policy in found)), rows, summary_rows=4)


def _comparison(records: Sequence[Record], names: list[str]) -> str:
    """Every pair of runs on the same environment: probability of improvement and the difference within a seed."""
    rows = []
    for members in _by_environment(records).values():
        scores = {i: e.scores for i in members if (e := records[i].evaluation()) and np.isfinite(e.scores).any()}
        for i, j in combinations(scores, 2):
            x, y = scores[i][np.isfinite(scores[i])], scores[j][np.isfinite(scores[j])]
            better = probability_of_improvement(x, y)
            pair = f"{names[i]} over {names[j]}"
            bar = charts.interval_bar(better, 0, 1, 0.5, f"{pair}: {better.value:.2f}, {_interval_words(better)}")
            effect = _paired(records[i], scores[i], records[j], scores[j])
            chance = f"{better.value:.2f}", f"{better.low:.2f} to {better.high:.2f}" if np.isfinite(better.low) else _interval(better)
            difference = number(effect.value, "+", max(map(abs, effect))), _interval(effect, "+")
            rows.append((escape(pair), *chance, bar, *difference, escape(_verdict(better, len(x), len(y), names[i], names[j]))))
    if not rows:
        return ""
    caption = (
        "Last policies. The probability that a seed of the first run returns more than a seed of the second, ties counted half (0.5: no"
        " difference), and the difference of return between equal seeds (interquartile mean), with 95 % bootstrap intervals."
    )
    head = ("pair", "probability", "its interval", "from 0 to 1", "difference", "its interval", "reading")
    return f"<section><h2>Comparison</h2>{_table(caption, head, rows, kind='cards')}</section>"


def _paired(first: Record, x: np.ndarray, second: Record, y: np.ndarray) -> Estimate:
    """The difference over the seeds that both runs have a score for; nan when there are none."""
    ys = dict(zip(second.seeds, y))
    pairs = np.array([(a, ys[seed]) for seed, a in zip(first.seeds, x) if seed in ys]).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    return paired_effect(*pairs.T) if len(pairs) else Estimate(np.nan, np.nan, np.nan)


def _verdict(better: Estimate, seeds_x: int, seeds_y: int, first: str, second: str) -> str:
    """Which run is better, in words; never where even complete separation would be likelier than 5 % by chance."""
    if 2 / math.comb(seeds_x + seeds_y, seeds_x) > 0.05:
        return "too few seeds"
    if better.low > 0.5:
        return f"{first} is better"
    return f"{second} is better" if better.high < 0.5 else "undecided"


def _curves(records: Sequence[Record], names: list[str]) -> str:
    figures = []
    for env, members in _by_environment(records).items():
        series = [charts.return_series(records[i], i) for i in members]
        if not any(np.isfinite(s.middle).any() or s.points for s in series):
            figures.append(f"<p>No return has been recorded on {escape(env)} yet.</p>")
            continue
        along = records[members[0]].horizontal
        label = f"Learning curves on {env}: return against {along.replace(' per seed', '')} for {', '.join(names[i] for i in members)}"
        # Two drawings, of which the page shows the one that fits, so that the writing keeps its size.
        wide = line_chart(series, 900, 380, label, along)
        narrow = line_chart(series, 360, 290, label, along)
        key = _legend(names, members) if len(records) > 1 else ""
        pictures = f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
        figures.append(f"<figure><figcaption>{escape(env)}: return of an episode</figcaption>{key}{pictures}</figure>")
    text = (
        "The strong line is the interquartile mean over seeds of the return during training, the band its 95 % bootstrap interval, thin lines are"
        " seeds. Filled marks are evaluations of the last policy, larger hollow marks of the best one, with their intervals."
        f" Long runs are averaged in {charts.BINS} pieces."
    )
    return f'<section><h2>Learning curves</h2>{"".join(figures)}<p class="quiet">{text}</p></section>'


def _diagnostics(records: Sequence[Record], names: list[str]) -> str:
    figures = []
    along = " or ".join(dict.fromkeys(r.horizontal for r in records))
    for metric in dict.fromkeys(name for r in records for name in r.metrics if name != "return"):
        series = [s for i, r in enumerate(records) if (s := charts.metric_series(r, metric, i))]
        if not series:
            continue
        picture = line_chart(series, 340, 190, f"{metric} against {along.replace(' per seed', '')}")
        note = ' <span class="quiet">(spikes cut off)</span>' if charts.limits(series)[2] else ""
        figures.append(f"<figure><figcaption>{escape(metric)}{note}</figcaption>{picture}</figure>")
    if not figures:
        return ""
    text = f"Against {along}. The line is the interquartile mean over seeds; the band reaches from the lowest to the highest seed."
    key = _legend(names, range(len(records))) if len(records) > 1 else ""
    return f'<section><h2>Diagnostics</h2><p class="quiet">{text}</p>{key}<div class="grid-of-charts">{"".join(figures)}</div></section>'


def _legend(names: list[str], members) -> str:
    items = "".join(f"<li>{charts.line_sample(i)} {escape(names[i])}</li>" for i in members)
    return f'<ul class="legend">{items}</ul>'


def _commands(records: Sequence[Record], names: list[str]) -> str:
    """The command of each run."""
    blocks = []
    for record, name in zip(records, names):
        heading = "Command" if len(records) == 1 else escape(name)
        command = record.config.get("command") or "not recorded"
        blocks.append(f"<h3>{heading}</h3><pre><code>{escape(str(command))}</code></pre>")
    return f'<section aria-label="Commands">{"".join(blocks)}</section>'


def _origin(record: Record) -> dict:
    """Where the numbers come from, as names and values."""
    config, status = record.config, record.status
    found = {"directory": str(record.directory), "started": config.get("started"), "state": _state(record)}
    found["seeds"] = config["seeds"]
    for key, seconds in (("training", status.get("seconds")), ("compiling", status.get("compile_seconds"))):
        found[key] = None if seconds is None else _duration(seconds)
    for group in ("evaluation", "machine", "versions"):
        found |= {f"{group}: {key}": value for key, value in (config.get(group) or {}).items()}
    return found


def _settings(heading: str, values: Sequence[dict], names: list[str]) -> str:
    """Named values as a table; for several runs what differs has a column a run, and what is the same is said once."""
    keys = dict.fromkeys(key for v in values for key in v)
    texts = {key: [escape(_value(v[key])) if key in v else "–" for v in values] for key in keys}
    differing = [(escape(key), *row) for key, row in texts.items() if len(set(row)) > 1]
    same = [(escape(key), row[0]) for key, row in texts.items() if len(set(row)) == 1]
    tables = []
    if differing:
        tables.append(_table("What differs.", ("name", *map(escape, names)), differing, kind="settings cards"))
    if same:
        caption = "The same in all runs." if len(values) > 1 else ""
        tables.append(_table(caption, ("name", "value"), same, kind="settings"))
    return f"<section><h2>{heading}</h2>{''.join(tables)}</section>" if tables else ""


def _table(caption: str, head, rows, summary_rows: int = 0, kind: str = "") -> str:
    """An HTML table; cells are HTML already, the first of each row is its header, the last `summary_rows` rows are set apart.

    Of the kind "cards" each row becomes a block on a phone; the roles keep it a table for those who listen to it.
    """
    top = "".join(f'<th scope="col" role="columnheader">{cell}</th>' for cell in head)
    body = []
    for k, (first, *cells) in enumerate(rows):
        apart = ' class="summary"' if k >= len(rows) - summary_rows else ""
        inner = "".join(f'<td role="cell" data-label="{name}">{cell}</td>' for name, cell in zip(head[1:], cells))
        body.append(f'<tr role="row"{apart}><th scope="row" role="rowheader">{first}</th>{inner}</tr>')
    words = f'<p class="quiet">{escape(caption)}</p>' if caption else ""
    named = f' aria-label="{escape(caption)}"' if caption else ""
    return (
        f'{words}<div class="scroll"><table class="{kind}" role="table"{named}><thead role="rowgroup"><tr role="row">{top}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(body)}</tbody></table></div>'
    )


def _by_environment(records: Sequence[Record]) -> dict[str, list[int]]:
    """The positions of the runs on each environment."""
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(str(record.config["env"]), []).append(i)
    return groups


def number(value: float, sign: str = "", scale: float | None = None) -> str:
    """As many decimals as give `scale` (the value itself if not given) four digits: 499.9, -1203, 0.0153; a dash for nan."""
    if not math.isfinite(value):
        return "–"
    size = abs(value if scale is None or not math.isfinite(scale) else scale)
    if size and not 1e-3 <= size < 1e7:
        return f"{value:{sign}.3e}"
    digits = 3 if size == 0 else min(max(3 - math.floor(math.log10(size)), 0), 6)
    return f"{value:{sign}.{digits}f}"


def _interval(e: Estimate, sign: str = "") -> str:
    if not math.isfinite(e.low):
        return "none"
    scale = max(map(abs, e))
    return f"{number(e.low, sign, scale)} to {number(e.high, sign, scale)}"


def _interval_words(e: Estimate) -> str:
    return f"95 % interval {_interval(e)}" if math.isfinite(e.low) else "no interval with one seed"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _value(value) -> str:
    """A setting in plain words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "empty"
    return str(value)


_DARK = ("#62b4ee", "#ff9c5b", "#41cfa5", "#e6a2ce", "#dfbf52", "#b9c0ca")


def _css() -> str:
    def palette(colours):
        return "".join(f"--r{i}:{c};" for i, c in enumerate(colours))

    runs = "".join(f".r{i}{{--c:var(--r{i})}}" for i in range(6))
    return (
        ":root{color-scheme:light dark;--ink:#16191d;--quiet:#59616b;--paper:#fff;--rule:#d9dde2;--soft:#f3f5f7;--warn:#8a4b00;"
        f"{palette(charts.COLOURS)}}}"
        "@media(prefers-color-scheme:dark){:root{--ink:#e7eaee;--quiet:#a4adb8;--paper:#14171b;--rule:#363c44;--soft:#1e2329;--warn:#ffb86b;"
        f"{palette(_DARK)}}}}}{runs}{_RULES}"
    )


_RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3em;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.2em 0 .6em}
h3{font-size:1rem;margin:1em 0 .3em}
p{margin:.4em 0}
.quiet{color:var(--quiet);font-size:.9rem}
.result{margin-top:1em}
.result strong{font-size:2rem;line-height:1;margin-right:.15em;font-variant-numeric:tabular-nums}
.warnings{border-left:4px solid var(--warn);background:var(--soft);padding:.5em 1em;margin-top:1.4em}
.warnings ul{margin:0;padding-left:1.1em}
.scroll{overflow-x:auto}
table{border-collapse:collapse;min-width:min(100%,36rem);font-variant-numeric:tabular-nums}
th,td{padding:.3em 1.1em .3em 0;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule);vertical-align:middle}
th:first-child{text-align:left}
th:last-child,td:last-child{padding-right:0}
th{font-weight:500}
thead th{color:var(--quiet);font-size:.9rem;border-bottom:2px solid var(--rule)}
tr.summary th,tr.summary td{font-weight:600}
tr.summary:nth-last-child(4) th,tr.summary:nth-last-child(4) td{border-top:2px solid var(--rule)}
.settings td,.settings th{text-align:left;white-space:normal;overflow-wrap:anywhere;padding-top:.2em;padding-bottom:.2em;vertical-align:top}
.cards th[scope=row]{white-space:normal;overflow-wrap:anywhere;min-width:7rem}
.scroll+p{margin-top:1.4em}
details{margin:.8em 0}
summary{cursor:pointer}
figure+figure{margin-top:1.6em}
pre{background:var(--soft);padding:.8em 1em;margin:.4em 0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
figure{margin:0}
figcaption{font-weight:500;margin-bottom:.2em;overflow-wrap:anywhere}
.legend{list-style:none;margin:.3em 0 .6em;padding:0;display:flex;flex-wrap:wrap;gap:.2em 1.4em}
svg{display:block;width:100%;height:auto}
svg.sample{display:inline-block;width:48px;height:16px;vertical-align:-2px}
svg.interval{display:inline-block;width:120px;height:24px;vertical-align:middle}
svg text{font-size:12px;fill:var(--quiet)}
.wide svg text{font-size:13px}
.grid,.axis{fill:none;stroke:var(--rule)}
.axis{stroke:var(--quiet)}
.line{fill:none;stroke:var(--c);stroke-width:2.2;stroke-linejoin:round}
.line:not([stroke-dasharray]){stroke-linecap:round}
.single{fill:none;stroke:var(--c);stroke-width:.7;opacity:.4}
.band{fill:var(--c);opacity:.18}
.whisker{fill:none;stroke:var(--c);stroke-width:1.4}
.mark{fill:var(--c);stroke:var(--paper);stroke-width:1}
.hollow{fill:none;stroke:var(--c);stroke-width:1.6}
.bar{stroke:var(--ink);stroke-width:3;fill:none}
.dot{fill:var(--ink)}
.grid-of-charts figure{margin:0}
.grid-of-charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,290px),1fr));gap:1.4em 1.6em}
.wide{display:none}
@media(min-width:640px){.wide{display:block}.narrow{display:none}}
@media(max-width:639px){
th,td{padding-right:.6em}
th[scope=row]{white-space:normal}
.cards,.cards tbody,.cards tr,.cards th[scope=row]{display:block}
.cards thead{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
.cards tr{border-bottom:1px solid var(--rule);padding:.5em 0}
.cards th[scope=row]{border:0;padding:0;font-weight:600}
.cards td{display:flex;justify-content:space-between;gap:1em;border:0;padding:.1em 0;text-align:right;white-space:normal}
.cards td::before{content:attr(data-label);color:var(--quiet);flex:none}
}
"""
