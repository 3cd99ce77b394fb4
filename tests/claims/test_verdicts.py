"""A verdict says what the intervals say, and errs as often as it says it does."""

import numpy as np
import pytest

from polopt.claims import verify
from polopt.claims.claim import FAILS, HOLDS, INCONCLUSIVE, Check, Claim, Side, worst
from polopt.run.statistics import Estimate

UP, DOWN = Check("score", "new", above=1.0), Check("score", "new", below=1.0)


@pytest.mark.parametrize(
    ("interval", "above", "below"),
    [
        ((1.1, 2.0), HOLDS, FAILS),
        ((0.0, 0.9), FAILS, HOLDS),
        ((0.9, 1.1), INCONCLUSIVE, INCONCLUSIVE),
        # the threshold itself is on the wrong side: sides that are equal do not differ
        ((1.0, 1.0), FAILS, FAILS),
        ((1.0, 1.1), INCONCLUSIVE, FAILS),
        ((0.9, 1.0), FAILS, INCONCLUSIVE),
    ],
)
def test_which_side_the_interval_is_on(interval, above, below):
    effect = Estimate(np.mean(interval), *interval)
    assert UP.verdict(effect) == above
    assert DOWN.verdict(effect) == below


def test_one_seed_is_refused():
    with pytest.raises(ValueError, match="one seed"):
        UP.verdict(UP.effect({"new": {"score": [7.0]}}))
    with pytest.raises(ValueError, match="at least 5"):
        claim(seeds=1)


BETTER = Check("score", "new", over="old", above=0.0)


def claim(shift=0.0, seeds=10, checks=(BETTER,)):
    def run(numbers):
        rng = [np.random.default_rng(seed) for seed in numbers]
        old = np.array([g.normal(100, 50) for g in rng])  # what a seed does to both sides cancels
        new = old + shift + np.array([g.normal() for g in rng])
        return {"new": Side({}, {"score": new}), "old": Side({}, {"score": old})}

    return Claim(method="planted", statement="New is better.", baseline="old", task="none", run=run, checks=checks, seeds=seeds)


def verdicts(shift: float, repeats: int) -> dict[str, float]:
    planted = claim(shift)
    found = []
    for k in range(repeats):
        sides = planted.run(range(10 * k, 10 * k + 10))
        numbers = {name: side.numbers for name, side in sides.items()}
        found.append(verify.judge(planted, numbers, resamples=500)["verdict"])
    return {v: found.count(v) / repeats for v in (HOLDS, FAILS, INCONCLUSIVE)}


def test_a_planted_null_effect_holds_as_rarely_as_stated():
    """At a true effect equal to the threshold either side is called in 2.5 % of cases nominally, and in about 3 % with ten seeds."""
    rates = verdicts(0.0, 600)
    assert rates[HOLDS] < 0.055 and rates[FAILS] < 0.055
    assert rates[INCONCLUSIVE] > 0.9


@pytest.mark.parametrize(("shift", "verdict"), [(2.0, HOLDS), (-2.0, FAILS)])
def test_a_planted_effect_is_found(shift, verdict):
    """Two deviations of the differences: found nearly always, although seeds differ 25 times as much."""
    assert verdicts(shift, 60)[verdict] > 0.97


def test_kinds_of_effect():
    rng = np.random.default_rng(0)
    old = rng.uniform(1, 3, size=10)
    numbers = {"new": {"score": 2 * old}, "old": {"score": old}}
    ratio = Check("score", "new", over="old", ratio=True, above=1.5)
    np.testing.assert_allclose(ratio.effect(numbers), (2.0, 2.0, 2.0))
    assert ratio.verdict(ratio.effect(numbers)) == HOLDS and ratio.neutral == 1.0
    difference = Check("score", "new", over="old", above=0.0, statistic="mean")
    assert difference.effect(numbers).value == pytest.approx(old.mean()) and difference.neutral == 0.0
    level = Check("score", "old", below=4.0)
    assert level.effect(numbers).value == pytest.approx(np.sort(old)[2:8].mean()) and level.neutral is None
    with pytest.raises(ValueError, match="not above 0"):
        ratio.effect({"new": {"score": -old}, "old": {"score": old}})
    with pytest.raises(ValueError, match="score of old"):
        Check("cost", "new", below=1.0).effect(numbers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(), "exactly one"),
        (dict(above=1, below=2), "exactly one"),
        (dict(ratio=True, above=1), "over nothing"),
        (dict(above=1, statistic="mode"), "mode"),
    ],
)
def test_a_check_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Check("score", "new", **arguments)


def test_a_claim_is_as_good_as_its_worst_check():
    assert worst([HOLDS, INCONCLUSIVE, HOLDS]) == INCONCLUSIVE
    assert worst([INCONCLUSIVE, FAILS]) == FAILS
    both = claim(5.0, checks=(BETTER, Check("score", "new", over="old", above=100.0)))
    result = verify.run(both, range(10))
    assert [c["verdict"] for c in result["checks"]] == [HOLDS, FAILS] and result["verdict"] == FAILS


def test_a_long_claim_must_be_marked_slow():
    with pytest.raises(ValueError, match="mark it slow"):
        Claim(method="m", statement="s", baseline="b", task="t", run=lambda seeds: {}, checks=(UP,), seconds=1000)


def test_numbers_must_have_an_entry_a_seed():
    short = Claim(method="m", statement="s", baseline="b", task="t", run=lambda seeds: {"new": Side({}, {"score": [1.0]})}, checks=(UP,))
    with pytest.raises(ValueError, match=r"score of new has the shape \(1,\).*10 seeds"):
        verify.run(short, range(10))
