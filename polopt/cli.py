"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Annotated, Any, Literal

USAGE = """\
usage: polopt COMMAND ...

Learn policies, and see how good they are.

  train METHOD --env ENV      train a method on an environment
  train METHOD --data DATA    train a method from logged data
  train METHOD --model MODEL --task TASK
                              train a language model on prompts that a verifier grades
  data collect|show|convert   make a dataset, look at one, or write it in another format
  resume DIR                  go on with a run that was stopped
  evaluate DIR                evaluate a run's policies on fresh episodes, or film one
  compare DIR... | METHOD...  compare runs, or methods on one environment
  report DIR... --html FILE   write an HTML report of one or several runs
  export DIR --to FILE        write a policy as ONNX, StableHLO or safetensors
  verify METHOD...            run what a method's paper claims: the effect with its interval, and a verdict
  evidence [--html DIR]       how every method's claim stands, as a table or as pages
  list                        the methods
  show METHOD                 a method's paper, equations, parts and defaults

`polopt COMMAND --help` tells the options of a command.
"""

EXIT_MISTAKE = 2  # the user's
EXIT_FAILED = 1  # the run's
COMPUTING = ("train", "resume", "evaluate", "compare", "data", "verify")  # commands that are worth a start with other memory


def main(argv: list[str] | None = None) -> int:
    if argv is None and sys.argv[1:2] and sys.argv[1] in COMPUTING:
        from polopt.run.huge_pages import start_again

        start_again()
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if argv[0] == "--version":
        from polopt import __version__

        print(f"polopt {__version__}")
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"Did you mean `polopt {near[0]}`?" if near else f"Commands: {', '.join(COMMANDS)}."
        print(f"polopt: there is no command {command!r}. {hint}", file=sys.stderr)
        return EXIT_MISTAKE
    try:
        return COMMANDS[command](rest) or 0
    except KeyboardInterrupt as stop:
        print(f"polopt: {stop}" if str(stop) else "polopt: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has gone, as in `polopt list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """One sentence for what a user can put right; anything else is a defect of ours and keeps its traceback."""
    kinds = {type(error).__name__, *(k.__name__ for k in type(error).__mro__)}
    message = " ".join(str(error).split())
    if "HostError" in kinds or "TrainingFailed" in kinds or "CheckpointError" in kinds:
        print(f"polopt: {message}", file=sys.stderr)
        return EXIT_FAILED
    if isinstance(error, (ValueError, ImportError)) and _is_ours(error):
        print(f"polopt: {message}", file=sys.stderr)
        return EXIT_MISTAKE
    if isinstance(error, OSError) and error.filename is not None:
        print(f"polopt: Cannot read or write {error.filename}: {error.strerror}. Give another path, or make room and rights there.", file=sys.stderr)
        return EXIT_MISTAKE
    raise error


def _is_ours(error: Exception) -> bool:
    """Whether polopt itself raised the error, so that its message is written for a user."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("polopt")


# -- train, resume -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class TrainOptions:
    """Train a method on an environment, or from data."""

    env: str | None = None
    """CartPole-v1 (gymnax first), gym:HalfCheetah-v5, envpool:ID, package.module:Name or file.py:Name"""
    data: str | None = None
    """for methods that learn from data: FILE.npz, .hdf5 or .parquet, a Minari or LeRobot folder, or minari:ID"""
    evaluate_on: str | None = None
    """the environment in which what was learnt from data is evaluated"""
    model: str | None = None
    """for methods of language models: tiny, or a directory in the Hugging Face layout"""
    task: str | None = None
    """what a language model learns: arithmetic, countdown:numbers=4, reasoning_gym:NAME, ...; or --data FILE with prompts or preferences"""
    verifier: str | None = None
    """who grades completions: FILE.py:FUNCTION, or the folder of a run of bt; by default the task, or math-verify on the answers in --data"""
    warm_start: int | None = None
    """iterations of supervised learning on the task's demonstrations first; by default 400 for --model tiny, else 0"""
    devices: str | None = None
    """several devices for a language model, data=4,tensor=2: rows of a batch over four, each layer over two"""
    steps: int | None = None
    """environment steps a seed, all copies counted; updates where data are given (500,000); iterations of a language method (300)"""
    seeds: int = 1
    """how many seeds; seed 0, 1, ..."""
    out: str | None = None
    """the run's folder; by default runs/METHOD-ENV-NUMBER"""
    evaluations: int = 20
    """evaluations during the run; a checkpoint follows each"""
    episodes: int | None = None
    """episodes of each evaluation, a seed (10; 64 completions of a language model)"""
    final_episodes: int | None = None
    """episodes of the evaluation at the end, a seed (20; 256 completions of a language model)"""
    log: str | None = None
    """tensorboard, wandb, mlflow, trackio, or several with commas"""
    quiet: bool = False
    """print the result only"""


def train(argv: list[str]) -> int:
    method, rest = _positional(argv, "train", "METHOD", "polopt train ppo --env CartPole-v1")
    options, changes = _train_options(method, rest)
    from polopt.run.run import fit

    command = _command("train", argv)
    run = fit(method, **dataclasses.asdict(options), command=command, **changes)
    return _finish(run, options.quiet)


def _train_options(method: str, argv: list[str]) -> tuple[TrainOptions, dict[str, Any]]:
    """The options of a run and the changed hyperparameters. Both appear in --help, with the method's defaults for the environment."""
    import tyro

    from polopt.core import parts
    from polopt.methods import registry

    registry.find(method)
    env = _value_of(argv, "--env")
    small = _value_of(argv, "--model") == "tiny" or (_value_of(argv, "--task") or "").startswith("t-")
    defaults = _defaults(method, env, small)  # those of methods that learn from data are general
    known = parts.fields(defaults)
    hints = parts.field_types(defaults)
    help_texts = parts.field_help(defaults)
    short: dict[str, list[str]] = {}
    for name in known:
        short.setdefault(name.rpartition(".")[2], []).append(name)
    own = {f.name for f in dataclasses.fields(TrainOptions)}
    specification = []
    for name, default in known.items():
        last = name.rpartition(".")[2]
        aliases = [f"--{last.replace('_', '-')}"] if last != name and len(short[last]) == 1 and last not in own else []
        argument = tyro.conf.arg(name=name.replace("_", "-"), aliases=aliases, help=help_texts.get(name) or "")
        specification.append((name.replace(".", "__"), Annotated[hints[name], argument], dataclasses.field(default=default)))
    hyperparameters = dataclasses.make_dataclass("Hyperparameters", specification)
    hyperparameters.__doc__ = f"Hyperparameters of {method}" + (f" with its defaults for {env}." if env else ".")
    flat = tyro.conf.OmitArgPrefixes
    everything = dataclasses.make_dataclass("Everything", [("run", flat[TrainOptions]), ("method", flat[hyperparameters])])
    given = tyro.cli(everything, args=[_in_full(word, known) for word in argv], prog=f"polopt train {method}", description=TrainOptions.__doc__)
    chosen = {name: getattr(given.method, name.replace(".", "__")) for name in known}
    return given.run, {name.replace(".", "__"): value for name, value in chosen.items() if value != known[name]}


def _in_full(word: str, known) -> str:
    """An option such as --actor-network.hidden by its whole name, where only one field ends in it."""
    option, sign, value = word.partition("=")
    ends = [name for name in known if option.startswith("--") and "." in option and name.endswith("." + option[2:].replace("-", "_"))]
    return f"--{ends[0].replace('_', '-')}{sign}{value}" if len(ends) == 1 else word


def _defaults(method: str, env: str | None, small: bool):
    """The method with its defaults for an environment, or for a small language model."""
    from polopt.envs.task import ControlTask
    from polopt.methods import registry

    compose = registry.load(method)
    general = compose(None)
    if env is not None and general.takes is ControlTask:
        from polopt.envs.make import make

        return compose(ControlTask(make(env), 1))
    if small and general.takes is not ControlTask:
        from polopt.data.tasks import make_language_task

        return compose(make_language_task("t-bandit"))
    return general


def resume(argv: list[str]) -> int:
    @dataclasses.dataclass
    class Options:
        """Go on with a run that was stopped, from its newest sound checkpoint, to the same end bit for bit."""

        quiet: bool = False
        """print the result only"""

    directory, rest = _positional(argv, "resume", "DIR", "polopt resume runs/ppo-CartPole-v1-1")
    options = _cli(Options, rest, "resume DIR")
    from polopt.run.run import load

    run = load(directory)
    if run.status["state"] == "finished":
        print(f"{directory} is finished already; nothing to resume.")
    return _finish(run.resume(quiet=options.quiet), options.quiet)


def _finish(run, quiet: bool) -> int:
    status = run.status
    if status["state"] == "interrupted":
        saved = _last_checkpoint_step(run)
        where = "nothing is saved yet, so that it begins anew" if saved is None else f"saved at step {saved:,}"
        print(f"Stopped at step {status['step']:,}; {where}. Go on with: polopt resume {run.directory}")
        return 130
    _print_final(run)
    return 0


def _last_checkpoint_step(run) -> int | None:
    import pathlib

    steps = [int(p.name) for p in pathlib.Path(run.directory, "checkpoints").iterdir() if p.name.isdigit()]
    return max(steps) * run.steps_per_iteration if steps else None


def _print_final(run) -> None:
    import json

    final = json.loads((run.directory / "evaluation.json").read_text())
    config = run.config
    if not final:
        print("Nothing was evaluated: no environment was given. Evaluate with: polopt evaluate " + f"{run.directory} --env ENV")
    for which in (name for name in ("last", "best") if name in final):
        s = final[which]
        print(f"{which} policy: return {_interval(s)}; per seed: {', '.join(map(_number, s['per_seed']))}")
    for seed, why in run.status["stopped"].items():
        print(f"seed {seed} stopped: {why}")
    if final:
        what = "completions of held-out prompts" if config.get("language") else "episodes"
        print(f"({config['evaluation']['final_episodes']} {what} a seed; {_average(len(config['seeds']))})")
    print(f"run:    {run.directory}\nreport: {run.directory / 'report.html'}\ncurve:  {run.directory / 'curve.png'}")


def _average(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"interquartile mean over {seeds} seeds with its 95 % bootstrap interval"


def _interval(s) -> str:
    low, high = s["interval"]
    if low is None or low != low:
        return f"{_number(s['iqm'])} (one seed: no interval)"
    return f"{_number(s['iqm'])} [{_number(low)}, {_number(high)}]"


def _number(x: float) -> str:
    return f"{x:.3f}" if abs(x) < 10 else f"{x:.1f}"


# -- data --------------------------------------------------------------------------------------------------------------


def data(argv: list[str]) -> int:
    commands = {"collect": _collect, "show": _show_data, "convert": _convert}
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: polopt data collect RUN|random --env ENV --steps N --to DATA")
        print("       polopt data show DATA\n       polopt data convert DATA --to DATA")
        return 0
    if argv[0] not in commands:
        raise ValueError(f"`polopt data` takes {', '.join(commands)}, but was given {argv[0]!r}.")
    return commands[argv[0]](argv[1:])


def _collect(argv: list[str]) -> int:
    @dataclasses.dataclass
    class Options:
        """Make a dataset from a random policy, or from what a run has learnt."""

        to: str
        """FILE.npz, .hdf5 (D4RL's layout) or .parquet, FOLDER.arrays (mapped, for more than fits into memory), or minari:ID"""
        env: str | None = None
        """the environment; by default the run's"""
        steps: int = 100_000
        """transitions"""
        mix: str | None = None
        """shares by kind, such as medium:0.5,expert:0.5; kinds: random, medium, expert, noisy, replay"""
        seed: int = 0
        """another number, other data"""

    source, rest = _positional(argv, "data collect", "RUN or random", "polopt data collect random --env Pendulum-v1 --steps 10000 --to data.npz")
    options = _cli(Options, rest, "data collect RUN|random")
    from polopt.data import files
    from polopt.run.collect import collect
    from polopt.run.describe import summary

    files.writable(options.to)
    dataset = collect(source, options.env, steps=options.steps, mix=options.mix, seed=options.seed)
    place = files.write(dataset, options.to)
    print("\n".join(summary(dataset)))
    print(f"data: {place}\nlook: polopt data show {place}")
    return 0


def _show_data(argv: list[str]) -> int:
    @dataclasses.dataclass
    class Options:
        """What a dataset holds: episodes, returns, coverage, a picture, and warnings."""

        env: str | None = None
        """the environment that the data come from, for its spaces"""
        columns: str | None = None
        """which columns hold what, such as observation=obs,action=act"""
        reference: str | None = None
        """a dataset of as many transitions from an online learner, against which coverage is measured"""
        picture: str | None = None
        """the PNG to write; by default beside the data"""

    import pathlib

    name, rest = _positional(argv, "data show", "DATA", "polopt data show data.npz")
    options = _cli(Options, rest, "data show DATA")
    from polopt.methods.analysis.dataset_measures import measures
    from polopt.run.data import load_data
    from polopt.run.describe import picture, summary, warnings

    dataset = load_data(name, options.env, columns=_pairs(options.columns))
    print("\n".join(summary(dataset)))
    found = measures(dataset, None if options.reference is None else load_data(options.reference, options.env))
    pairs = f"{found.unique:,.0f} different state-action pairs on a grid of 100 bins a number"
    needs = "a dataset of as many transitions from an online learner (--reference FILE)"
    print(f"coverage      {pairs}; SACo " + (f"{found.coverage:.3f}" if found.coverage is not None else f"needs {needs}"))
    print("quality       TQ " + (f"{found.quality:.3f}" if found.quality is not None else "needs reference returns, which data from a run carry"))
    for sentence in warnings(dataset):
        print(f"warning: {sentence}")
    plain = pathlib.Path(name)
    beside = plain.with_suffix(".png") if plain.is_file() else pathlib.Path(f"{plain.name.replace(':', '-')}.png")
    print(f"picture: {picture(dataset, pathlib.Path(options.picture) if options.picture else beside)}")
    return 0


def _convert(argv: list[str]) -> int:
    @dataclasses.dataclass
    class Options:
        """Write a dataset in another format, with its columns named and checked."""

        to: str
        """FILE.npz, .hdf5 (D4RL's layout) or .parquet, FOLDER.arrays (mapped, for more than fits into memory), or minari:ID"""
        env: str | None = None
        """the environment that the data come from, for its spaces"""
        columns: str | None = None
        """which columns hold what, such as observation=obs,action=act"""

    name, rest = _positional(argv, "data convert", "DATA", "polopt data convert log.npz --columns observation=obs,action=act --to data.npz")
    options = _cli(Options, rest, "data convert DATA")
    from polopt.data import files
    from polopt.run.data import convert_data, load_data

    files.writable(options.to)
    if options.to.endswith(".arrays"):
        count = convert_data(name, options.to, options.env, columns=_pairs(options.columns))
    else:
        dataset = load_data(name, options.env, columns=_pairs(options.columns))
        options.to, count = files.write(dataset, options.to), len(dataset)
    print(f"data: {options.to} ({count:,} transitions)")
    return 0


def _pairs(text: str | None) -> dict[str, str] | None:
    """From NAME=COLUMN,NAME=COLUMN."""
    if text is None:
        return None
    pairs = [word.strip().partition("=") for word in text.split(",")]
    if not all(sign and name and column for name, sign, column in pairs):
        raise ValueError(f"--columns is {text!r}, but pairs such as observation=obs,action=act are expected.")
    return {name: column for name, _, column in pairs}


# -- looking at runs ---------------------------------------------------------------------------------------------------


def evaluate(argv: list[str]) -> int:
    @dataclasses.dataclass
    class Options:
        """Evaluate a run's policies on fresh episodes, or film one."""

        episodes: int = 100
        """episodes a seed"""
        env: str | None = None
        """another environment with the same spaces"""
        policy: Literal["best", "last"] = "best"
        """which policy of each seed"""
        stochastic: bool = False
        """draw actions instead of taking the most likely"""
        key: int = 0
        """which episodes: another number, other episodes"""
        video: str | None = None
        """film one episode of the best seed to this .gif or .mp4"""
        samples: int = 0
        """of a language model: print this many completions of held-out prompts"""
        offline: str | None = None
        """logged data from which to tell the policy's value, instead of acting"""
        discount: float | None = None
        """of the value, with --offline; by default the method's own; 1 for the return of an episode"""
        behaviour: str | None = None
        """the column with the probabilities of the logged actions, with --offline; by default cloned where there is none"""

    directory, rest = _positional(argv, "evaluate", "DIR", "polopt evaluate runs/ppo-CartPole-v1-1 --episodes 100")
    options = _cli(Options, rest, "evaluate DIR")
    from polopt.run.run import load

    run = load(directory)
    if options.offline:
        given = (options.policy, options.stochastic, options.discount, options.behaviour, options.key)
        return _print_offline(run, run.evaluate_offline(options.offline, *given))
    if options.discount is not None or options.behaviour is not None:
        raise ValueError("--discount and --behaviour are of an evaluation from logged data; give the data too, with --offline DATA.")
    result = run.evaluate(options.episodes, options.env, options.policy, options.stochastic, options.key)
    print(f"{result['env']}, {options.policy} policy, {options.episodes} episodes a seed: return {_interval(result)}")
    for seed, mean in zip(run.seeds, result["per_seed"]):
        print(f"  seed {seed}: {_number(mean)}")
    if options.samples:
        for row in run.samples(options.samples, options.policy, options.key):
            print(f"seed {row['seed']}, reward {row['reward']}: {row['prompt']!r} -> {row['completion']!r}")
    if options.video:
        from polopt.run.video import film

        print(f"video: {film(run, options.video, env=options.env, which=options.policy, key=options.key)}")
    return 0


def _print_offline(run, result) -> int:
    """The estimates of every seed, what they are of, and what speaks against them."""
    seeds = list(result["seeds"].values())
    first = seeds[0]
    drawn = "draws its actions" if result["stochastic"] else "takes the most likely action"
    print(f"{result['data']}: {first['transitions']:,} transitions in {first['episodes']:,} episodes; {result['policy']} policy, which {drawn}")
    print(f"estimated: {first['value']}; 95 % intervals over episodes")
    if first["behaviour"] != "not asked":
        print(f"probabilities of the logged actions: {first['behaviour']}")
    for number, found in result["seeds"].items():
        size = found["effective_sample_size"]
        print(f"seed {number}" + ("" if size is None else f" (effective sample size {size:.1f} of {found['episodes']} episodes)"))
        for name, e in found["estimates"].items():
            print(f"  {name:<5}  {e['value']:.4g} [{e['low']:.4g}, {e['high']:.4g}]")
    reasons: dict[str, list[str]] = {}
    for name, reason in first["refused"].items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        print(f"no {', '.join(names)}: {reason}.")
    for number, found in result["seeds"].items():
        for note in found["notes"]:
            print(f"warning (seed {number}): {note}")
    print(f"kept in {run.directory / 'offline_evaluations.jsonl'}")
    return 0


def compare(argv: list[str]) -> int:
    @dataclasses.dataclass
    class Options:
        """Compare runs (folders), or train and compare methods on one environment."""

        env: str | None = None
        """the environment, when methods are given"""
        data: str | None = None
        """logged data from which the methods learn; --env is then what they are evaluated on"""
        model: str | None = None
        """a language model, when methods of language models are given: tiny, or a directory"""
        task: str | None = None
        """what it learns, as in `polopt train`"""
        verifier: str | None = None
        """who grades completions, as in `polopt train`"""
        steps: int | None = None
        """environment steps a seed, when methods are given; updates where data are given"""
        seeds: int = 5
        """how many seeds, when methods are given"""
        out: str | None = None
        """the folder for the runs and the report, when methods are given; by default runs/compare-ENV"""
        policy: Literal["best", "last"] = "best"
        """which policy of each seed is compared"""
        html: str | None = None
        """write a report here; by default report.html in --out when methods are given"""
        quiet: bool = False
        """print the result only"""

    import pathlib

    words, rest = _positionals(argv, "compare", "DIR... or METHOD...", "polopt compare ppo a2c --env CartPole-v1 --seeds 5")
    options = _cli(Options, rest, "compare DIR... | METHOD...")
    from polopt.methods import registry
    from polopt.run.compare import comparison, keep, train_all, write_report
    from polopt.run.run import load

    if all((pathlib.Path(word) / "run.json").exists() for word in words):
        runs = [load(word) for word in words]
    else:
        language = {name: getattr(options, name) for name in ("model", "task", "verifier") if getattr(options, name) is not None}
        if options.env is None and not language:
            missing = next(word for word in words if not (pathlib.Path(word) / "run.json").exists())
            example = f"polopt compare {' '.join(words)}{f' --data {options.data}' if options.data else ''} --env CartPole-v1"
            raise ValueError(f"{missing} is not a run's folder. To compare methods say on what, for example: {example}")
        for word in words:
            registry.load(word)
        place = options.env or options.task or pathlib.Path(options.data or options.model).stem
        out = pathlib.Path(options.out or f"runs/compare-{place.replace('/', '-').replace(':', '-')}")
        plan = dict(data=options.data, language=language, steps=options.steps, seeds=options.seeds, quiet=options.quiet)
        runs = train_all(words, options.env, out, **plan, command=_command("compare", argv))
        if runs[-1].status["state"] == "interrupted":
            return _finish(runs[-1], options.quiet)
        options.html = options.html or str(out / "report.html")
    rows = comparison(runs, options.policy)
    keep(rows, options.policy)
    width = max(len(row["run"].config["method"]) for row in rows)
    print(f"{rows[0]['run'].config['env']}, {options.policy} policy: interquartile mean of the return with its 95 % bootstrap interval")
    for row in rows:
        line = f"  {row['run'].config['method']:<{width}}  {_interval(row)}"
        if "improvement" in row:
            value, low, high = row["improvement"]
            line += f"   beats {rows[0]['run'].config['method']} with probability {value:.2f}" + ("" if low != low else f" [{low:.2f}, {high:.2f}]")
        print(line)
    if options.html:
        print(f"report: {write_report(runs, options.html)}")
    return 0


def report(argv: list[str]) -> int:
    @dataclasses.dataclass
    class Options:
        """Write an HTML report of one or several runs, with the learning curves beside it."""

        html: str
        """the file to write"""

    directories, rest = _positionals(argv, "report", "DIR", "polopt report runs/a runs/b --html report.html")
    options = _cli(Options, rest, "report DIR...")
    from polopt.run.compare import write_report
    from polopt.run.run import load

    print(f"report: {write_report([load(d) for d in directories], options.html)}")
    return 0


def export(argv: list[str]) -> int:
    @dataclasses.dataclass
    class Options:
        """Write one seed's whole policy (normaliser, bounds, scaling) to a file, after a numeric check against the original."""

        to: str
        """the file to write"""
        format: Literal["onnx", "stablehlo", "safetensors", "huggingface"] | None = None
        """what to write: huggingface, a directory that transformers loads, for a language model; else onnx by default"""
        seed: int | None = None
        """which seed; by default the one whose best policy scored highest"""
        policy: Literal["best", "last"] = "best"
        """which policy of the seed"""

    directory, rest = _positional(argv, "export", "DIR", "polopt export runs/ppo-CartPole-v1-1 --to policy.onnx")
    options = _cli(Options, rest, "export DIR")
    from polopt.run.run import load

    run = load(directory)
    if run.config.get("language"):
        print(f"{run.save_model(options.to, options.format, options.seed, options.policy)} (huggingface)")
        return 0
    result = run.export(options.to, options.format or "onnx", options.seed, options.policy)
    print(f"{result.path} ({result.format}): largest difference from the original {result.largest_difference:.1e}")
    print(f"inputs: {result.inputs}\noutputs: {result.outputs}")
    return 0


# -- the evidence ------------------------------------------------------------------------------------------------------


def verify(argv: list[str]) -> int:
    @dataclasses.dataclass
    class Options:
        """Run what papers claim, against their baselines and on the same seeds, and keep the verdicts as evidence."""

        family: str | None = None
        """the methods of a family"""
        all: bool = False
        """every method whose claim is not slow"""
        stale: bool = False
        """only methods whose evidence is missing, or whose claim or sources have changed"""
        slow: bool = False
        """the slow claims; with --all these too"""
        seeds: int | None = None
        """another number of seeds; the result is shown and not stored"""
        pilot: bool = False
        """seeds from 1000 on, to try a claim out; the result is shown and not stored"""
        json: str | None = None
        """write all numbers to this file"""
        evidence: str | None = None
        """the folder of the evidence; by default ./evidence if it exists, else the user's own"""
        verbose: bool = False
        """the numbers of every seed and both sides' curves (-v)"""

    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    options = _cli(Options, ["--verbose" if word == "-v" else word for word in argv[count:]], "verify [METHOD...]")
    from polopt.claims.evidence import folder
    from polopt.claims.verify import select
    from polopt.claims.verify import verify as run_claims

    directory = folder(options.evidence)
    entries = select(argv[:count], directory, family=options.family, every=options.all, stale=options.stale, slow=options.slow)
    return run_claims(entries, directory, seeds=options.seeds, pilot=options.pilot, verbose=options.verbose, json_file=options.json)


def evidence(argv: list[str]) -> int:
    @dataclasses.dataclass
    class Options:
        """How every method's claim stands: printed, as static pages, or as totals in a README."""

        family: str | None = None
        """print the methods of one family"""
        html: str | None = None
        """write the pages to this folder"""
        readme: str | None = None
        """write the totals into this file, between its markers"""
        evidence: str | None = None
        """the folder of the evidence; by default ./evidence if it exists, else the user's own"""

    options = _cli(Options, argv, "evidence")
    from polopt.claims import pages
    from polopt.claims.evidence import folder, standings

    found = standings(folder(options.evidence), options.family)
    if options.html:
        print(f"pages: {pages.write(found, options.html)}")
    if options.readme:
        pages.update_readme(found, options.readme)
    if not (options.html or options.readme):
        print("\n".join(pages.table(found)))
    print(pages.totals(found))
    return 0


# -- the catalogue -----------------------------------------------------------------------------------------------------


def list_methods(argv: list[str]) -> int:
    from polopt.methods import registry

    family = None
    if argv:
        if argv[0] in ("-h", "--help"):
            print("usage: polopt list [--family F]\n\nThe methods by family. Families: " + ", ".join(registry.families()) + ".")
            return 0
        family = _value_of(argv, "--family")
        if family is None or len(argv) != (1 if "=" in argv[0] else 2):
            raise ValueError(f"`polopt list` takes --family F only, but was given {' '.join(argv)}.")
    found = registry.entries(family)
    width = max(len(entry.key) for entry in found)
    last = None
    for entry in found:
        if entry.family != last:
            print(("\n" if last else "") + entry.family)
            last = entry.family
        print(f"  {entry.key:<{width}}  {entry.title} ({entry.year})")
    return 0


def show(argv: list[str]) -> int:
    from polopt.core import parts
    from polopt.methods import registry

    if {"-h", "--help"} & set(argv):
        print("usage: polopt show METHOD\n\nA method's paper, equations, parts with their defaults, and BibTeX entry. `polopt list` has the methods.")
        return 0
    method, rest = _positional(argv, "show", "METHOD", "polopt show ppo")
    if rest:
        raise ValueError(f"`polopt show` takes one method, but was given {' '.join(argv)}.")
    entry = registry.find(method)
    print(entry.docstring)
    first: list[str] = []
    for name, compose in registry.compositions(entry.key).items():
        lines = parts.describe(compose(None))
        print(f"\n{name}: {(compose.__doc__ or '').strip()}" + (f" It differs from {entry.key} in:" if first else ""))
        for line in lines:
            if line not in first:
                print(f"  {line}")
        first = first or lines
    print(f"\n{entry.bibtex()}")
    return 0


COMMANDS = {
    "train": train,
    "data": data,
    "resume": resume,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
    "export": export,
    "verify": verify,
    "evidence": evidence,
    "list": list_methods,
    "show": show,
}


# -- helpers -----------------------------------------------------------------------------------------------------------


def _cli(options, argv: list[str], usage: str):
    import tyro

    return tyro.cli(options, args=argv, prog=f"polopt {usage}")


def _positional(argv: list[str], command: str, what: str, example: str) -> tuple[str, list[str]]:
    found, rest = _positionals(argv, command, what, example)
    return found[0], [*found[1:], *rest]


def _positionals(argv: list[str], command: str, what: str, example: str) -> tuple[list[str], list[str]]:
    """The leading words before the first option. `--help` alone shows the usage with a placeholder."""
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    if count == 0:
        if argv and argv[0] in ("-h", "--help"):
            return [_PLACEHOLDER.get(what, "DIR")], argv
        raise ValueError(f"`polopt {command}` needs a {what} first, for example: {example}")
    return argv[:count], argv[count:]


_PLACEHOLDER = {"METHOD": "ppo"}


def _value_of(argv: list[str], option: str) -> str | None:
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(option + "="):
            return word.partition("=")[2]
    return None


def _command(name: str, argv: list[str]) -> str:
    import shlex

    return shlex.join(["polopt", name, *argv])


if __name__ == "__main__":
    sys.exit(main())
