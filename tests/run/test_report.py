"""The picture and the page: what they hold, in pieces that a reader would look for."""

import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from polopt.run import charts
from polopt.run.records import append_line, read_record
from polopt.run.report import html_report, labels, learning_curve, number

VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """A strict reader: every element that opens is closed in turn. Collects the text, the tables' rows and the tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.rows, self.cell = [], [], [], [], None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def row(self, first):
        return next(r for r in self.rows if r and r[0].strip() == first)


@pytest.fixture
def page(tmp_path):
    def make(*directories):
        path = tmp_path / "report.html"
        html_report([read_record(d) for d in directories], path)
        return Page(path.read_text(encoding="utf-8"))

    return make


def test_the_page_of_one_run(make_run, page):
    p = page(make_run("one"))
    assert ("html", {"lang": "en"}) in p.tags
    assert "ppo on CartPole-v1" in p.text and "polopt train ppo --env 'CartPole-v1'" in p.text
    assert "102.0 return of the last policy (interquartile mean over 5 seeds; 95 % interval" in p.text
    assert p.row("0") == ["0", "100.0", "101.0"]
    assert p.row("mean") == ["mean", "102.0", "103.0"]
    assert p.row("interquartile mean") == ["interquartile mean", "102.0", "103.0"]
    low, high = float(p.row("95 % interval from")[1]), float(p.row("to")[1])
    assert 100 <= low < 102 < high <= 104
    assert p.row("learning_rate") == ["learning_rate", "0.0003"]
    assert p.row("network.hidden") == ["network.hidden", "64, 64"]
    assert p.row("target_kl") == ["target_kl", "none"]
    assert p.row("versions: jax") == ["versions: jax", "0.10.2"]
    assert p.row("machine: cpu") == ["machine: cpu", "a machine"]
    assert "10k steps a second over all seeds" in p.text  # 20,000 steps of five seeds in 10 s
    assert "Comparison" not in p.text and "stopped" not in p.text


def test_the_page_needs_nothing_else(make_run, tmp_path):
    html_report([read_record(make_run("one"))], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|<link|@import|src=", text)
    assert text.count("<svg") >= 5 and "prefers-color-scheme:dark" in text and "width=device-width" in text


def test_every_diagnostic_has_a_picture_with_a_name(make_run, page):
    p = page(make_run("one"))
    pictures = [a["aria-label"] for tag, a in p.tags if tag == "svg" and a.get("role") == "img"]
    for name in ("length", "loss/value", "kl"):
        assert f"{name} against environment steps" in pictures
    assert sum("Learning curves on CartPole-v1" in label for label in pictures) == 2  # a wide one and a narrow one


def test_nasty_names_are_only_text(make_run, page):
    nasty = """x"><script>alert('&')</script>"""
    p = page(make_run("one", env=nasty), make_run("two", env=nasty, method="<b>a2c", fields={"<i>": "</table>"}))
    assert {tag for tag, _ in p.tags}.isdisjoint({"script", "b", "i"})
    assert nasty in p.text and "<b>a2c" in p.text and "</table>" in p.text


def test_several_runs_are_compared(make_run, page):
    p = page(make_run("good", final=[10, 11, 12, 13, 14]), make_run("bad", method="a2c", final=[5, 6, 7, 8, 20], fields={"learning_rate": 1e-3}))
    assert p.row("pair")[1:] == ["probability", "its interval", "from 0 to 1", "difference", "its interval", "reading"]
    row = p.row("ppo over a2c")
    assert row[1] == "0.80" and row[4] == "+5.000" and row[6] == "undecided"
    assert p.row("learning_rate") == ["learning_rate", "0.0003", "0.001"]
    assert p.row("network.hidden") == ["network.hidden", "64, 64"]  # equal: said once
    better = page(make_run("b1", final=[10, 11, 12, 13, 14]), make_run("b2", method="a2c", final=[5, 6, 7, 8, 9])).row("ppo over a2c")
    assert better[1] == "1.00" and better[6] == "ppo is better"


def test_few_seeds_decide_nothing(make_run, page):
    p = page(make_run("a", seeds=3, final=[10, 11, 12]), make_run("b", method="a2c", seeds=3, final=[1, 2, 3]))
    assert p.row("ppo over a2c")[6] == "too few seeds"


def test_runs_on_other_environments_are_not_compared(make_run, page):
    p = page(make_run("a"), make_run("b", env="Pendulum-v1"))
    assert "Comparison" not in p.text and "CartPole-v1: return of an episode" in p.text and "Pendulum-v1: return of an episode" in p.text


def test_one_seed_has_no_interval(make_run, page):
    p = page(make_run("one", seeds=1))
    assert "100.0 return of the last policy (one seed, so no interval)" in p.text
    assert p.row("95 % interval from")[1] == "–"


def test_trouble_is_told(make_run, page):
    final = [1.0, 2.0, np.nan, 4.0, 5.0]
    directory = make_run("one", final=final, stopped={"2": "loss/value was nan at step 4096"}, state="interrupted")
    with open(directory / "metrics.jsonl", "a") as file:
        file.write('{"st')
    p = page(directory)
    assert "Seed 2 stopped: loss/value was nan at step 4096." in p.text
    assert "not finished (interrupted at step 20,000 after 10.0 s of training)" in p.text
    assert "The records hold 1 line that could not be read, left out here." in p.text
    assert p.row("2 (stopped)") == ["2 (stopped)", "–", "–"]
    assert p.row("mean")[1] == "3.000" and "interquartile mean over 4 of 5 seeds" in p.text


def test_a_run_that_has_only_begun(make_run, page, tmp_path):
    directory = make_run("young")
    for name in ("metrics.jsonl", "evaluations.jsonl", "status.json"):
        (directory / name).unlink()
    p = page(directory)
    assert "No evaluation has been recorded yet." in p.text and "No return has been recorded on CartPole-v1 yet." in p.text
    learning_curve([read_record(directory)], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_the_picture_shows_every_run(make_run, tmp_path):
    records = [read_record(make_run(f"run{i}", method=f"m{i}", top=50.0 * (i + 1))) for i in range(2)]
    learning_curve(records, tmp_path / "curve.png")
    pixels = matplotlib.image.imread(tmp_path / "curve.png")[..., :3]
    assert pixels.shape[1] == 1200
    for colour in charts.COLOURS[:2]:
        wanted = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        assert (np.abs(pixels - wanted).max(axis=-1) < 0.02).sum() > 300


def test_a_curve_is_the_interquartile_mean_with_its_band(make_run):
    directory = make_run("one", chunks=10)
    append_line(directory / "metrics.jsonl", {"step": 11_000, "return": [1.0, None, None, None, None]})
    series = charts.return_series(read_record(directory), 0)
    np.testing.assert_allclose(series.middle[:10], 10.0 * np.arange(1, 11) + 2)
    assert (series.low[:10] < series.middle[:10]).all() and (series.middle[:10] < series.high[:10]).all()
    assert series.middle[10] == 1.0 and np.isnan(series.low[10])  # one seed: a value, but no band
    assert {(p.step, p.policy, p.score.value) for p in series.points} == {(10_000, "last", 102.0), (10_000, "best", 103.0)}


def test_long_runs_are_averaged_in_pieces():
    steps, values = np.arange(1, 1001), np.stack([np.arange(1000.0), np.full(1000, np.nan)], axis=1)
    short_steps, short = charts.binned(steps, values, 100)
    np.testing.assert_allclose(short_steps, 10 * np.arange(100) + 5.5)
    np.testing.assert_allclose(short[:, 0], 10 * np.arange(100) + 4.5)
    assert np.isnan(short[:, 1]).all()


@pytest.mark.parametrize("low, high", [(0, 1), (-1500, 3), (2e-5, 2.3e-5), (0, 1e7), (0.99, 1.01)])
def test_ticks_are_round_and_inside(low, high):
    found = charts.ticks(low, high, 3)
    assert 3 <= len(found) <= 9 and low - 1e-9 <= found[0] and found[-1] <= high + 1e-9


def test_one_spike_does_not_flatten_a_picture():
    values = np.append(np.linspace(1, 2, 200), 1e6)
    flat = np.full_like(values, np.nan)
    low, high, cut = charts.limits([charts.Series(0, np.arange(201.0), values, flat, flat, np.zeros((201, 0)))])
    assert cut and high < 10 and low < 1


def test_labels_are_the_shortest_that_differ(make_run):
    a, b, c = read_record(make_run("a")), read_record(make_run("b", method="a2c")), read_record(make_run("c", env="Pendulum-v1"))
    assert labels([a, b]) == ["ppo", "a2c"]
    assert labels([a, c]) == ["ppo on CartPole-v1", "ppo on Pendulum-v1"]
    assert labels([a, read_record(make_run("d"))]) == ["a", "d"]
    assert len(set(labels([a, a]))) == 2


def test_numbers_are_short():
    assert [number(v) for v in (499.93, -1203.4, 0.0153, 0.0, float("nan"), 1e-5, 48123.0)] == [
        "499.9",
        "-1203",
        "0.01530",
        "0.000",
        "–",
        "1.000e-05",
        "48123",
    ]


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        html_report([], tmp_path / "r.html")
