"""The returns that a method's defaults reach, trained by the command that is stored with them.

    python benchmarks/returns.py                      # all cases, about 20 minutes on 2 cores
    python benchmarks/returns.py --case Hopper-v5

Each case is one `polopt train` command; its final evaluation goes to evidence/returns/METHOD-ENV.json with the run's
configuration, versions and machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
STORE = HERE.parent / "evidence" / "returns"

# environment, steps, seeds, the mean return of the last policy that is to be reached
CASES = {
    "CartPole-v1": ("CartPole-v1", 500_000, 5, 490),
    "Acrobot-v1": ("Acrobot-v1", 500_000, 5, -90),
    "Pendulum-v1": ("Pendulum-v1", 500_000, 5, -200),
    "HalfCheetah-v5": ("gym:HalfCheetah-v5", 1_000_000, 3, 2000),
    "Hopper-v5": ("gym:Hopper-v5", 1_000_000, 3, 2000),
}


def measure(method: str, case: str) -> dict:
    env, steps, seeds, target = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = ["train", method, "--env", env, "--steps", str(steps), "--seeds", str(seeds)]
        subprocess.run([sys.executable, "-m", "polopt.cli", *command, "--out", str(out), "--quiet"], check=True)
        run, final, status = (json.loads((out / f"{name}.json").read_text()) for name in ("run", "evaluation", "status"))
    kept = {name: run[name] for name in ("method", "fields", "env", "steps", "seeds", "evaluation", "versions", "machine", "started")}
    reached = final["last"]["mean"] >= target
    found = {"command": " ".join(["polopt", *command]), "target": target, "reached": reached, "final": final}
    return {**found, "seconds": status["seconds"], **kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ppo")
    parser.add_argument("--case", choices=CASES, action="append", help="one case; may be repeated")
    options = parser.parse_args()
    STORE.mkdir(parents=True, exist_ok=True)
    print("| environment | steps | seeds | last policy, mean | best policy, mean | target | training, s |")
    print("| --- " * 7 + "|")
    for case in options.case or CASES:
        found = measure(options.method, case)
        (STORE / f"{options.method}-{case}.json").write_text(json.dumps(found, indent=2) + "\n")
        last, best = (found["final"][which]["mean"] for which in ("last", "best"))
        row = [found["env"], f"{found['steps']:,}", len(found["seeds"]), f"{last:.1f}", f"{best:.1f}", found["target"], f"{found['seconds']:.0f}"]
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
