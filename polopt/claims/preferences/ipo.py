"""IPO keeps its distance from certainty: where preferences are deterministic DPO forgets the reference, IPO's optimum depends on tau."""

import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.preferences.training import log_probs, logged, side, trained
from polopt.core.parts import replace
from polopt.loops.preference import Minibatches, Preference
from polopt.loops.preference_sources import Logged
from polopt.methods.preferences.dpo import Logistic
from polopt.methods.preferences.ipo import Squared
from polopt.optim.adam import Adam
from polopt.policies.language.tabular import TabularPolicy

TAUS = (0.1, 0.5, 1.0)
BATCH, UPDATES = 9, 100  # pairs an update, updates an iteration
ITERATIONS = 180
ERROR = "largest distance from the closed form, tau = "
BEST = "probability of the best arm, tau = "


def closed_form(tau: float) -> np.ndarray:
    """The least squares of h_12 = h_23 = h_13 = c, c = 1 / (2 tau): logits 2c/3, 0, -2c/3."""
    logits = np.array([2, 0, -2]) / 3 / (2 * tau)
    return np.exp(logits) / np.exp(logits).sum()


def log(seed: int):
    """The three pairs, winner first, each 300 times."""
    pairs = np.tile([[0, 1], [1, 2], [0, 2]], (BATCH * UPDATES // 3, 1))
    return logged(TabularPolicy(jnp.zeros((1, 3))), np.zeros(len(pairs)), pairs, np.tile([[1, 0]], (len(pairs), 1)), steps=ITERATIONS)


def run(seeds: list[int]) -> dict[str, Side]:
    tasks = [log(seed) for seed in seeds]
    fit = Minibatches(Adam(learning_rate=0.01, max_grad_norm=None, epsilon=1e-8), minibatches=UPDATES)
    sides = {}
    for name, link, strength in (("IPO", Squared(), "link.tau"), ("DPO", Logistic(), "link.beta")):
        numbers = {}
        for tau in TAUS:
            method = replace(Preference(Logged(groups=BATCH * UPDATES), link, fit), {strength: tau})
            pi = np.exp(np.asarray(log_probs(trained(method, tasks, seeds).policies)))
            numbers |= {f"{ERROR}{tau}": abs(pi - closed_form(tau)[None]).max(1), f"{BEST}{tau}": pi[:, 0]}
        sides[name] = side(method, numbers)
    return sides


CLAIM = Claim(
    method="ipo",
    statement="With deterministic preferences DPO becomes deterministic whatever its regularisation, and IPO converges to an interior policy "
    "that tau sets.",
    baseline="DPO with beta = tau, the same data and updates",
    task="3 arms, uniform reference, pairs (1, 2), (2, 3), (1, 3) with the winner first; softmax logits, Adam .01 annealed, 18,000 batches of 9",
    run=run,
    checks=(
        *(Check(f"{ERROR}{tau}", "IPO", below=1e-3) for tau in TAUS),
        *(Check(f"{BEST}{tau}", "DPO", above=0.999) for tau in TAUS),
    ),
    seconds=20,
)
