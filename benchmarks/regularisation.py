"""The guide's study (arXiv:2401.13662): five objectives in one frame, and PPO's regularisers switched one by one.

    python benchmarks/regularisation.py [--env Pendulum-v1] [--steps 300000] [--seeds 10]

The frame is scaled down to 8 environments x 256 steps and networks of 32, 32. Prints final return (interquartile mean with its 95 % bootstrap
interval), deviation over seeds, KL an iteration and seconds, and keeps them in evidence/returns/pg_guide-ENV.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import polopt
from polopt.methods.policy_gradient.pg_guide import ABLATION, OBJECTIVES
from polopt.run.run import summary

STORE = Path(__file__).parent.parent / "evidence" / "returns"
SCALED_DOWN = {"network__hidden": (32, 32), "critic_network__hidden": (32, 32), "num_steps": 256}
OWN = {"pg_guide:reinforce": {"num_steps": 2048}}  # in one environment, so that episodes are whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    studied = {name: (name, OWN.get(name, {})) for name in OBJECTIVES} | {label: row for label, row in ABLATION.items() if label != "PPO"}
    table = polopt.suite(studied, options.env, options.seeds, steps=options.steps, **SCALED_DOWN)
    print("| method | return | interval | seed std | KL | seconds |\n" + "| --- " + "| ---: " * 5 + "|")
    rows = []
    for row in table:
        found = summary(np.asarray(row.scores)[:, None])
        rows.append({**row._asdict(), **found, "method": studied[row.name][0], "changes": studied[row.name][1]})
        low, high = found["interval"]
        print(f"| {row.name} | {found['iqm']:.1f} | {low:.1f} to {high:.1f} | {row.deviation:.3g} | {row.kl:.3g} | {row.seconds:.0f} |")
    kept = {"env": options.env, "steps": options.steps, "seeds": options.seeds, "frame": SCALED_DOWN, "rows": rows}
    (STORE / f"pg_guide-{options.env}.json").write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
