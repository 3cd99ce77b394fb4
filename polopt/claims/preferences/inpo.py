"""INPO comes near to the Nash policy of an intransitive game from labels of its own pairs; DPO, refitted as often, does not."""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.preferences.training import Table, constant, game, side, trained
from polopt.envs.exact import preferences
from polopt.loops.preference import LeastSquares, Minibatches, Preference
from polopt.loops.preference_sources import Judged, Online
from polopt.methods.preferences.dpo import Logistic
from polopt.methods.preferences.inpo import TwoAnchors
from polopt.policies.language.tabular import TabularPolicy

WIN, DOMINATED, TAU, ETA = 0.95, 7, 0.05, 0.25
PAIRS, ITERATIONS, REFIT = 2000, 40, 100  # pairs an iteration, iterations, DPO's gradient steps in each
AVERAGE, LAST = "duality gap of the average policy", "duality gap of the last policy"
LARGEST = AVERAGE + ", the worst seed"


def task_of(seed: int):
    P = preferences.rock_paper_scissors(WIN, DOMINATED)
    logits = 0.7 * jax.random.normal(jax.random.key(seed), (1, len(P)))
    return game(TabularPolicy(jax.nn.log_softmax(logits)), P, steps=ITERATIONS)


def gap(task, log_pi):
    return preferences.duality_gap(task.prompts.facts[0], log_pi, jax.nn.log_softmax(task.model.logits[0]), TAU)


def observe(task, state):
    return {"log_probs": state.policy.log_probs()[0]}


def run(seeds: list[int]) -> dict[str, Side]:
    tasks = [task_of(seed) for seed in seeds]
    first = np.array([float(gap(task, jax.nn.log_softmax(task.model.logits[0]))) for task in tasks])
    source = Online(prompts_drawn=PAIRS, annotator=Judged(Table()))
    methods = {
        "INPO": Preference(source, TwoAnchors(ETA, TAU / ETA), LeastSquares(1e-3)),
        "DPO": Preference(source, Logistic(beta=1.0), Minibatches(constant(0.05), epochs=REFIT)),
    }
    sides = {"reference": Side({"tau": TAU}, {AVERAGE: first})}
    for name, method in methods.items():
        log_p = trained(method, tasks, seeds, observe).observed["log_probs"]
        mean = np.cumsum(np.exp(log_p), axis=1) / np.arange(1, ITERATIONS + 1)[None, :, None]
        average, last = (np.stack([np.asarray(gap(t, jnp.asarray(x))) for t, x in zip(tasks, xs)]) for xs in (np.log(mean), log_p))
        numbers = {AVERAGE: average[:, -1], LAST: last[:, -1], LARGEST: np.full(len(seeds), average[:, -1].max())}
        sides[name] = side(method, numbers, {AVERAGE: average, LAST: last})
    return sides


CLAIM = Claim(
    method="inpo",
    statement="With binary labels of pairs that it draws itself INPO approaches the regularised Nash policy of an intransitive game, and "
    "iterative DPO does not.",
    baseline="DPO with beta 1 and the reference as anchor, refitted by 100 Adam steps of .05 on as many pairs of its own an iteration",
    task="rock, paper, scissors won with .95 and 7 dominated responses, random reference, tau .05, eta .25; 40 iterations of 2000 "
    "pairs, least squares",
    run=run,
    checks=(
        Check(LARGEST, "INPO", below=0.012),
        Check(AVERAGE, "INPO", over="DPO", ratio=True, below=0.15),
    ),
    seconds=20,
    analysis="Nine of ten seeds have a gap of .001 to .006; one has .01203, against the entry's bound of .012 for the worst seed, which its own ten "
    "seeds met with .0059. The gap of the average is what is left of a cycle of the last policies, so that its tail depends on where 40 "
    "iterations stop. Not tried: more iterations.",
)
