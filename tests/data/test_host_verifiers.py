"""Verifiers on the host: a user's function, what it does wrong, and the scorers of other packages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.core.callbacks import clear_errors
from polopt.data.dataset import DataError
from polopt.data.host_verifiers import HostVerifier, Rows, VerifierError, own_verifier
from polopt.data.prompts import make_prompts, on_device, padded
from polopt.data.tasks import make_language_task
from polopt.data.tokenizer import CharacterTokenizer

TOKENIZER = CharacterTokenizer("abc")
PROMPTS = on_device(make_prompts([[2], [3, 2], [4]], facts=np.arange(3, dtype=np.int32)))


def rows():
    return Rows(["a", "ba", "c"], {"answer": ["x", "y", "z"], "level": [1, 2, 3]})


def completions(texts):
    tokens, mask = padded([[*TOKENIZER.encode(t), 1] for t in texts], width=5)
    return jnp.asarray(tokens), jnp.asarray(mask)


def grade(function, texts, index=None, compiled=True):
    verifier = own_verifier(function, rows(), TOKENIZER, TOKENIZER.stop)
    call = jax.jit(verifier) if compiled else verifier
    with clear_errors():
        return jax.block_until_ready(call(PROMPTS, jnp.arange(len(texts)) if index is None else jnp.asarray(index), *completions(texts)))


def test_a_function_sees_texts_and_columns_without_padding_and_stop():
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((prompts, completions, columns))
        return [len(c) for c in completions]

    found = grade(reward, ["abc", "", "b", "cc"], index=[0, 1, 1, 2])
    assert found.reward.tolist() == [3, 0, 1, 2] and found.valid.all() and found.reward.dtype == jnp.float32
    assert seen == [(["a", "ba", "ba", "c"], ["abc", "", "b", "cc"], {"answer": ["x", "y", "y", "z"], "level": [1, 2, 2, 3]})]


def test_a_function_gets_the_columns_that_it_names():
    assert grade(lambda completions, level, prompts: level, ["a", "b", "c"]).reward.tolist() == [1, 2, 3]
    assert grade(lambda prompts, completions, missing=0.5: [missing] * 3, ["a", "b", "c"]).reward.tolist() == [0.5] * 3


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), "text"])
def test_what_is_no_number_is_not_valid(bad):
    found = grade(lambda prompts, completions: [bad if c == "b" else 1.5 for c in completions], ["a", "b", "c"])
    assert found.valid.tolist() == [True, False, True] and found.reward.tolist() == [1.5, 0, 1.5]


def test_the_completion_that_raises_is_found():
    calls = []

    def reward(prompts, completions):
        calls.append(len(completions))
        return [1 / len(c) for c in completions]

    found = grade(reward, ["aa", "", "c"])
    assert found.valid.tolist() == [True, False, True] and found.reward.tolist() == [0.5, 0, 1] and calls == [3, 1, 1, 1]


@pytest.mark.parametrize(
    "reward, words",
    [
        (lambda prompts, completions: 1 / 0, r"given|lambda.* could grade none of 3 completions; on the first, 'ab', it raised ZeroDivisionError"),
        (lambda prompts, completions: [None] * len(completions), "it returned None; try it on that text in plain Python"),
        (lambda prompts, completions: [float("nan")] * len(completions), "it returned nan"),
        (lambda prompts, completions: ["x"] * len(completions), "it returned the str 'x', which is no number"),
        (lambda prompts, completions: [1.0], "returned a list of 1 for 3 completions, but a list of a number or None for each"),
        (lambda prompts, completions: 3.0, "returned what is no list for 3 completions"),
    ],
)
@pytest.mark.parametrize("compiled", [True, False])
def test_when_none_is_valid_the_first_error_is_said(reward, words, compiled):
    with pytest.raises(VerifierError, match=words) as error:
        grade(reward, ["ab", "b", "c"], compiled=compiled)
    assert "\n" not in str(error.value)


def test_the_first_error_is_kept_as_the_cause():
    with pytest.raises(VerifierError) as error:
        grade(lambda prompts, completions: 1 / 0, ["ab", "b"])
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_under_scan_and_vmap():
    verifier = own_verifier(lambda prompts, completions: [len(c) for c in completions], rows(), TOKENIZER, TOKENIZER.stop)
    tokens, mask = completions(["a", "bb", "ccc"])

    def iteration(total, _):
        return total + verifier(PROMPTS, jnp.arange(3), tokens, mask).reward, None

    assert jax.jit(lambda: jax.lax.scan(iteration, jnp.zeros(3), None, length=4)[0])().tolist() == [4, 8, 12]
    seeds = jnp.stack([tokens, tokens[::-1]]), jnp.stack([mask, mask[::-1]])
    found = jax.jit(jax.vmap(lambda t, m: verifier(PROMPTS, jnp.arange(3), t, m)))(*seeds)
    assert found.reward.tolist() == [[1, 2, 3], [3, 2, 1]] and found.valid.all()


def test_a_batch_larger_than_a_page():
    verifier = own_verifier(lambda prompts, completions: [len(c) for c in completions], rows(), TOKENIZER, TOKENIZER.stop)
    tokens = jnp.full((512, 300), 3, jnp.int32)
    counts = jnp.arange(512) % 300
    found = jax.jit(verifier)(PROMPTS, counts % 3, tokens, jnp.arange(300)[None] < counts[:, None])
    np.testing.assert_array_equal(found.reward, counts)


def test_functions_by_their_place(tmp_path, monkeypatch):
    file = tmp_path / "rewards.py"
    file.write_text("def good(prompts, completions, level):\n    return level\nnumber = 3\ndef one(x):\n    return x\n")
    assert grade(f"{file}:good", ["a", "b", "c"]).reward.tolist() == [1, 2, 3]
    monkeypatch.chdir(tmp_path)
    assert grade("rewards:good", ["a", "b"]).reward.tolist() == [1, 2]
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    for place, words in [
        ("good", r"'good' is no place of a function; give a file and a function, as in my_rewards.py:reward"),
        (f"{tmp_path}/none.py:good", "There is no file .*none.py to take the verifier from"),
        ("no_module_here:good", "There is no Python module 'no_module_here' to take the verifier from"),
        (f"{file}:god", r"has no function 'god' \(it has good, one\)"),
        (f"{file}:number", "has no function 'number'"),
        (f"{file}:one", r"does not take prompts; write it as def reward\(prompts, completions, \*\*columns\)"),
        (f"{broken}:good", "raised ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ]:
        with pytest.raises(DataError, match=words):
            own_verifier(place, rows(), TOKENIZER)
    with pytest.raises(DataError, match="asks for the column 'depth', but the data have answer, level"):
        own_verifier(lambda prompts, completions, depth: depth, rows(), TOKENIZER)


@pytest.mark.parametrize("name", ["sorting", "t-chain", "countdown"])
def test_any_task_under_a_verifier_of_ones_own(name):
    seen = {}

    def reward(prompts, completions, answer):
        seen.update(zip(prompts, answer))
        return [float(c == a) for c, a in zip(completions, answer)]

    options = {"prompts": 6} if name == "t-chain" else {"count": 6, "held_out": 3}
    own, plain = make_language_task(name, verifier=reward, **options), make_language_task(name, **options)
    assert own.host and not plain.host
    for prompts, same in [(own.prompts, plain.prompts), (own.held_out, plain.held_out)]:
        index = jnp.arange(len(prompts))
        for shift in (0, 1):
            shown = [jnp.roll(x, shift, axis=0) for x in (prompts.demonstration, prompts.demonstration_mask)]
            np.testing.assert_array_equal(own.verifier(prompts, index, *shown).reward, plain.verifier(same, index, *shown).reward)
    if name == "sorting":
        assert len(seen) == 9 and all(a == "".join(sorted(p[:-1])) for p, a in seen.items())


def test_data_columns_stay_under_a_verifier_of_ones_own():
    pytest.importorskip("reasoning_gym")
    reward = lambda prompts, completions, entry: [float(e["answer"] == c) for e, c in zip(entry, completions)]  # noqa: E731
    task = make_language_task("reasoning_gym:chain_sum", verifier=reward, count=8, held_out=4, length=30)
    shown = task.prompts.demonstration, task.prompts.demonstration_mask
    assert task.verifier(task.prompts, jnp.arange(8), *shown).reward.tolist() == [1.0] * 8


def test_alone_means_a_call_for_each():
    calls = []
    verifier = HostVerifier(lambda prompts, completions: calls.append(completions) or [1], rows(), TOKENIZER, "counting", (), alone=True)
    verifier.grade([0, 1], ["a", "b"])
    assert calls == [["a"], ["b"]]


# -- packages ----------------------------------------------------------------------------------------------------------


def test_reasoning_gym_is_graded_by_its_own_scorer():
    pytest.importorskip("reasoning_gym")
    options = dict(count=30, held_out=10, length=30)
    task = make_language_task("reasoning_gym:chain_sum", **options)
    prompts, index = task.prompts, jnp.arange(30)
    assert task.host and (len(prompts), len(task.held_out)) == (30, 10)
    right = jax.jit(task.verifier)(prompts, index, prompts.demonstration, prompts.demonstration_mask)
    assert right.reward.tolist() == [1.0] * 30 and right.valid.all()
    shifted = [jnp.roll(x, 1, axis=0) for x in (prompts.demonstration, prompts.demonstration_mask)]
    assert task.verifier(prompts, index, *shifted).reward.sum() < 5
    marked = [task.tokenizer.encode(f"So <answer>{task.tokenizer.decode(row)}</answer>") for row in np.asarray(prompts.demonstration)]
    tokens, mask = map(jnp.asarray, padded(marked))
    assert task.verifier(prompts, index, tokens, mask).reward.tolist() == [1.0] * 30


def test_reasoning_gym_seeds_share_nothing():
    pytest.importorskip("reasoning_gym")

    def questions(seed):
        task = make_language_task("reasoning_gym:chain_sum", count=40, held_out=20, seed=seed)
        return [{tuple(row[m]) for row, m in zip(np.asarray(p.tokens), np.asarray(p.mask))} for p in (task.prompts, task.held_out)]

    (learnt, held), (again, _), (other, _) = questions(0), questions(0), questions(1)
    assert learnt == again and not learnt & held and len(learnt & other) < 3


def test_reasoning_gym_mistakes():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(DataError, match="no data set 'chain_sums'; did you mean reasoning_gym:chain_sum"):
        make_language_task("reasoning_gym:chain_sums")
    with pytest.raises(DataError, match="reasoning_gym:chain_sum could not be made: TypeError: .*depth"):
        make_language_task("reasoning_gym:chain_sum", depth=3)
    with pytest.raises(DataError, match="no chat template"):
        make_language_task("reasoning_gym:chain_sum", count=4, held_out=2, chat=True)


def test_mathematics_is_compared_as_mathematics():
    pytest.importorskip("math_verify")
    from polopt.data.mathematics import Grader, final

    assert final("6 * 7 = 42\n#### 42") == "42" and final(" 7 ") == "7"
    grader = Grader()
    for answer, completion, wanted in [
        ("42", "The answer is 42.", 1),
        ("1/2", r"so \boxed{0.5}", 1),
        (r"\frac{1}{2}", "$1/2$", 1),
        ("x+1", "$1+x$", 1),
        ("42", "no idea", 0),
        ("12", r"\boxed{13}", 0),
        ("12", "", 0),
    ]:
        assert grader(answer, completion) == wanted, (answer, completion)
    with pytest.raises(ValueError, match="the answer '' holds nothing that math-verify can read"):
        grader("", "3")


def test_a_completion_that_takes_too_long_ends_the_process_and_the_next_starts_another():
    pytest.importorskip("math_verify")
    from polopt.data.mathematics import Grader

    grader = Grader()
    assert grader("2", "2") == 1
    first, grader.seconds = grader._process, 0.0
    with pytest.raises(TimeoutError, match="math-verify took longer than 0 s"):
        grader("2", "$" + "+".join(["x^{2}"] * 4000) + "$")
    assert first.poll() is not None
    grader.seconds = 30.0
    assert grader("2", "2") == 1 and grader._process is not first


def test_a_missing_package_is_named(monkeypatch):
    import sys

    for package, make in [
        ("reasoning_gym", lambda: make_language_task("reasoning_gym:chain_sum")),
        ("math_verify", lambda: __import__("polopt.data.mathematics", fromlist=["x"]).math_verifier(rows(), TOKENIZER)),
    ]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(DataError, match=rf"needs the package {package}; install it with: pip install 'polopt\[language\]'"):
            make()
