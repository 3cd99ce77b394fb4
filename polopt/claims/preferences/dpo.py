"""DPO is the regularised optimum of the reward behind the comparisons; imitating what was chosen is not."""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.preferences.training import log_probs, logged, side, trained
from polopt.core.parts import part
from polopt.envs.exact import sequences
from polopt.loops.preference import Minibatches, Preference
from polopt.loops.preference_sources import Logged
from polopt.methods.preferences.dpo import Logistic
from polopt.optim.adam import Adam
from polopt.policies.language.tabular import TabularPolicy

ARMS, PAIRS, BETA = 8, 20_000, 0.5
BATCH, UPDATES, ITERATIONS = 100, 50, 40
KL, REGRET = "KL from the optimum", "regret in E[r] - beta KL"


@part
class Likelihood:
    """-log pi(y_w): imitation of the preferred responses."""

    anchors = ()
    responses = 2

    def __call__(self, columns):
        return -columns.log_prob[:, 0]


def problem(seed: int):
    """(task, log pi_ref, rewards): pairs of a random reference, labelled by Bradley-Terry."""
    draw = np.random.default_rng(seed)
    logits, rewards = 0.5 * draw.standard_normal(ARMS), draw.standard_normal(ARMS)
    reference = np.exp(logits) / np.exp(logits).sum()
    pairs = draw.choice(ARMS, size=(PAIRS, 2), p=reference)
    won = draw.random(PAIRS) < 1 / (1 + np.exp(rewards[pairs[:, 1]] - rewards[pairs[:, 0]]))
    task = logged(TabularPolicy(jnp.asarray(logits[None], jnp.float32)), np.zeros(PAIRS), pairs, np.stack([won, ~won], 1), steps=ITERATIONS)
    return task, np.log(reference), rewards


def run(seeds: list[int]) -> dict[str, Side]:
    tasks, reference, rewards = zip(*(problem(seed) for seed in seeds))
    reference, rewards = (jnp.asarray(np.stack(x), jnp.float32) for x in (reference, rewards))
    best, value = sequences.regularised_optimum(reference, rewards, BETA)
    fit = Minibatches(Adam(learning_rate=0.05, max_grad_norm=None), minibatches=UPDATES)

    def numbers(log_p):
        return {KL: sequences.kl(best, log_p), REGRET: value - sequences.regularised_objective(log_p, reference, rewards, BETA)}

    sides = {"reference": Side({"arms": ARMS}, {name: np.asarray(x, np.float64) for name, x in numbers(reference).items()})}
    for name, link in (("DPO", Logistic(BETA)), ("imitation", Likelihood())):
        method = Preference(Logged(groups=BATCH * UPDATES), link, fit)
        sides[name] = side(method, numbers(jax.nn.log_softmax(log_probs(trained(method, list(tasks), seeds).policies))))
    return sides


CLAIM = Claim(
    method="dpo",
    statement="A logistic loss on comparisons, in the policy alone, finds the optimum of the KL-regularised reward behind them; imitation of the "
    "preferred responses does not.",
    baseline="maximum likelihood of the preferred responses of the same pairs, with the same steps",
    task="8 arms with rewards N(0, 1), 20,000 Bradley-Terry pairs from a random reference, beta .5; softmax logits, 2000 batches "
    "of 100, Adam .05 annealed",
    run=run,
    checks=(
        Check(KL, "DPO", below=0.05),
        Check(REGRET, "DPO", over="imitation", below=-0.1),
    ),
    seconds=10,
)
