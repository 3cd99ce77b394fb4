"""What offline methods reach on sets that the project makes, beside d3rlpy on the same sets.

    python benchmarks/offline.py [--env Pendulum-v1] [--seeds 5] [--d3rlpy PYTHON]

SAC makes a medium and a medium-expert set. BC, TD3+BC, IQL and CQL learn from each by the commands that are stored with the result, and d3rlpy's
methods with the same sizes, updates and rewards. Every policy is evaluated in Gymnasium's environment after its last update, d3rlpy's by the same
number of episodes. The result goes to evidence/returns/offline-ENV.json. d3rlpy's interpreter is named by --d3rlpy or POLOPT_PEER_D3RLPY; without
one only our side is run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from polopt.run.run import summary

HERE = Path(__file__).parent
PEER = HERE / "peers" / "d3rlpy_offline.py"
STORE = HERE.parent / "evidence" / "returns"
SETS = {"medium": "medium:1", "medium-expert": "medium:0.5,expert:0.5"}
SIZES = {"updates": 5_000, "batch": 64, "hidden": 64, "learning_rate": 1e-3, "reward_scale": 0.1, "episodes": 20}
TRANSITIONS = 20_000

# what makes the sets, by environment
SOURCE = {"Pendulum-v1": "--steps 20000 --actor-network.hidden 64 64 --critic-network.hidden 64 64 --batch-size 64 --reward-scale 0.1"}

HIDDEN, RATE, SCALE = "{hidden} {hidden}", "{learning_rate}", "{reward_scale}"
JUDGED = f"--actor-network.hidden {HIDDEN} --critic-network.hidden {HIDDEN} --critic-step.learning-rate {RATE} --rewards.scale {SCALE}"
METHODS = {
    "bc": f"--network.hidden {HIDDEN} --learning-rate {RATE}",
    "td3_bc": f"{JUDGED} --actor-step.learning-rate {RATE}",
    "iql": f"{JUDGED} --actor-step.step.learning-rate {RATE}",
    "cql": f"{JUDGED} --actor-step.learning-rate {RATE}",
}


def polopt(words: str, folder: Path) -> str:
    """Run a command in a folder, and give it back as it was typed."""
    subprocess.run([sys.executable, "-m", "polopt.cli", *words.split()], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    return f"polopt {words}"


def theirs(interpreter: str, method: str, data: Path, env: str, seeds: int) -> dict:
    settings = {**SIZES, "method": method, "data": str(data), "env": env, "seeds": list(range(seeds))}
    done = subprocess.run([interpreter, str(PEER), json.dumps(settings)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"d3rlpy's side ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", choices=SOURCE)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--d3rlpy", default=os.environ.get("POLOPT_PEER_D3RLPY"))
    options = parser.parse_args()
    found = {"env": options.env, "seeds": options.seeds, "sizes": SIZES, "sets": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found["source"] = polopt(f"train sac --env {options.env} {SOURCE[options.env]} --quiet --out sac", folder)
        for name, mix in SETS.items():
            made = polopt(f"data collect sac --steps {TRANSITIONS} --mix {mix} --to {name}.npz", folder)
            rows = {}
            for method, fields in METHODS.items():
                words = f"train {method} --data {name}.npz --evaluate-on gym:{options.env} --steps {SIZES['updates']} --seeds {options.seeds} --quiet"
                words = f"{words} --batch-size {SIZES['batch']} {fields.format(**SIZES)} --out {name}-{method}"
                command = polopt(words, folder)
                ours = json.loads((folder / f"{name}-{method}" / "evaluation.json").read_text())["last"]
                rows[method] = {"command": command, "polopt": ours}
                if options.d3rlpy:
                    peer = theirs(options.d3rlpy, method, folder / f"{name}.npz", options.env, options.seeds)
                    rows[method]["d3rlpy"] = summary(np.asarray(peer["returns"])[:, None]) | {"versions": peer["versions"]}
                shown = (f"{side} {row['iqm']:.1f} {row['interval']}" for side, row in rows[method].items() if side != "command")
                print(f"{name}, {method}: {', '.join(shown)}", flush=True)
            found["sets"][name] = {"command": made, "methods": rows}
    STORE.mkdir(parents=True, exist_ok=True)
    (STORE / f"offline-{options.env}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
