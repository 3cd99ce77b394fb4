"""Runs of language models from the command line and from Python: named, kept, resumed, evaluated, written."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polopt
from polopt import cli
from polopt.data import testbeds
from polopt.data.dataset import DataError
from polopt.policies.language.transformer import Transformer
from polopt.run import language, training
from polopt.run.run import RunError

TINY = dict(model="tiny", task="modular:modulus=5", warm_start=3, steps=4, evaluations=2, episodes=4, final_episodes=4, quiet=True)
SIZES = dict(prompts=4, completions=4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished run of a tiny model on a tiny task."""
    return polopt.fit("grpo", out=tmp_path_factory.mktemp("runs") / "tiny", seeds=2, **TINY, **SIZES)


def test_a_run_keeps_its_model_its_samples_and_its_source(tiny):
    assert (tiny.directory / "model" / "model.safetensors").exists()
    assert tiny.config["language"] | {"notes": []} == {
        "model": "tiny", "task": "modular", "data": None, "verifier": None, "warm_start": 3, "options": {"modulus": 5}, "notes": [],
        "digest": language.digest_of(tiny._language_task()),
    }  # fmt: skip
    rows = [json.loads(line) for line in (tiny.directory / "samples.jsonl").read_text().splitlines()]
    assert {row["seed"] for row in rows} == {0, 1} and all(row["reward"] in (0.0, 1.0) and row["prompt"].endswith("=") for row in rows)
    assert rows[0]["prompt"] in (tiny.directory / "report.html").read_text()


def test_the_kept_model_is_the_one_that_training_started_from(tiny):
    again = polopt.load(tiny.directory)._language_task().model
    fresh = language.pose(language.remembered(tiny.config["language"]), polopt_method("grpo"), 4).model
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(fresh)):
        np.testing.assert_array_equal(a, b)


def polopt_method(name):
    from polopt.methods import registry

    return registry.load(name)(None)


def test_a_loaded_run_writes_evaluates_and_exports(tiny, tmp_path):
    run = polopt.load(tiny.directory)
    writer = run.policy()
    one, many = writer("3+4="), writer(["3+4=", "1+1="])
    assert isinstance(one, str) and many[0] == one and len(many) == 2
    assert isinstance(writer("3+4=", jax.random.key(1)), str)
    assert 0 <= run.evaluate(episodes=8)["mean"] <= 1
    pytest.importorskip("tokenizers")
    place = run.save_model(tmp_path / "model")
    resumed = polopt.fit("grpo", **{**TINY, "model": str(place), "warm_start": None, "steps": 1}, out=tmp_path / "again", **SIZES)
    assert resumed.status["state"] == "finished"


def test_the_exported_model_is_transformers_own(tiny, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    run = polopt.load(tiny.directory)
    place = run.save_model(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place, dtype="float32")
    task, policy = run._language_task(), run.policy().policy
    ids = np.array([task.tokenizer.encode("3+4=")])
    assert transformers.AutoTokenizer.from_pretrained(place)("3+4=").input_ids == ids[0].tolist()
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits[0].numpy()
    np.testing.assert_allclose(policy.logits(jnp.asarray(ids, jnp.int32), jnp.ones(ids.shape, bool))[0], wanted, atol=1e-4)


def test_data_make_demonstrations_and_pairs(tmp_path):
    shown = tmp_path / "shown.jsonl"
    shown.write_text("\n".join(json.dumps({"prompt": f"{i}:", "completion": str(i + 1)}) for i in range(12)))
    run = polopt.fit("sft", model="tiny", data=str(shown), steps=3, episodes=4, final_episodes=4, out=tmp_path / "sft", quiet=True, prompts=4)
    assert run.evaluate(episodes=4)["mean"] < 0  # log-probabilities
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps({"prompt": f"{i}:", "chosen": str(i + 1), "rejected": "9"}) for i in range(12)))
    run = polopt.fit("dpo", model="tiny", data=str(pairs), steps=3, episodes=4, final_episodes=4, out=tmp_path / "dpo", quiet=True, groups=4)
    assert 0 <= run.evaluate(episodes=4)["mean"] <= 1


def test_a_run_of_a_reward_model_grades_another(tmp_path):
    """A reward learnt from pairs that prefer 9 is maximised on prompts without answers; its tokens are taken over, and others are refused."""
    pairs, prompts = tmp_path / "pairs.jsonl", tmp_path / "prompts.jsonl"
    pairs.write_text("\n".join(json.dumps({"prompt": f"{i}:", "chosen": "9", "rejected": str(i % 9)}) for i in range(12)))
    prompts.write_text("\n".join(json.dumps({"prompt": f"{i}:"}) for i in range(8)))
    shared = dict(model="tiny", episodes=4, final_episodes=4, quiet=True)
    learnt = polopt.fit("bt", data=str(pairs), steps=4, out=tmp_path / "rewards", learning_rate=1e-2, groups=4, **shared)
    rewards = learnt.policy().policy
    options = dict(task=f"{prompts}:length=2", verifier=str(tmp_path / "rewards"), steps=2) | shared | SIZES
    run = polopt.fit("rloo", out=tmp_path / "run", **options)
    posed = run._language_task()
    assert posed.tokenizer == learnt._language_task().tokenizer
    said, rows = jnp.full((3, 2), posed.tokenizer.encode("9")[0]), jnp.arange(3)
    graded = posed.verifier(posed.prompts, rows, said, jnp.ones((3, 2), bool))
    np.testing.assert_allclose(graded.reward, rewards(posed.prompts, rows, said, jnp.ones((3, 2), bool)).reward, rtol=1e-5)
    assert all(np.isfinite(row["reward"]) for row in map(json.loads, (run.directory / "samples.jsonl").read_text().splitlines()))
    assert polopt.load(run.directory).evaluate(episodes=4)["mean"] == pytest.approx(run.evaluate(episodes=4)["mean"])
    for where, given, sentence in (
        (run.directory, {"data": str(prompts)}, "is a run of rloo, which learns no reward; give a run of bt or rm_ensemble"),
        (learnt.directory, {"task": "modular:modulus=5"}, "reads the tokens of another tokenizer than modular is written in"),
    ):
        with pytest.raises(DataError, match=sentence):
            polopt.fit("rloo", verifier=str(where), steps=1, out=tmp_path / "no", **given, **shared)


def test_a_composed_method_and_a_task_of_ones_own(tmp_path):
    task = testbeds.bandit(prompts=4, answers=3)
    method = dataclasses.replace(polopt_method("grpo"), epochs=2)
    method = polopt.core.parts.replace(method, {"prompts": 4, "completions": 4})
    run = polopt.fit(method, task=task, steps=3, episodes=4, final_episodes=4, out=tmp_path / "own", quiet=True)
    with pytest.raises(RunError, match=r"started with a task object; pass it again: load\(directory, task=\.\.\.\)"):
        polopt.load(run.directory).evaluate()
    assert 0 <= polopt.load(run.directory, task=task).evaluate(episodes=4)["mean"] <= 1
    with pytest.raises(DataError, match="is a table has no model directory"):
        polopt.load(run.directory, task=task).save_model(tmp_path / "m")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["grpo"], "No model is given; give --model tiny"),
        (["grpo", "--model", "tiny"], "Neither a task and data are given"),
        (["grpo", "--model", "tiny", "--task", "arithmetik"], "arithmetik"),
        (["grpo", "--model", "tiny", "--task", "modular:modulus"], "no task 'modular:modulus'"),
        (["grpo", "--model", "tiny", "--task", "modular:size=3"], "has no option 'size'"),
        (["grpo", "--model", "nowhere", "--task", "modular"], "nowhere"),
        (["grpo", "--env", "CartPole-v1", "--model", "tiny"], "env is for methods that act in environments"),
        (["ppo", "--model", "tiny", "--task", "modular"], "needs an environment"),
        (["ppo", "--env", "CartPole-v1", "--verifier", "x.py:f"], "verifier is for methods of language models"),
        (["grpo", "--model", "tiny", "--data", "absent.jsonl"], "absent.jsonl"),
        (["grpo", "--model", "tiny", "--data", "table.csv"], "a file of .jsonl or .parquet is expected"),
        (["dpo", "--model", "tiny", "--task", "modular"], "preferences"),
        (["grpo", "--model", "tiny", "--task", "modular:modulus=5", "--sampler.prompts", "4000"], "takes 4000 prompts an iteration"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, sentence, capsys, tmp_path):
    code = cli.main(["train", *arguments, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert code == 2 and sentence in said and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()


def test_options_of_a_task_are_numbers_where_they_can_be():
    assert language.options_of("countdown:numbers=4,ratio=0.5") == ("countdown", (("numbers", 4), ("ratio", 0.5)))
    assert language.options_of("reasoning_gym:chain_sum") == ("reasoning_gym:chain_sum", ())
    assert language.options_of("reasoning_gym:chain_sum:min_terms=3") == ("reasoning_gym:chain_sum", (("min_terms", 3),))


def test_prompts_that_a_model_cannot_see_are_refused(tmp_path):
    pytest.importorskip("tokenizers")
    posed = language.pose(language.Source("tiny", "modular", options=(("modulus", 5),), warm_start=0), polopt_method("grpo"), 1)
    short = Transformer.random(dataclasses.replace(posed.model.config, context=5), jax.random.key(0))
    language.save_model(short, posed.tokenizer, tmp_path / "short")
    given = {**TINY, "model": str(tmp_path / "short"), "warm_start": None}
    with pytest.raises(DataError, match=r"up to \d+ tokens and their completions up to \d+, but the model sees 5 in all; take a model"):
        polopt.fit("grpo", **given, out=tmp_path / "run", **SIZES)
    assert not (tmp_path / "run").exists()


def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch):
    def fail(self, chunk, count):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: Out of memory allocating {5 * 2**30} bytes.")

    monkeypatch.setattr(training.Training, "_advance", fail)
    with pytest.raises(RunError, match=r"Memory ran out: a single array of 5\.0 GiB did not fit, and an iteration takes about \d") as error:
        polopt.fit("grpo", out=tmp_path / "run", seeds=2, **TINY, **SIZES)
    for name in ("sampler.prompts (4)", "sampler.completions (4)", "micro_batch (all)", "number of seeds (2)", "the task's length"):
        assert name in str(error.value)
    notes = (tmp_path / "run" / "notes.jsonl").read_text()
    assert "Memory ran out" in notes and polopt.load(tmp_path / "run").status["state"] == "failed"


def test_a_run_does_not_go_on_with_other_prompts(tmp_path):
    file = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(10, 30)]
    file.write_text("\n".join(map(json.dumps, rows)))
    run = polopt.fit("sft", model="tiny", data=str(file), steps=2, evaluations=1, episodes=2, final_episodes=2, quiet=True, out=tmp_path / "run")
    assert polopt.load(run.directory).evaluate(episodes=2)["mean"] <= 0
    file.write_text("\n".join(map(json.dumps, rows[:-1])))
    with pytest.raises(RunError, match=r"sums.jsonl does not give the prompts that .* was started with. Bring the file back"):
        polopt.load(run.directory).evaluate(episodes=2)
