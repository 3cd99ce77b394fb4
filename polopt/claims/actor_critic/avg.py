"""AVG: with its normalisations purely incremental updates learn, and without them they do not."""

from __future__ import annotations

import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.measures import STEPS, configuration, simulated, train_curves
from polopt.core import parts
from polopt.data.replay import Replay
from polopt.loops.exploration import Drawn
from polopt.loops.off_policy import OffPolicy
from polopt.loops.temperature import Fixed
from polopt.methods.actor_critic.avg import avg
from polopt.methods.actor_critic.sac import SoftActorCritic

LAST = "mean return of the last 100 episodes"
LENGTH, TOTAL = 200, 200_000
POINTS = 50  # of the curves; each spans 20 episodes
SIZES = {"actor_network.hidden": (64, 64), "critic_network.hidden": (64, 64)}
RATES = {"actor_step.learning_rate": 2e-4, "critic_step.learning_rate": 1e-3}
OFF = {"normalise_observations": False, "rule.actor_network.unit": False, "rule.critic_network.unit": False, "rule.scale_errors": False}


def one_by_one() -> OffPolicy:
    """SAC whose replay and minibatch hold one transition."""
    method = OffPolicy(SoftActorCritic(Fixed(0.3)), Drawn(), Replay(capacity=1), batch_size=1, warmup=1, warmup_actions="policy")
    return parts.replace(method, SIZES | RATES)


def learnt(method, seeds: list[int]) -> Side:
    curves = train_curves(method, simulated("Pendulum-v1", TOTAL), seeds, episodes=4)
    each = TOTAL // POINTS // method.steps_per_iteration
    total, count = (curves.metrics[f"episode/{name}"].reshape(len(seeds), POINTS, each).sum(-1) for name in ("return", "count"))
    last = 100 * LENGTH * POINTS // TOTAL
    numbers = {LAST: total[:, -last:].sum(1) / count[:, -last:].sum(1)}
    return Side(configuration(method), numbers, {"return": (TOTAL / POINTS * np.arange(1, POINTS + 1), total / count, STEPS)})


def run(seeds: list[int]) -> dict[str, Side]:
    whole = parts.replace(avg(None), {**SIZES, **RATES, "num_steps": LENGTH})
    methods = {"AVG": whole, "nothing normalised": parts.replace(whole, OFF), "SAC, one transition": one_by_one()}
    return {name: learnt(method, seeds) for name, method in methods.items()}


CLAIM = Claim(
    method="avg",
    statement="Normalised observations, features and temporal-difference errors let an actor and a critic learn from each transition once, "
    "with no replay, batch or target network; without them the same updates fail.",
    baseline="the same with all three normalisations off; SAC with a replay and a minibatch of one transition",
    task="Pendulum-v1, 200k steps, an update each, two layers of 64, Adam 2e-4 and 1e-3, alpha .3, discount .99; returns of the drawn actions",
    run=run,
    checks=(
        Check(LAST, "AVG", above=-800),
        Check(LAST, "AVG", over="nothing normalised", above=300),
        Check(LAST, "AVG", over="SAC, one transition", above=0),
    ),
    seconds=240,
    slow=True,
)
