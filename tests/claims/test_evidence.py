"""The evidence in the repository: every method has a claim that was run, and nothing has changed since. Files are read, nothing is run."""

import json

import numpy as np
import pytest

from polopt.claims import evidence, sources
from polopt.claims.claim import Check, worst
from polopt.methods import registry
from polopt.run.statistics import Estimate

FOLDER = sources.ROOT / "evidence"
ENTRIES = registry.entries()

every_method = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.key)


@every_method
def test_every_method_has_a_claim(entry):
    assert evidence.claim_path(entry).exists(), f"write {evidence.claim_path(entry).relative_to(sources.ROOT)}"


@every_method
def test_every_claim_was_run_and_nothing_has_changed_since(entry):
    standing = evidence.standing(entry, FOLDER)
    assert standing.stored is not None, f"run `polopt verify {entry.key}` and commit the evidence"
    assert not standing.new_text, f"the claim's text has changed; run `polopt verify {entry.key}`"
    assert not standing.changed, f"{', '.join(standing.changed)} changed since; run `polopt verify {entry.key}`"


@every_method
def test_the_stored_verdict_is_whole(entry):
    stored = evidence.read(evidence.path_of(entry, FOLDER))
    if stored is None:
        pytest.skip("not run yet, which is another test's concern")
    assert (stored["method"], stored["family"]) == (entry.key, entry.family)
    assert stored["seeds"] == list(range(stored["claim"]["seeds"]))
    for stated in stored["checks"]:
        side = {"above" if stated["above"] else "below": stated["threshold"]}
        check = Check(*(stated[k] for k in ("measure", "side", "over", "ratio")), statistic=stated["statistic"], **side)
        effect = Estimate(*stated["effect"])
        numbers = {name: side["numbers"] for name, side in stored["sides"].items()}
        assert check.effect(numbers, resamples=10).value == pytest.approx(effect.value, rel=1e-6)
        assert check.verdict(effect) == stated["verdict"] and check.name == stated["name"]
    assert stored["verdict"] == worst([c["verdict"] for c in stored["checks"]])
    for side in stored["sides"].values():
        for numbers in side["numbers"].values():
            assert len(numbers) == len(stored["seeds"]) and np.isfinite(numbers).all()


def test_no_evidence_is_left_of_what_is_gone():
    families = registry.families()
    found = {path for family in families for path in (FOLDER / family).glob("*.json")}
    assert found <= {evidence.path_of(entry, FOLDER) for entry in ENTRIES}


# -- the machinery -----------------------------------------------------------------------------------------------------


@pytest.fixture
def entry():
    return next(e for e in ENTRIES if e.key == "gae")


def stored(entry, **changes):
    now = evidence.fingerprints_of(entry)
    return {"format": 1, "verdict": "fails", "claim": {"fingerprint": now.text}, "sources": now.sources, **changes}


def test_what_makes_evidence_stale(entry, tmp_path):
    path = evidence.path_of(entry, tmp_path)
    assert evidence.standing(entry, tmp_path).words == "not run"
    evidence.write(path, stored(entry))
    assert evidence.standing(entry, tmp_path).current

    evidence.write(path, stored(entry, claim={"fingerprint": "another"}))
    assert evidence.standing(entry, tmp_path).why_stale == "the claim's text has changed"

    then = dict(evidence.fingerprints_of(entry).sources)
    then["polopt/objectives/advantages.py"] = "0" * 16
    then["polopt/gone.py"] = then.pop("polopt/objectives/backend.py")
    evidence.write(path, stored(entry, sources=then))
    changed = evidence.standing(entry, tmp_path)
    assert changed.changed == ("polopt/gone.py", "polopt/objectives/advantages.py", "polopt/objectives/backend.py") and not changed.current
    assert changed.words.endswith("stale)")


def test_the_analysis_is_read_from_the_source_and_is_no_part_of_the_text(entry, tmp_path, monkeypatch):
    file = tmp_path / "claim.py"
    monkeypatch.setattr(evidence, "claim_path", lambda _: file)
    text = 'CLAIM = Claim(method="m", checks=(),{})\n'
    file.write_text(text.format(""))
    before = sources.fingerprint(file)
    file.write_text(text.format('analysis="We tried a lot,\\n  and "\n    "it broke."'))
    assert sources.fingerprint(file) == before
    assert evidence._analysis(entry) == "We tried a lot, and it broke."
    file.write_text(text.format("seeds=7"))
    assert sources.fingerprint(file) != before


def test_a_damaged_file_is_named(entry, tmp_path):
    path = evidence.path_of(entry, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text('{"format": 1, "verd')
    with pytest.raises(ValueError, match=r"gae.json is damaged.*polopt verify gae"):
        evidence.standing(entry, tmp_path)
    path.write_text('{"format": 7}')
    with pytest.raises(ValueError, match="not of format 1"):
        evidence.standing(entry, tmp_path)


def test_json_keeps_a_row_of_numbers_on_a_line():
    value = {"a": [1.5, 2.0, float("nan")], "b": {"c": [[1, 2], [3, 4]]}, "d": "é", "e": {}, "f": [], "g": None, "h": True, "i": (1, "x")}
    text = evidence.dumps(value)
    assert json.loads(text) == {**value, "a": [1.5, 2.0, None], "i": [1, "x"]}
    assert {' "a": [1.5, 2.0, null],', "   [1, 2],"} <= set(text.splitlines())


def test_where_evidence_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert evidence.folder() == tmp_path / "data" / "polopt" / "evidence"
    (tmp_path / "evidence").mkdir()
    assert evidence.folder().resolve() == tmp_path / "evidence"
    assert evidence.folder("elsewhere").name == "elsewhere"
