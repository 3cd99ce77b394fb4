"""Files of texts: what becomes of each convention, and what is wrong with a row, by its line."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polopt.data.dataset import DataError
from polopt.data.tasks import make_language_task
from polopt.data.text_files import read_rows
from polopt.data.text_tasks import demonstration_task, preference_task, question_task
from polopt.data.tokenizer import CharacterTokenizer, HuggingFaceTokenizer

CHARACTERS = CharacterTokenizer("".join(map(chr, range(32, 127))))
reward = lambda prompts, completions, answer: [float(c == a) for c, a in zip(completions, answer)]  # noqa: E731


@pytest.fixture
def hugging(tmp_path):
    from tests.data.test_tokenizer import directory

    return HuggingFaceTokenizer(directory(tmp_path / "model"))


def written(path, rows):
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def text(tokenizer, tokens, mask):
    return tokenizer.decode(np.asarray(tokens)[np.asarray(mask)])


def prompts_of(task, prompts):
    return [text(task.tokenizer, t, m) for t, m in zip(prompts.tokens, prompts.mask)]


SUMS = [{"question": f"{i}+{i}?", "answer": str(2 * i), "level": i} for i in range(10)]


@pytest.mark.parametrize("name", ["sums.jsonl", "sums.parquet"])
def test_questions_and_answers(name, tmp_path):
    task = question_task(written(tmp_path / name, SUMS), CHARACTERS, verifier=reward, held_out=3, length=8)
    assert (len(task.prompts), len(task.held_out), task.name) == (7, 3, "sums") and task.host
    assert sorted(prompts_of(task, task.prompts) + prompts_of(task, task.held_out)) == sorted(r["question"] for r in SUMS)
    for prompts in (task.prompts, task.held_out):
        shown = prompts.demonstration, prompts.demonstration_mask
        index = jnp.arange(len(prompts))
        assert jax.jit(task.verifier)(prompts, index, *shown).reward.tolist() == [1.0] * len(prompts)
        assert task.verifier(prompts, index, *(jnp.roll(x, 1, axis=0) for x in shown)).reward.sum() == 0
    again = question_task(tmp_path / name, CHARACTERS, verifier=reward, held_out=3, length=8, seed=1)
    assert prompts_of(again, again.prompts) != prompts_of(task, task.prompts)


def test_a_file_is_a_task_by_its_name(tmp_path):
    pytest.importorskip("math_verify")
    path = written(tmp_path / "g.jsonl", [{"question": f"{i}?", "answer": f"as {i}+{i}\n#### {2 * i}"} for i in range(6)])
    tokenizer = CharacterTokenizer("".join(map(chr, range(32, 127))) + "\n")
    task = make_language_task(str(path), tokenizer=tokenizer, held_out=2, length=30)
    shown = task.prompts.demonstration, task.prompts.demonstration_mask
    assert jax.jit(task.verifier)(task.prompts, jnp.arange(4), *shown).reward.tolist() == [1.0] * 4
    assert task.verifier(task.prompts, jnp.arange(4), *(jnp.roll(x, 1, axis=0) for x in shown)).reward.sum() == 0
    with pytest.raises(DataError, match="need a tokenizer; give the directory of a model"):
        make_language_task(str(path))
    with pytest.raises(DataError, match="has no option 'depth'; it has prompt_column, answer_column, chat"):
        make_language_task(str(path), tokenizer=tokenizer, depth=3)


def test_columns_by_name_and_numbers_as_answers(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"q": f"{i}?", "a": i} for i in range(4)])
    task = question_task(path, CHARACTERS, prompt_column="q", answer_column="a", verifier=lambda prompts, completions, a: a, length=4)
    assert sorted(set(task.verifier.rows.columns["a"])) == ["0", "1", "2", "3"]
    with pytest.raises(DataError, match=r"no column for the prompt \(prompt, question.*\); it has q, a; name the one that holds it"):
        question_task(path, CHARACTERS)
    with pytest.raises(DataError, match="no column 'b'; it has q, a"):
        question_task(path, CHARACTERS, prompt_column="b")
    with pytest.raises(DataError, match="no column for the answer"):
        question_task(path, CHARACTERS, prompt_column="q")


def test_equal_questions_stay_on_one_side(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"prompt": f"{i % 3}?", "answer": "x"} for i in range(12)])
    task = question_task(path, CHARACTERS, verifier=reward, held_out=3, length=4)
    assert not set(prompts_of(task, task.prompts)) & set(prompts_of(task, task.held_out)) and len(task.held_out) == 4


def test_rows_that_do_not_fit_are_left_out_and_counted(tmp_path):
    path = written(tmp_path / "a.jsonl", [{"prompt": "x" * (i + 1), "answer": "1"} for i in range(10)])
    task = question_task(path, CHARACTERS, verifier=reward, longest=6, length=4, held_out=2)
    assert len(task.prompts) + len(task.held_out) == 6 and task.prompts.tokens.shape[1] <= 6
    assert task.notes == (f"4 of 10 prompts of {path} are longer than 6 tokens and were left out.",)
    # a row's own answer is asked for, also where others were left out before it
    assert all(task.verifier.rows.texts[r] == p for r, p in zip(task.prompts.facts.tolist(), prompts_of(task, task.prompts)))
    with pytest.raises(DataError, match="longest is 0, but a whole number of at least 1"):
        question_task(path, CHARACTERS, verifier=reward, longest=0)
    pairs = written(tmp_path / "b.jsonl", [{"prompt": "xxx", "completion": "yyy"}])
    with pytest.raises(DataError, match="No row of .*b.jsonl fits: the longest prompt has 3 tokens where 2 fit, and completions may have any number"):
        demonstration_task(pairs, CHARACTERS, longest=2)
    short = question_task(path, CHARACTERS, verifier=reward, length=1)
    assert short.prompts.demonstration is None and "longer than 1 tokens, so that they are no demonstrations" in short.notes[0]


def test_prompts_and_completions(tmp_path, hugging):
    rows = [{"prompt": f"what is {i}", "completion": " two" * (1 + i % 3)} for i in range(6)]
    task = demonstration_task(written(tmp_path / "a.jsonl", rows), hugging, held_out=2)
    assert task.verifier is None and not task.host and task.stop == hugging.stop
    said = {p: text(hugging, t, m) for p, t, m in zip(prompts_of(task, task.prompts), task.prompts.demonstration, task.prompts.demonstration_mask)}
    assert said.items() <= {r["prompt"]: r["completion"] for r in rows}.items() and len(said) == 4
    ends = task.prompts.demonstration_mask.sum(1) - 1
    assert task.prompts.demonstration[jnp.arange(4), ends].tolist() == [hugging.stop[0]] * 4
    fewer = demonstration_task(tmp_path / "a.jsonl", hugging, held_out=1, length=int(task.length) - 1)
    assert "have a completion longer than" in fewer.notes[0]


def conversation(i, answer):
    return [{"role": "user", "content": f"what is {i}"}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("form", ["messages", "prompt and completion"])
def test_conversations(form, tmp_path, hugging):
    rows = [{"messages": conversation(i, "two")} for i in range(5)]
    if form != "messages":
        rows = [{"prompt": r["messages"][:1], "completion": r["messages"][1:]} for r in rows]
    task = demonstration_task(written(tmp_path / "a.jsonl", rows), hugging, held_out=1)
    whole = [hugging.decode(t[m]) for t, m in zip(np.asarray(task.prompts.tokens), np.asarray(task.prompts.mask))]
    assert all(w.startswith("user\nwhat is ") and w.endswith("\nassistant\n") for w in whole)
    shown = np.asarray(task.prompts.demonstration)[np.asarray(task.prompts.demonstration_mask)].tolist()
    assert shown == [*hugging.encode("two"), *hugging.stop] * 4  # the template's new line behind the stop token is not said


def test_questions_as_turns(tmp_path, hugging):
    path = written(tmp_path / "a.jsonl", SUMS)
    task = question_task(path, hugging, verifier=reward, chat=True, system="be short", length=8)
    assert task.verifier.rows.texts[3] == hugging.chat(
        [{"role": "system", "content": "be short"}, {"role": "user", "content": "3+3?"}], generate=True
    )
    plain = question_task(path, hugging, verifier=reward, length=8)
    assert plain.verifier.rows.texts[3] == "3+3?"


def test_pairs(tmp_path):
    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no" * (i + 1)} for i in range(5)]
    task = preference_task(written(tmp_path / "a.jsonl", rows), CHARACTERS, held_out=1)
    preferences = task.preferences
    assert preferences.responses.shape[:2] == (4, 2) and len(preferences) == 4 and len(task.held_out) == 1
    assert preferences.score.tolist() == [[1.0, 0.0]] * 4 and preferences.score.dtype == jnp.float32
    for i, prompt in enumerate(prompts_of(task, preferences.prompts)):
        said = [text(CHARACTERS, *pair) for pair in zip(preferences.responses[i], preferences.mask[i])]
        assert said == ["yes", "no" * (int(prompt[0]) + 1)]
        assert [r[m][-1] for r, m in zip(np.asarray(preferences.responses[i]), np.asarray(preferences.mask[i]))] == [1, 1]
    assert prompts_of(task, preferences.take(jnp.array([2])).prompts) == prompts_of(task, preferences.prompts)[2:3]
    assert task.length == preferences.responses.shape[2]


@pytest.mark.parametrize("explicit", [True, False])
def test_pairs_of_conversations(explicit, tmp_path, hugging):
    rows = [{"chosen": conversation(i, "two"), "rejected": conversation(i, "world")} for i in range(4)]
    if explicit:
        rows = [{"prompt": r["chosen"][:1], "chosen": r["chosen"][1:], "rejected": r["rejected"][1:]} for r in rows]
    task = preference_task(written(tmp_path / "a.jsonl", rows), hugging, held_out=1)
    said = [[text(hugging, *pair) for pair in zip(*row)] for row in zip(task.preferences.responses, task.preferences.mask)]
    assert said == [["two", "world"]] * 3
    assert all(p.startswith("user\nwhat is ") for p in prompts_of(task, task.preferences.prompts))


def test_labels(tmp_path):
    rows = [{"prompt": f"{i}?", "completion": "x", "label": i % 2 == 0} for i in range(6)]
    task = preference_task(written(tmp_path / "a.jsonl", rows), CHARACTERS, held_out=2)
    assert task.preferences.responses.shape[:2] == (4, 1)
    assert [[float(int(p[0]) % 2 == 0)] for p in prompts_of(task, task.preferences.prompts)] == task.preferences.score.tolist()


GOOD = {"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b", "label": True, "answer": "1"}
MESSAGE = {"role": "user", "content": "x"}
WRONG = [
    (question_task, ["{"], "line 2 is no JSON"),
    (question_task, ["[1]"], "line 2 is a list, but an object of columns is expected"),
    (question_task, [{"prompt": 3, "answer": "1"}], "line 2: the prompt is a int, but a text or a list of messages"),
    (question_task, [{"answer": "1"}], "line 2: the prompt is missing"),
    (question_task, [{"prompt": "p", "answer": None}], "line 2: the answer is None, but a text or a number"),
    (question_task, [{"prompt": "ä", "answer": "1"}], "line 2: The text 'ä' has the character 'ä'"),
    (question_task, [{"prompt": [MESSAGE], "answer": "1"}], "line 2: The character tokenizer has no chat template"),
    (question_task, [{"prompt": [{"content": "x"}], "answer": "1"}], 'line 2: the prompt has the message .* but {"role": ..., "content": ...}'),
    (question_task, [], "has only one prompt, but one to learn from and another to hold out"),
    (demonstration_task, [{"prompt": "p", "completion": []}], "line 2: the completion is empty"),
    (demonstration_task, [{"prompt": "p", "completion": [MESSAGE]}], "line 2: the prompt is a text, but the completion is messages"),
    (preference_task, [{"prompt": "p", "completion": "c", "label": 2}], "line 2: the label is 2, but true or false"),
]


@pytest.mark.parametrize("make, rows, words", WRONG)
def test_a_bad_row_is_named_by_its_line(make, rows, words, tmp_path):
    with pytest.raises(DataError, match=words) as error:
        make(written(tmp_path / "a.jsonl", [GOOD, *rows]), CHARACTERS, **({"verifier": reward} if make is question_task else {}))
    assert "\n" not in str(error.value) and "a.jsonl" in str(error.value)


@pytest.mark.parametrize(
    "make, first, words",
    [
        (demonstration_task, {"prompt": "p"}, "has no column 'completion'; it has prompt"),
        (demonstration_task, {"messages": [MESSAGE, MESSAGE]}, "line 1: the messages must be turns of which the last is the assistant's"),
        (preference_task, {"prompt": "p", "chosen": "c"}, "has no column 'rejected'; it has prompt, chosen"),
        (preference_task, {"chosen": "c", "rejected": "d"}, "line 1: chosen and rejected are texts without a prompt; add a column prompt"),
        (preference_task, {"chosen": [MESSAGE], "rejected": [MESSAGE]}, "line 1: chosen and rejected must begin with the same messages"),
    ],
)
def test_files_without_the_columns(make, first, words, tmp_path):
    with pytest.raises(DataError, match=words):
        make(written(tmp_path / "a.jsonl", [first]), CHARACTERS)


def test_a_template_that_rewrites_the_prompt(tmp_path):
    from tests.data.test_tokenizer import directory

    tokenizer = HuggingFaceTokenizer(directory(tmp_path / "model", "{{ messages | length }}:{{ messages[0].content }}"))
    path = written(tmp_path / "a.jsonl", [{"messages": conversation(1, "two")}])
    with pytest.raises(DataError, match="line 1: the chat template writes the prompt otherwise when the completion follows"):
        demonstration_task(path, tokenizer)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "ä"}'.encode("latin-1"))
    for name, words in [
        ("a.csv", r"no format of texts for 'a.csv'; give a name that ends in .jsonl, .parquet"),
        ("none.jsonl", "none.jsonl are not there"),
        ("empty.jsonl", "has no rows"),
        ("latin.jsonl", r"is not UTF-8 text \(byte 12\)"),
    ]:
        with pytest.raises(DataError, match=words):
            read_rows(tmp_path / name)
    pytest.importorskip("pyarrow")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cut.parquet is cut off or damaged"):
        read_rows(tmp_path / "cut.parquet")


def test_too_much_held_out(tmp_path):
    path = written(tmp_path / "a.jsonl", SUMS)
    for held_out in (0, 10, 11):
        with pytest.raises(DataError, match=f"{held_out} rows of .* are to be held out, but it has 10"):
            question_task(path, CHARACTERS, verifier=reward, held_out=held_out)
