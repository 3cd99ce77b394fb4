"""NFT's oracles: the weights of right and wrong answers, the floor, and where it meets GRPO, Dr. GRPO and rejection fine-tuning."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from polopt.core.parts import replace
from polopt.data import testbeds
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Aggregation
from polopt.loops.wording import LogLikelihood
from polopt.methods.reasoning.nft import ImplicitNegative, implicit_negative, nft, prompt_weight
from polopt.optim.sgd import Sgd
from tests.methods.reasoning.identities import agree, an_update, every_field_counts, same_in_pieces, trained, weights


def token_weight(correct, success, ratio, **options):
    """On grad log pi, without omega: of one token, equal in three libraries."""
    log_prob, old = np.array([np.log(ratio) - 1.0]), np.array([-1.0])
    value, (slope,) = agree(lambda x, o: implicit_negative(x, o, x * 0 + correct, success, **options), log_prob, old)
    return value[0], -slope[0]


@pytest.mark.parametrize("weighting, right, wrong", [("failure", 0.75, -0.25), ("odds", 3**0.5, -(3**-0.5))])
def test_on_policy_the_weights_are_those_of_dr_grpo_and_grpo(weighting, right, wrong):
    """Oracle 1."""
    omega = prompt_weight(np.array(0.25), weighting)
    np.testing.assert_allclose([omega * token_weight(c, 0.25, 1.0)[1] for c in (1.0, 0.0)], [right, wrong], rtol=1e-12)


@pytest.mark.parametrize(
    "ratio, floor, value, wanted",
    [(1.5, 1.0, 0.0, -1.5), (1.5, 1e-9, -np.log(0.5), -3.0), (2.0, 1.0, 0.0, -2.0), (0.5, 1.0, -np.log(1.5), -1 / 3)],
)
def test_the_floor_is_straight_through(ratio, floor, value, wanted):
    """Oracles 2 and 3: success 1/2, a wrong answer."""
    np.testing.assert_allclose(token_weight(0.0, 0.5, ratio, floor=floor), (value, wanted), rtol=1e-9, atol=1e-12)


def test_rare_success_teaches_little_from_failures():
    """Oracle 4."""
    assert abs(token_weight(0.0, 1e-6, 1.0)[1]) < 2e-6
    assert token_weight(0.0, 0.5, 1.0, negative_weight=0.0)[1] == 0.0


def test_large_ratios_are_cut():
    assert token_weight(1.0, 0.5, np.exp(11.0))[1] == 0.0
    assert token_weight(1.0, 0.5, np.exp(9.0))[1] == 1.0


def test_the_weight_is_what_the_paper_says():
    """omega for right answers, -omega (p R / (1 - p)) / max((1 - p R)/(1 - p), eps) for wrong ones."""
    ratio, p, omega = np.array([[0.4, 1.3], [0.7, 1.6]]), 0.25, 0.6
    update = an_update(np.log(ratio), old=np.zeros((2, 2)), advantage=np.full((2, 2), omega, np.float32), reward=[1.0, 0.0], group_mean=[p, p])
    wrong = -omega * p * ratio[1] / (1 - p) / np.maximum((1 - p * ratio[1]) / (1 - p), 1)
    np.testing.assert_allclose(weights(ImplicitNegative(), update), [[omega, omega], wrong], rtol=1e-5)


def plain(task, **changes):
    method = dataclasses.replace(nft(task), step_rule=Sgd(2.0), minibatches=1, aggregation=Aggregation("constant"))
    return replace(method, {"sampler.prompts": 4, "sampler.completions": 8, **changes})


@pytest.mark.parametrize("weighting, scale", [("failure", "none"), ("odds", "group")])
def test_one_update_is_grpo(weighting, scale):
    task = testbeds.bandit(prompts=6, success=0.4, steps=4)
    ours = plain(task, **{"advantage.weighting": weighting})
    theirs = dataclasses.replace(ours, advantage=GroupRelative(scale, epsilon=0.0), objective=LogLikelihood())
    np.testing.assert_allclose(trained(ours, task), trained(theirs, task), rtol=1e-4, atol=1e-4)


def test_groups_that_agree_teach_nothing():
    task = testbeds.bandit(prompts=6, success=0.9999, steps=4)
    method = plain(task, **{"sampler.tries": 1})
    np.testing.assert_array_equal(trained(method, task), trained(method, task, 0))


def test_the_loop():
    task = testbeds.chain(prompts=6, length=2, vocabulary=3, success=0.7, steps=4)
    method = plain(task, minibatches=2, epochs=2)
    same_in_pieces(method, task, 4)
    changes = dict(objective__floor=0.3, objective__negative_weight=0.2, objective__log_ratio_limit=0.05)
    every_field_counts(method, task, advantage__weighting="one", aggregation__scale=5.0, **changes)
