"""PPO against its peers: every trainer in turn, several rounds in one run, the same settings, compilation timed apart.

    python benchmarks/ppo.py --case cartpole --rounds 5
    python benchmarks/ppo.py --case halfcheetah --set steps=1000000
    python benchmarks/ppo.py --case seeds

A peer runs with its own interpreter, named by an option or by the environment variable POLOPT_PEER_REJAX or POLOPT_PEER_SB3;
a peer without one is left out. benchmarks/README.md tells how to install them and what is measured.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from polopt.run.huge_pages import start_again

HERE = Path(__file__).parent

SETTINGS = {
    "env": "CartPole-v1",
    "steps": 500_000,
    "seed": 0,
    "seeds": 1,  # trained at once; polopt only
    "num_envs": 8,
    "num_steps": 128,
    "epochs": 4,
    "minibatches": 4,
    "hidden": [64, 64],
    "activation": "tanh",
    "learning_rate": 2.5e-4,
    "anneal": False,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip": 0.2,
    "value_clip": 0.2,  # rejax clips the values as it clips the ratios
    "entropy": 0.01,
    "value": 0.5,
    "max_grad_norm": 0.5,
    "normalise": False,  # observations and rewards
    "threshold": 475,
    "evaluate_every": 20_480,
    "evaluation_episodes": 32,
    "threads": 1,  # of PyTorch: with networks this small one is the fastest
    "vector": "dummy",  # Stable-Baselines3's: dummy or subproc
}

# A case: changes to the settings, and for each trainer the changes of its own.
CASES = {
    "cartpole": ({}, {"polopt": {}, "rejax": {}, "sb3": {}}),
    "seeds": ({}, {"polopt": {}, "polopt, 10 seeds": {"seeds": 10}}),
    "halfcheetah": (
        {
            "env": "gym:HalfCheetah-v5",
            "num_steps": 256,
            "epochs": 10,
            "minibatches": 32,
            "learning_rate": 3e-4,
            "anneal": True,
            "value_clip": None,
            "entropy": 0.0,
            "normalise": True,
            "threshold": 2000,
            "evaluate_every": 102_400,
            "evaluation_episodes": 8,
        },
        {"polopt": {}, "sb3": {}, "sb3, subproc": {"vector": "subproc"}},
    ),
}
SCRIPTS = {"polopt": "polopt_ppo.py", "rejax": "peers/rejax_ppo.py", "sb3": "peers/sb3_ppo.py"}


def load_average() -> float:
    return os.getloadavg()[0]


def run(trainer: str, interpreter: str, settings: dict) -> dict:
    """One training in a process of its own: what its script printed, and the load before it."""
    before = load_average()
    script = HERE / SCRIPTS[trainer.partition(",")[0]]
    # compiled afresh each time, and ours from the source beside this file
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | ({"PYTHONPATH": paths} if script.parent == HERE else {})
    done = subprocess.run([interpreter, str(script), json.dumps(settings)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{trainer} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"name": trainer, "load": before}


def median(values) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None


def table(results: dict[str, list[dict]], threshold: float) -> str:
    """Medians over the rounds; a ratio is the median of the ratios within a round, where the machine was the same."""
    first = next(iter(results))
    head = ["trainer", "steps/s", "range", f"{first} / it", "compile s", "final return", f"s to {threshold:g}", "steps to it", "reached", "load"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, runs in results.items():
        speeds = [r["steps_per_second"] for r in runs]
        ratio = median(ours["steps_per_second"] / theirs for ours, theirs in zip(results[first], speeds))
        reached = [r for r in runs if r["seconds_to_threshold"] is not None]
        # a run that never got there counts as slower than any: the median is given where most got there
        most = 2 * len(reached) > len(runs)
        order = sorted(reached, key=lambda r: r["seconds_to_threshold"])[len(runs) // 2] if most else None
        rows.append(
            [
                name,
                f"{median(speeds):,.0f}",
                f"{min(speeds):,.0f} - {max(speeds):,.0f}",
                f"{ratio:.2f}",
                f"{median(r['compile_seconds'] for r in runs):.1f}",
                f"{median(r['final_return'] for r in runs):.0f}",
                f"{order['seconds_to_threshold']:.2f}" if order else "-",
                f"{order['steps_to_threshold']:,}" if order else "-",
                f"{len(reached)} of {len(runs)}",
                f"{median(r['load'] for r in runs):.1f}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def changed(settings: dict, changes: list[str]) -> dict:
    """The settings with NAME=JSON changes."""
    for change in changes:
        name, equals, value = change.partition("=")
        if name not in settings or not equals:
            raise SystemExit(f"--set got {change!r}, but it must be NAME=VALUE with one of the names {', '.join(settings)}.")
        try:
            settings = settings | {name: json.loads(value)}
        except json.JSONDecodeError:
            settings = settings | {name: value}
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="cartpole")
    parser.add_argument("--rounds", type=int, default=3, help="how often each trainer runs; round i trains with seed i")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting, such as steps=200000")
    parser.add_argument("--only", nargs="+", help="leave the other trainers out")
    parser.add_argument("--rejax", default=os.environ.get("POLOPT_PEER_REJAX"), help="rejax's interpreter")
    parser.add_argument("--sb3", default=os.environ.get("POLOPT_PEER_SB3"), help="Stable-Baselines3's interpreter")
    parser.add_argument("--out", type=Path, help="write every run's line of JSON here too")
    options = parser.parse_args()
    start_again()  # with memory in huge pages, as the command line does; the peers have them, too
    changes, trainers = CASES[options.case]
    settings = changed(SETTINGS | changes, options.set)
    interpreters = {"polopt": sys.executable, "rejax": options.rejax, "sb3": options.sb3}
    results = {name: [] for name in trainers if interpreters[name.partition(",")[0]] and (not options.only or name in options.only)}
    if not results:
        raise SystemExit(f"No trainer is left to run: case {options.case} has {', '.join(trainers)}, and a peer needs its interpreter.")
    for i in range(options.rounds):
        for name in results:
            result = run(name, interpreters[name.partition(",")[0]], settings | trainers[name] | {"seed": i})
            results[name].append(result)
            speed = f"{result['steps_per_second']:,.0f} steps/s, return {result['final_return']:.0f}"
            print(f"round {i + 1} of {options.rounds}: {name}: {speed}, load before {result['load']:.1f}", file=sys.stderr, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(result | {"case": options.case, "round": i, "settings": settings | trainers[name]}) + "\n")
    print(f"\n### PPO, {options.case}: {settings['env']}, {settings['steps']:,} steps, {options.rounds} rounds\n")
    print(table(results, settings["threshold"]))
    print(f"\n{os.cpu_count()} cores ({platform.processor() or platform.machine()}), load average now {load_average():.1f}. Versions:")
    for name, runs in results.items():
        print(f"- {name}: " + ", ".join(f"{k} {v}" for k, v in runs[0]["versions"].items()))
    print(f"\nSettings: `{json.dumps(settings)}`")


if __name__ == "__main__":
    main()
