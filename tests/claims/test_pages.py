"""The evidence for people: terminal table, README totals, and pages that a real browser shows."""

import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from polopt import cli
from polopt.claims import evidence, pages
from polopt.claims.evidence import Standing
from polopt.methods import registry

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def stored(entry, verdict, neutral=0.0):
    rng = np.random.default_rng(0)
    curve = {"x title": "environment steps per seed", "x": [10.0, 20.0, 30.0], "y": [[None, *row] for row in rng.normal(size=(5, 2)).tolist()]}
    side = {"configuration": {"rate": 0.1}, "numbers": {"score": rng.normal(size=5).tolist()}, "curves": {"return": curve}}
    check = {"name": "score: <new> / old", "expected": "above 2", "threshold": 2.0, "above": True, "neutral": neutral, "statistic": "mean"}
    return {
        "format": 1,
        "method": entry.key,
        "family": entry.family,
        "claim": {"statement": "New <b>beats</b> & old.", "baseline": "old", "task": "none", "seeds": 5, "slow": False, "fingerprint": "f"},
        "verdict": verdict,
        "checks": [{**check, "effect": [3.0, 2.5, 4.0], "verdict": verdict}],
        "seeds": list(range(5)),
        "sides": {"<new>": {**side, "configuration": {"rate": 0.2}}, "old": side},
        "seconds": 1.5,
        "day": "2025-01-01",
        "machine": {"cores": 2},
        "versions": {"python": "3.11"},
        "sources": {"polopt/a.py": "1"},
    }


@pytest.fixture(scope="module")
def found():
    """One method of each standing."""
    gae, ppo, a2c, reinforce = (registry.find(key) for key in ("gae", "ppo", "a2c", "reinforce"))
    return [
        Standing(a2c, True, stored(a2c, "holds", neutral=1.0), False, (), ""),
        Standing(gae, True, stored(gae, "fails"), False, (), "It breaks at <scale>."),
        Standing(ppo, True, stored(ppo, "inconclusive", neutral=None), False, ("polopt/a.py",), ""),
        Standing(reinforce, True, None, False, (), ""),
    ]


class Page(HTMLParser):
    """The text of a page and its attributes; an element that is not closed is an error."""

    VOID = {"meta", "br", "input", "path", "circle", "rect", "link", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *a) for a in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, *a) for a in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def folder(found, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pages")
    assert pages.write(found, directory) == directory / "index.html"
    return directory


def test_the_index_says_how_every_method_stands(folder, found):
    page = Page((folder / "index.html").read_text())
    words = " ".join(" ".join(page.text).split())
    for verdict in ("✓ holds", "✗ fails (examined)", "? inconclusive (stale)", "– not run"):
        assert verdict in words  # in words and signs, whatever the colours
    assert "4 methods: 1 hold, 1 fail (1 examined), 0 inconclusive, 1 stale, 1 without evidence" in words
    for s in found:
        assert ("a", "href", f"{s.entry.family}/{s.entry.key}.html") in page.attributes
        assert (folder / s.entry.family / f"{s.entry.key}.html").exists()


def test_a_method_has_a_page_of_its_own(folder):
    text = (folder / "policy_gradient" / "gae.html").read_text()
    page = Page(text)
    words = " ".join(" ".join(page.text).split())
    for part in (
        "New <b>beats</b> & old.",
        "score: <new> / old",
        "3.000 [2.500, 4.000]",
        "It breaks at <scale>.",
        "delta_t",  # the equations
        "polopt verify gae -v",
        "gae on three steps",  # a test that names it
        "What differs.",
        "polopt/a.py",
        "python",
    ):
        assert part in words, part
    assert "<svg" in text and "Nobody has looked" not in text
    assert "changed since" in (folder / "policy_gradient" / "ppo.html").read_text()


def test_pages_need_nothing_from_elsewhere(folder):
    for file in folder.rglob("*.html"):
        page = Page(file.read_text())
        loaded = [value for tag, name, value in page.attributes if name in ("src", "srcset") or (tag == "link" and name == "href")]
        assert not loaded
        links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
        assert all(link.startswith("https://arxiv.org/abs/") or (file.parent / link).exists() for link in links)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look with")
@pytest.mark.parametrize(("search", "shown"), [("", 4), ("#gae", 1), ("#policy%20gradient%20fails", 1), ("#nothing", 0)])
def test_the_filter_works_in_a_browser_from_a_file(folder, search, shown, tmp_path):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom", f"file://{folder}/index.html{search}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert f'aria-live="polite">{shown} of 4</output>' in dom
    assert dom.count("display: none") == 4 - shown


def test_totals_go_between_the_markers(found, tmp_path):
    readme = tmp_path / "README.md"
    begin, end = pages.MARKERS
    readme.write_text(f"# Title\n\n{begin}\nold\n{end}\n\nMore.\n")
    for _ in range(2):
        pages.update_readme(found, readme)
        expected = f"# Title\n\n{begin}\nThe claims of {pages.totals(found)}.\n{end}\n\nMore.\n"
        assert readme.read_text() == expected
    readme.write_text("# Title\n")
    with pytest.raises(ValueError, match="no place for the totals"):
        pages.update_readme(found, readme)


def test_the_table_in_the_terminal(found, capsys, tmp_path):
    text = "\n".join(pages.table(found))
    assert "✗ gae        fails (examined); score: <new> / old 3.000 [2.500, 4.000], expected above 2" in text
    assert "polopt/a.py changed" in text and "– reinforce  not run" in text
    assert cli.main(["evidence", "--evidence", str(tmp_path)]) == 0
    assert f"{len(registry.entries())} without evidence" in capsys.readouterr().out


def test_the_readme_says_what_the_evidence_says():
    readme = evidence.sources.ROOT / "README.md"
    begin, end = pages.MARKERS
    if begin not in readme.read_text():
        pytest.skip("the README has no place for the totals yet")
    written = readme.read_text().partition(begin)[2].partition(end)[0].strip()
    found = evidence.standings(evidence.sources.ROOT / "evidence")
    assert written == f"The claims of {pages.totals(found)}.", "run `polopt evidence --readme README.md`"
