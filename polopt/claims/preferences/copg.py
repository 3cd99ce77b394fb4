"""CoPG learns the regularised optimum from data that another policy drew; policy gradients with other baselines do not, nor does IPO."""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.preferences.training import constant, logged, side, trained
from polopt.core.parts import hyper, part
from polopt.envs.exact import sequences
from polopt.loops.preference import START, AsDrawn, Minibatches, Preference
from polopt.loops.preference_sources import Logged
from polopt.methods.preferences.copg import Contrastive
from polopt.methods.preferences.ipo import Squared
from polopt.policies.language.tabular import TabularPolicy

REWARDS, DATA, BETA = (1.0, 2.0, 2.5), (0.8, 0.15, 0.05), 0.5
PAIRS, BATCH, UPDATES, ITERATIONS = 10_000, 100, 100, 40
REGRET = "regret"


@part
class PolicyGradient:
    """-(R_b(y) - b) log pi(y) of both responses, the bracket a constant: off-policy, without importance weights."""

    beta: float = hyper(BETA, above=0)  # strength of the KL penalty
    baseline: float = 0.0  # b

    anchors = (START,)
    responses = None

    def __call__(self, columns):
        advantage = columns.score - self.beta * columns.ratio() - self.baseline
        return -jnp.mean(jax.lax.stop_gradient(advantage) * columns.log_prob, axis=1)


def log(seed: int, ordered: bool = False):
    """Pairs of the data's policy with their rewards; `ordered`: with 1 and 0 for the better and the worse of two that differ, 1/2 for equal ones."""
    arms = np.random.default_rng(seed).choice(3, size=(PAIRS, 2), p=DATA)
    reward = np.asarray(REWARDS)[arms]
    score = 0.5 + 0.5 * np.sign(reward - reward[:, ::-1]) if ordered else reward
    return logged(TabularPolicy(jnp.zeros((1, 3))), np.zeros(PAIRS), arms, score, steps=ITERATIONS)


def run(seeds: list[int]) -> dict[str, Side]:
    uniform, rewards = jnp.full(3, -jnp.log(3.0)), jnp.asarray(REWARDS)
    best = sequences.regularised_optimum(uniform, rewards, BETA).value
    value = float(np.dot(DATA, REWARDS))
    sides = {}
    for name, link in (
        ("CoPG", Contrastive(BETA)),
        ("policy gradient", PolicyGradient(BETA)),
        ("policy gradient, value baseline", PolicyGradient(BETA, value)),
        ("IPO", Squared(BETA)),
    ):
        tasks = [log(seed, ordered=name == "IPO") for seed in seeds]
        method = Preference(Logged(groups=BATCH * UPDATES, pairs=AsDrawn()), link, Minibatches(constant(0.05), minibatches=UPDATES))

        def observe(task, state):
            return {REGRET: best - sequences.regularised_objective(state.policy.log_probs()[0], uniform, rewards, BETA)}

        regret = trained(method, tasks, seeds, observe).observed[REGRET]
        sides[name] = side(method, {REGRET: regret[:, -1]}, {REGRET: regret})
    return sides


CLAIM = Claim(
    method="copg",
    statement="From strongly off-policy data CoPG converges to the KL-regularised optimum; off-policy policy gradients with other baselines converge "
    "elsewhere, and IPO on the order alone loses the rewards' sizes.",
    baseline="policy gradient without importance weights, with no baseline and with the data's mean reward; IPO on the same pairs labelled by order",
    task="3 arms with rewards 1, 2, 2.5, uniform reference, beta .5, 10,000 pairs from (.8, .15, .05); softmax logits, Adam .05, 4000 batches of 100",
    run=run,
    checks=(
        Check(REGRET, "CoPG", below=1e-3),
        Check(REGRET, "policy gradient", above=0.05),
        Check(REGRET, "policy gradient, value baseline", above=0.05),
        Check(REGRET, "IPO", above=0.05),
    ),
    seconds=30,
)
