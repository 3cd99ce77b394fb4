"""Synthetic tasks and exact testbeds: right answers earn 1, others 0, and sums equal samples."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.data import synthetic, testbeds
from polopt.data.dataset import DataError
from polopt.data.prompts import make_prompts, padded
from polopt.data.tasks import make_language_task, names
from polopt.data.verifiers import Goal, sequence_number
from polopt.envs.exact import sequences


def graded(task, prompts, index, texts):
    """The rewards of completions given as text, with their stop token, as a compiled program sees them."""
    rows = [[*task.tokenizer.encode(text), *task.stop] for text in texts]
    tokens, mask = padded(rows, width=max(task.length, *map(len, rows)))
    found = jax.jit(task.verifier)(prompts, jnp.asarray(index), jnp.asarray(tokens), jnp.asarray(mask))
    assert found.reward.dtype == jnp.float32 and bool(found.valid.all())
    return np.asarray(found.reward)


def texts(task, prompts):
    return [task.tokenizer.decode(row[mask]) for row, mask in zip(np.asarray(prompts.tokens), np.asarray(prompts.mask))]


@pytest.mark.parametrize("name", synthetic.SPACES)
def test_demonstrations_are_right_and_others_wrong(name):
    task = make_language_task(name, count=40, held_out=20, seed=3)
    for prompts in (task.prompts, task.held_out):
        index = jnp.arange(len(prompts))
        right = task.verifier(prompts, index, prompts.demonstration, prompts.demonstration_mask)
        assert right.reward.tolist() == [1.0] * len(prompts)
        assert prompts.demonstration.shape[1] <= task.length
        ends = prompts.demonstration_mask.sum(1) - 1
        assert set(np.asarray(prompts.demonstration)[np.arange(len(prompts)), ends].tolist()) == set(task.stop)
        # one more character, and the answer cut by one, are both wrong
        shorter = prompts.demonstration_mask & (jnp.arange(prompts.demonstration.shape[1])[None] < ends[:, None] - 1)
        assert task.verifier(prompts, index, prompts.demonstration, shorter).reward.sum() == 0
    answers = [task.tokenizer.decode(row) for row in np.asarray(task.prompts.demonstration)]
    assert graded(task, task.prompts, np.arange(40), [a + a[-1] for a in answers]).sum() == 0
    others = (np.arange(40) + 1) % 40
    differ = np.array([answers[i] != answers[j] for i, j in enumerate(others)])
    if name != "countdown":
        np.testing.assert_array_equal(graded(task, task.prompts, others, answers), ~differ)
    assert not set(texts(task, task.prompts)) & set(texts(task, task.held_out))
    assert len(set(texts(task, task.prompts))) == 40


@pytest.mark.parametrize("name", synthetic.SPACES)
def test_a_seed_makes_a_task(name):
    first, again, other = (make_language_task(name, count=30, held_out=10, seed=seed) for seed in (1, 1, 2))
    assert texts(first, first.prompts) == texts(again, again.prompts) != texts(other, other.prompts)


def test_what_the_prompts_say():
    for name, says in [
        ("arithmetic", lambda p, a: eval(p[:-1]) == int(a)),
        ("modular", lambda p, a: eval(p[:-1]) % 11 == int(a)),
        ("sorting", lambda p, a: sorted(p[:-1]) == list(a)),
        ("copying", lambda p, a: p[:-1] == a),
    ]:
        task = make_language_task(name, count=50, held_out=10, **({"modulus": 11} if name == "modular" else {}))
        demonstrations = [task.tokenizer.decode(row) for row in np.asarray(task.prompts.demonstration)]
        assert all(says(p, a) for p, a in zip(texts(task, task.prompts), demonstrations)), name


def python_reaches(text: str, numbers: list[int], target: int) -> bool:
    """Countdown in Python: the language by a pattern, the value by `eval`."""
    if not re.fullmatch(r"(0|[1-9]\d*)([-+*](0|[1-9]\d*))*", text):
        return False
    return sorted(int(n) for n in re.findall(r"\d+", text)) == sorted(numbers) and eval(text) == target


def test_countdown_agrees_with_python():
    """Expressions of the right numbers with any operators, and broken ones, against Python's own arithmetic."""
    task = make_language_task("countdown", count=60, held_out=10, numbers=3, largest=12)
    rng = np.random.default_rng(0)
    prompts = texts(task, task.prompts)
    index, given = [], []
    for i in rng.integers(60, size=600):
        left, target = prompts[i][:-1].split(":")
        numbers = [int(n) for n in left.split()]
        chosen = rng.permutation(numbers).tolist()
        text = str(chosen[0]) + "".join(f"{rng.choice(list('+-*'))}{n}" for n in chosen[1:])
        if rng.random() < 0.4:
            place = rng.integers(len(text))
            text = text[:place] + rng.choice(list("0123456789+-*")) + text[place + rng.integers(2) :]
        index.append(i)
        given.append((text, numbers, int(target)))
    wanted = np.array([python_reaches(*g) for g in given])
    assert 20 < wanted.sum() < 580
    np.testing.assert_array_equal(graded(task, task.prompts, index, [g[0] for g in given]), wanted)


@pytest.mark.parametrize(
    "text, right",
    [
        ("2*5+3", True),
        ("3+5*2", True),
        ("3+2*5", True),
        ("5*3-2", True),
        ("13", False),
        ("", False),
        ("+2*5+3", False),
        ("2*5+3+", False),
        ("2*5++3", False),
        ("02*5+3", False),
        ("2*5+3+0", False),
        ("2+5+3", False),
        ("99999999999", False),
    ],
)
def test_countdown_by_hand(text, right):
    task = make_language_task("countdown", count=5, held_out=1)
    counts = np.isin(np.arange(10), [2, 3, 5]).astype(np.int32)
    prompts = make_prompts([[2]], facts=Goal(jnp.array([13]), jnp.asarray(counts)[None]))
    assert graded(task, prompts, [0], [text])[0] == right


def test_small_spaces_are_shared_out():
    task = make_language_task("modular", modulus=7)
    assert len(task.prompts) + len(task.held_out) == 49 and len(task.held_out) == 9
    assert make_language_task("arithmetic", digits=1).length == 3
    default = make_language_task("sorting")
    assert (len(default.prompts), len(default.held_out)) == (512, 128)


WRONG = [
    ("modular", {"modulus": 5, "count": 30, "held_out": 10}, r"modular has only about 25 different problems, but 40 are asked for; ask for fewer"),
    ("arithmetic", {"digits": 0}, "digits is 0, but a whole number of at least 1 is expected"),
    ("copying", {"letters": 27}, "letters is 27, but a whole number from 1 to 26"),
    ("countdown", {"numbers": 9, "largest": 99}, r"must stay below 2\^30; take fewer"),
    ("sorting", {"digits": 3}, "The task sorting has no option 'digits'; it has size"),
    ("sorting", {"count": 0}, "count is 0, but a whole number of at least 1"),
    ("sortin", {}, "There is no task 'sortin'; did you mean sorting"),
    ("T-Bandits", {}, "did you mean t-bandit"),
    ("qqq", {}, "give one of arithmetic, modular"),
    ("sorting", {"tokenizer": "x"}, "The task sorting takes no tokenizer: its tokens are characters"),
    ("t-ar", {"count": 3}, "The task t-ar takes no count: its prompts are as many as prompts=N says"),
    ("t-ar", {"model": "x"}, "The task t-ar takes no model: it brings its own"),
    ("t-ar", {"vocabulary": 1}, "vocabulary is 1, but a whole number of at least 2"),
    ("t-lin", {"features": 0}, "features is 0"),
    ("t-chain", {"prompts": 0}, "prompts is 0"),
    ("t-ar", {"vocabulary": 30, "length": 6}, r"1 tables of 30\^6 sequences are more than 2000000 entries; take fewer"),
    ("t-bandit", {"success": 1.5}, "The success of the prompts is 1.5, but a number above 0 and below 1"),
    ("t-bandit", {"low": 0.5, "high": 1.5}, "between low=0.5 and high=1.5"),
    ("t-bandit", {"correct": 10}, "10 of 10 answers are correct"),
    ("t-ar", {"ones": 0.0}, "ones is 0.0, but a share"),
]


@pytest.mark.parametrize("name, options, words", WRONG)
def test_mistakes_are_one_sentence(name, options, words):
    with pytest.raises(DataError, match=words) as error:
        make_language_task(name, **options)
    assert "\n" not in str(error.value)


# -- testbeds ----------------------------------------------------------------------------------------------------------

SMALL = {"t-bandit": {"prompts": 5}, "t-lin": {"prompts": 5}, "t-chain": {"prompts": 4, "length": 3, "vocabulary": 3}, "t-ar": {"prompts": 2}}


def listed(task):
    """The grades (Q, N) of every sequence after every prompt."""
    every = jnp.asarray(sequences.sequences(task.model.vocabulary, task.length), jnp.int32)
    questions, count = len(task.prompts), len(every)
    tokens = jnp.tile(every, (questions, 1))
    index = jnp.repeat(jnp.arange(questions), count)
    return jax.jit(task.verifier)(task.prompts, index, tokens, jnp.ones(tokens.shape, bool)).reward.reshape(questions, count)


@pytest.mark.parametrize("name", testbeds.TESTBEDS)
def test_exact_returns_are_the_sums_of_what_the_verifier_gives(name):
    task = make_language_task(name, seed=4, **SMALL[name])
    moved = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), task.model)
    for policy in (task.model, moved):
        exact = testbeds.exact_returns(task, policy)
        np.testing.assert_allclose(exact, sequences.expected(policy.log_probs(), listed(task)), rtol=1e-5)
    demonstrated = task.verifier(task.prompts, jnp.arange(len(task.prompts)), task.prompts.demonstration, task.prompts.demonstration_mask)
    assert demonstrated.reward.tolist() == [1.0] * len(task.prompts)
    assert task.stop == () and not task.host and len(task.held_out) == len(task.prompts)
    assert task.prompts.demonstration.shape[1] == task.length == task.model.length


def test_initial_successes_are_those_asked_for():
    success = [0.1, 0.5, 0.9]
    for name in ("t-bandit", "t-lin"):
        task = make_language_task(name, success=success, answers=6, correct=2)
        np.testing.assert_allclose(testbeds.exact_returns(task, task.model), success, rtol=1e-5)
    task = make_language_task("t-chain", success=success, length=4, vocabulary=5)
    np.testing.assert_allclose(testbeds.exact_returns(task, task.model), np.array(success) ** 4, rtol=1e-5)
    assert testbeds.exact_returns(make_language_task("t-bandit", prompts=3, success=0.2), task.model.__class__(jnp.zeros((3, 10)))).tolist() == (
        pytest.approx([0.1] * 3)
    )


def test_a_large_chain_is_not_listed():
    task = make_language_task("t-chain", prompts=2, length=30, vocabulary=50, success=0.99)
    np.testing.assert_allclose(testbeds.exact_returns(task, task.model), [0.99**30] * 2, rtol=1e-4)


def test_exact_returns_follow_the_rows_of_the_prompts():
    task = make_language_task("t-bandit", prompts=6)
    rows = jnp.array([4, 1])
    part = task.__class__(**{**task.__dict__, "prompts": task.prompts.take(rows)})
    np.testing.assert_array_equal(testbeds.exact_returns(part, task.model), testbeds.exact_returns(task, task.model)[rows])


def test_exact_returns_need_a_testbed():
    task = make_language_task("sorting", count=4, held_out=2)
    with pytest.raises(DataError, match="sorting has no rewards that can be summed; exact returns are those of t-bandit"):
        testbeds.exact_returns(task, make_language_task("t-bandit").model)


def test_sequences_are_numbered_in_lexicographic_order():
    every = jnp.asarray(sequences.sequences(3, 4), jnp.int32)
    np.testing.assert_array_equal(sequence_number(every, 3), np.arange(81))


@pytest.mark.parametrize("name", names())
def test_verifiers_are_vmapped_over_seeds(name):
    task = make_language_task(name, **SMALL.get(name, {"count": 6, "held_out": 2}))
    prompts = task.prompts
    index = jnp.arange(len(prompts))
    shifted = jnp.stack([prompts.demonstration, jnp.roll(prompts.demonstration, 1, axis=0)])
    together = jax.vmap(lambda tokens: task.verifier(prompts, index, tokens, prompts.demonstration_mask).reward)(shifted)
    apart = [task.verifier(prompts, index, tokens, prompts.demonstration_mask).reward for tokens in shifted]
    np.testing.assert_array_equal(together, jnp.stack(apart))
