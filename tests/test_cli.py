"""What a person at a terminal gets: the sentences, the exit codes, the files."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import polopt
from polopt.cli import COMMANDS, _train_options
from polopt.interop.export import load_safetensors, load_stablehlo
from polopt.run.huge_pages import would_help
from polopt.run.training import Training
from tests.runs import copy_of, digests, finished, lines, one_sentence, options, polopt_says, signal_after

HOST = "gym:CartPole-v1"

# -- help --------------------------------------------------------------------------------------------------------------


def test_without_arguments_the_commands_are_shown(capsys):
    code, out, err = polopt_says(capsys)
    assert code == 0 and not err
    for command in COMMANDS:
        assert f"\n  {command} " in out
    assert polopt_says(capsys, "--help") == (0, out, "")
    assert polopt_says(capsys, "--version") == (0, f"polopt {polopt.__version__}\n", "")


OPTIONS = {
    "train": ["--env", "--steps", "--seeds", "--out", "--log", "--learning-rate", "--network.hidden", "--num-envs", "(default: 0.2)"],
    "resume": ["--quiet"],
    "evaluate": ["--episodes", "--env", "--policy", "--stochastic", "--key", "--video"],
    "compare": ["--env", "--steps", "--seeds", "--out", "--policy", "--html"],
    "report": ["--html"],
    "export": ["--to", "--format", "--seed", "--policy", "stablehlo"],
    "list": ["--family"],
    "show": ["METHOD"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_options(command, capsys):
    code, out, err = polopt_says(capsys, command, "--help")
    assert code == 0 and not err
    assert f"usage: polopt {command}" in out
    assert not [word for word in OPTIONS.get(command, ()) if word not in out]


def test_help_has_the_defaults_for_the_environment(capsys):
    _, general, _ = polopt_says(capsys, "train", "ppo", "--help")
    _, continuous, _ = polopt_says(capsys, "train", "ppo", "--env", "Pendulum-v1", "--help")
    assert "with its defaults for Pendulum-v1" in continuous and "(default: 256)" in continuous and "(default: 256)" not in general


def test_list_imports_nothing_heavy():
    heavy = {"jax", "numpy", "gymnasium", "tyro", "equinox"}
    code = f"import sys; from polopt.cli import main; main(['list']); print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.endswith("[]\n")
    assert "policy_gradient\n" in out and "Proximal Policy Optimization Algorithms (2017)" in out


def test_list_of_a_family(capsys):
    assert polopt_says(capsys, "list", "--family", "policy_gradient") == polopt_says(capsys, "list", "--family=policy_gradient")
    code, out, _ = polopt_says(capsys, "list", "--family", "policy_gradient")
    assert code == 0 and out.startswith("policy_gradient\n") and "  ppo " in out


def test_a_reader_that_goes_away_is_no_defect():
    shell = f"{sys.executable} -c 'from polopt.cli import main; raise SystemExit(main([\"show\", \"ppo\"] ))' | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.stdout == "Proximal Policy Optimization Algorithms.\n" and not done.stderr


def test_it_is_a_module_that_can_be_run():
    done = subprocess.run([sys.executable, "-m", "polopt", "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "polopt: there is no command 'trian'. Did you mean `polopt train`?\n"


def test_show_has_equations_parts_defaults_and_bibtex(capsys):
    code, out, _ = polopt_says(capsys, "show", "ppo")
    assert code == 0
    for words in ("John Schulman", "L_clip", "ppo:kl_penalty", "clip = 0.2", "num_envs = 8", "@misc{ppo2017,", "eprint = {1707.06347}"):
        assert words in out


# -- a user's mistakes -------------------------------------------------------------------------------------------------

MISTAKES = {
    "trian": ["no command 'trian'", "`polopt train`"],
    "train": ["needs a METHOD first", "polopt train ppo --env CartPole-v1"],
    "train --env CartPole-v1 ppo": ["needs a METHOD first"],
    "train pppo --env CartPole-v1": ["no method 'pppo'", "Did you mean ppo"],
    "train ppo:kl --env CartPole-v1": ["no variant 'ppo:kl'", "ppo:kl_penalty"],
    "train ppo --env NoSuch-v0": ["no environment 'NoSuch-v0'", "CartPole-v1", "path/to/file.py:ClassName"],
    "train ppo --env CartPol-v1": ["no environment 'CartPol-v1'", "did you mean CartPole-v1"],
    "train ppo --env transitions.npz": ["no environment 'transitions.npz'"],
    "train ppo --env nowhere.py:Env": ["no file nowhere.py", "my_env.py:MyEnv"],
    "train ppo --env probe:action --clip -1": ["clip is -1.0", "above 0"],
    "train ppo --env probe:action --network.hidden 0": ["hidden", "(0,)", "at least 1"],
    "train ppo --env probe:action --minibatches 7": ["The method ppo", "7 minibatches"],
    "train ppo --env probe:action --seeds 0": ["seeds is 0", "at least 1"],
    "train ppo --env probe:action --steps 0": ["steps is 0", "at least 1"],
    "train ppo --env probe:action --evaluations 0": ["evaluations is 0", "at least 1"],
    "train ppo --env probe:action --log csv": ["no logger 'csv'", "tensorboard, wandb, mlflow, trackio"],
    "resume": ["needs a DIR first", "polopt resume runs/"],
    "resume nowhere": ["nowhere holds no run", "run.json"],
    "evaluate nowhere": ["nowhere holds no run"],
    "export nowhere --to policy.onnx": ["nowhere holds no run"],
    "report nowhere --html report.html": ["nowhere holds no run"],
    "list --family control": ["no family 'control'", "policy_gradient"],
    "list ppo": ["--family"],
    "show": ["needs a METHOD"],
    "show poo": ["no method 'poo'", "ppo"],
    "show ppo a2c": ["takes one method"],
    "compare ppo a2c": ["ppo is not a run's folder", "polopt compare ppo a2c --env CartPole-v1"],
    "compare ppo --env CartPole-v1": ["at least 2", "1"],
    "compare ppo ppo --env CartPole-v1": ["not all different"],
    "compare ppo poo --env CartPole-v1": ["no method 'poo'"],
    "compare ppo a2c --env NoSuch-v0": ["no environment 'NoSuch-v0'"],
}


def test_an_option_by_the_end_of_its_name():
    """As long as only one field ends in it."""
    words = ["--env", "Pendulum-v1", "--actor-network.hidden", "8", "8", "--critic-network.hidden=4", "--learning-rate", "1"]
    with pytest.raises(SystemExit):
        _train_options("sac", words)
    _, changes = _train_options("sac", words[:-2])
    assert changes == {"rule__actor_network__hidden": (8, 8), "rule__critic_network__hidden": (4,)}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = polopt_says(capsys, *line.split())
    assert code == 2 and not out
    sentence = one_sentence(err)
    assert not [words for words in MISTAKES[line] if words not in sentence]
    assert not list(tmp_path.iterdir())  # nothing was made that stands in the way of the next try


OPTION_MISTAKES = {
    "train ppo --env probe:action --no-such-field 3": ["--no-such-field"],
    "train ppo --env probe:action --clip wide": ["--clip", "'wide'"],
    "train ppo --env probe:action --steps many": ["--steps", "'many'"],
    "train ppo --env probe:action --bounds squish": ["--bounds", "'squish'", "'squash'"],
    "train ppo --env probe:action more": ["more"],
    "export nowhere": ["--to", "required"],
    "export nowhere --to p --format pickle": ["--format", "'pickle'", "'onnx'"],
    "evaluate nowhere --episodes few": ["--episodes", "'few'"],
    "report nowhere": ["--html", "required"],
}


@pytest.mark.parametrize("line", OPTION_MISTAKES)
def test_a_mistaken_option_is_named(line, capsys):
    code, out, err = polopt_says(capsys, *line.split())
    assert code == 2 and not out and "Traceback" not in err
    assert "help" in err
    assert not [words for words in OPTION_MISTAKES[line] if words not in err]


@pytest.mark.parametrize("logger, module", [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow"), ("trackio", "trackio")])
def test_a_logger_whose_package_is_missing(logger, module, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = polopt_says(capsys, "train", "ppo", "--env", "probe:action", "--out", tmp_path / "run", "--log", logger)
    assert code == 2
    assert f"The logger {logger!r} needs the package {module}" in one_sentence(err) and f"pip install polopt[{logger}]" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "out, words", [("run", ["holds a run already", "polopt resume"]), ("file", ["is not an empty folder"]), ("full", ["is not an empty folder"])]
)
def test_a_folder_that_is_taken_is_left_alone(out, words, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, _, err = polopt_says(capsys, "train", "ppo", "--env", "probe:action", "--out", tmp_path / out)
    assert code == 2 and not [w for w in [str(tmp_path / out), "--out", *words] if w not in one_sentence(err)]
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_a_folder_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = polopt_says(capsys, "train", "ppo", "--env", "probe:action", "--out", tmp_path / "file" / "run")
    assert code == 2 and "Not a directory" in one_sentence(err) and "another --out" in err


# -- a run from beginning to end ---------------------------------------------------------------------------------------


def test_train_writes_all_that_it_prints(capsys, tmp_path):
    run = tmp_path / "run"
    code, out, err = polopt_says(capsys, "train", "ppo", "--env", "probe:action", "--out", run, *options())
    assert code == 0 and not err
    for name in ("run.json", "metrics.jsonl", "evaluations.jsonl", "status.json", "evaluation.json", "report.html", "curve.png", "checkpoints"):
        assert (run / name).exists(), name
    final = json.loads((run / "evaluation.json").read_text())
    for which in ("last", "best"):
        low, high = final[which]["interval"]
        seeds = ", ".join(f"{x:.3f}" for x in final[which]["per_seed"])
        assert f"{which} policy: return {final[which]['iqm']:.3f} [{low:.3f}, {high:.3f}]; per seed: {seeds}\n" in out
    assert f"report: {run / 'report.html'}\n" in out and f"curve:  {run / 'curve.png'}\n" in out
    assert json.loads((run / "run.json").read_text())["command"].startswith("polopt train ppo --env probe:action --out")
    code, again, err = polopt_says(capsys, "resume", run)
    assert code == 0 and "finished already" in again and again.endswith(out) and not err


def test_progress_without_a_terminal_is_plain_lines_whose_numbers_are_kept(capsys, tmp_path):
    words = [w for w in options() if w != "--quiet"]
    code, out, _ = polopt_says(capsys, "train", "ppo", "--env", "probe:action", "--out", tmp_path / "run", *words)
    assert code == 0 and out.isascii()
    assert "ppo on probe:action\ncompiling\n" in out and "step 640 of 640 (100 %)" in out and "steps/s" in out and "return" in out
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 640


def test_evaluate_prints_what_it_keeps(capsys):
    run = finished(HOST)
    code, out, err = polopt_says(capsys, "evaluate", run, "--episodes", 3, "--key", 1, "--policy", "last", "--stochastic")
    kept = lines(run / "requested.jsonl")[-1]
    assert code == 0 and not err
    assert (kept["env"], kept["policy"], kept["stochastic"], kept["key"]) == (HOST, "last", True, 1)
    assert np.shape(kept["returns"]) == (2, 3)
    np.testing.assert_allclose(np.mean(kept["returns"], axis=1), kept["per_seed"], rtol=1e-6)
    low, high = kept["interval"]
    assert f"{HOST}, last policy, 3 episodes a seed: return {kept['iqm']:.1f} [{low:.1f}, {high:.1f}]\n" in out
    for seed in (0, 1):
        assert f"  seed {seed}: {kept['per_seed'][seed]:.1f}\n" in out


def test_equal_keys_evaluate_equal_episodes_and_others_do_not(capsys):
    results = [polopt_says(capsys, "evaluate", finished(HOST), "--episodes", 3, "--key", key) for key in (5, 5, 6)]
    assert results[0] == results[1] != results[2]


def test_evaluate_elsewhere(capsys):
    code, out, err = polopt_says(capsys, "evaluate", finished(HOST), "--episodes", 2, "--env", "CartPole-v1")
    assert (code, err) == (0, "") and out.startswith("CartPole-v1, best policy, 2 episodes a seed: return ")
    assert lines(finished(HOST) / "requested.jsonl")[-1]["env"] == "CartPole-v1"
    code, out, err = polopt_says(capsys, "evaluate", finished(HOST), "--episodes", 2, "--env", "Acrobot-v1")
    assert code == 2 and not out
    sentence = one_sentence(err)
    assert "Acrobot-v1 has observations float32[6] and actions Discrete(n=3)" in sentence
    assert "trained on observations float32[4] and actions Discrete(n=2)" in sentence and "same spaces" in sentence


@pytest.mark.parametrize("words", [["--episodes", "0"], ["--env", "NoSuch-v0"], ["--episodes", "1", "--video", "film.avi"]])
def test_evaluate_refuses(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = polopt_says(capsys, "evaluate", finished(HOST), *words)
    assert code == 2 and words[-1].split()[0] in one_sentence(err) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("env", ["CartPole-v1", HOST])
def test_evaluate_films_an_episode(env, capsys, tmp_path):
    code, out, err = polopt_says(capsys, "evaluate", finished(HOST), "--episodes", 1, "--env", env, "--video", tmp_path / "film.gif")
    assert (code, err) == (0, "") and f"video: {tmp_path / 'film.gif'}\n" in out
    from PIL import Image

    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames > 5


@pytest.mark.parametrize("form", ["onnx", "stablehlo", "safetensors"])
def test_export_acts_as_the_policy_does(form, capsys, tmp_path):
    path = tmp_path / f"policy.{form}"
    code, out, err = polopt_says(capsys, "export", finished(HOST), "--to", path, "--format", form, "--seed", 1, "--policy", "last")
    assert (code, err) == (0, "") and f"{path} ({form}): largest difference from the original" in out
    kept = lines(finished(HOST) / "exports.jsonl")[-1]
    assert (kept["to"], kept["format"], kept["seed"], kept["policy"]) == (str(path), form, 1, "last") and kept["largest_difference"] <= 1e-5
    agent = polopt.load(finished(HOST)).policy(seed=1, which="last")
    observations = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    if form == "onnx":
        import onnxruntime

        actions = onnxruntime.InferenceSession(path).run(None, {"observation": observations})[0]
    elif form == "stablehlo":
        actions = load_stablehlo(path)(observations)
    else:
        policy = load_safetensors(path, like=agent.policy)
        actions = jax.vmap(lambda o: policy.act(policy.initial_carry(), o)[1])(observations)
    np.testing.assert_array_equal(actions, agent(observations))


@pytest.mark.parametrize("words, expected", [(["--to", "no/where/policy.onnx"], "no/where"), (["--to", "p.onnx", "--seed", "7"], "seed is 7")])
def test_export_refuses(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = polopt_says(capsys, "export", finished(HOST), *words)
    assert code == 2 and expected in one_sentence(err) and not list(tmp_path.iterdir())


def test_report_of_two_runs(capsys, tmp_path):
    html = tmp_path / "report.html"
    code, out, err = polopt_says(capsys, "report", finished(), finished(method="a2c"), "--html", html)
    assert (code, out, err) == (0, f"report: {html}\n", "")
    assert "ppo" in html.read_text() and "a2c" in html.read_text() and (tmp_path / "curve.png").exists()
    code, _, err = polopt_says(capsys, "report", finished(HOST), "--html", tmp_path / "no" / "report.html")
    assert code == 2 and f"no folder {tmp_path / 'no'}" in one_sentence(err)


# -- stopping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env, saved, number", [("probe:action", 96, signal.SIGINT), (HOST, 64, signal.SIGTERM)])
def test_a_signal_saves_and_says_how_to_go_on(env, saved, number, capsys, tmp_path, monkeypatch):
    """A JAX environment is saved where it is; one on the host goes back to the last checkpoint, from which it can start again."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_after(patch, 3, number)
        code, out, err = polopt_says(capsys, "train", "ppo", "--env", env, "--out", run, *options())
    assert (code, err) == (130, "")
    assert out == f"Stopped at step 96; saved at step {saved}. Go on with: polopt resume {run}\n"
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == [32, 64, 96]
    code, out, err = polopt_says(capsys, "compare", run, run)
    assert code == 2 and f"interrupted. Finish it by `polopt resume {run}`" in one_sentence(err)
    if env == HOST:
        return  # from here on it is as if it had been killed: tests/run/test_checkpoint.py
    code, out, err = polopt_says(capsys, "resume", run, "--quiet")
    assert (code, err) == (0, "") and out.startswith("last policy: return")
    assert digests(run) == digests(finished(env))
    assert (run / "evaluation.json").read_text() == (finished(env) / "evaluation.json").read_text()


def test_ctrl_c_twice_stops_at_once(capsys, tmp_path, monkeypatch):
    advance = Training._advance

    def impatient(self, *args):
        advance(self, *args)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_advance", impatient)
        code, out, err = polopt_says(capsys, "train", "ppo", "--env", "probe:action", "--out", tmp_path / "run", *options())
    assert code == 130 and not out and f"Go on with: polopt resume {tmp_path / 'run'}" in one_sentence(err)
    assert polopt_says(capsys, "resume", tmp_path / "run", "--quiet")[0] == 0


def test_stopped_before_anything_is_saved_the_run_starts_anew(capsys, tmp_path):
    run = copy_of(finished(), tmp_path / "run")
    before = digests(run)
    for name in ("checkpoints", "status.json", "metrics.jsonl", "evaluations.jsonl", "evaluation.json", "report.html"):
        subprocess.run(["rm", "-r", run / name], check=True)
    code, out, err = polopt_says(capsys, "resume", run)
    assert (code, err) == (0, "") and "There is no checkpoint yet: the run starts from its beginning.\n" in out
    assert digests(run) == before


# -- memory --------------------------------------------------------------------------------------------------------------


def test_huge_pages_are_asked_for_where_that_helps(tmp_path):
    offered = tmp_path / "enabled"
    offered.write_text("always [madvise] never")
    new_enough = os.confstr("CS_GNU_LIBC_VERSION").startswith("glibc 2.") and int(os.confstr("CS_GNU_LIBC_VERSION").split(".")[1]) >= 35
    assert would_help({}, offered) == new_enough
    assert not would_help({"GLIBC_TUNABLES": "glibc.malloc.check=1"}, offered)
    for setting in ("[always] madvise never", "always madvise [never]"):
        offered.write_text(setting)
        assert not would_help({}, offered)
    assert not would_help({}, tmp_path / "nowhere")


@pytest.mark.skipif(not would_help({}), reason="this machine gives no huge pages to who asks")
@pytest.mark.parametrize("command, asked", [("verify no_such_method", True), ("show no_such_method", False)])
def test_the_command_line_starts_again_with_huge_pages(command, asked, tmp_path):
    """Once, as the same process with the same words, and only where something is computed."""
    (tmp_path / "sitecustomize.py").write_text("import os\nprint(os.getpid(), os.environ.get('GLIBC_TUNABLES'))\n")
    free = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | {"PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", "polopt.cli", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, env=free, cwd=Path(polopt.__file__).parents[1])
    starts = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 2 and "no_such_method" in done.stderr
    assert [pages for _, pages in starts] == ["None", "glibc.malloc.hugetlb=1"][: 1 + asked]
    assert len({process for process, _ in starts}) == 1
