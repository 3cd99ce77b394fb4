"""REBEL learns from two samples a prompt, without critic or clipping, as fast as PPO with its step tuned; in a game its average is unexploitable."""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.preferences.training import Table, constant, game, scored, side, trained
from polopt.core.parts import hyper, part
from polopt.envs.exact import preferences
from polopt.envs.exact.sequences import expected
from polopt.loops.preference import PREVIOUS, AllPairs, LeastSquares, Minibatches, Preference
from polopt.loops.preference_sources import Judged, Online, rewards
from polopt.methods.preferences.dpo import Logistic
from polopt.methods.preferences.rebel import RelativeReward
from polopt.policies.language.log_linear import LogLinearPolicy
from polopt.policies.language.tabular import TabularPolicy

CONTEXTS, ACTIONS, FEATURES = 32, 50, 12
PAIRS, ITERATIONS = 64, 30
ETAS = (1.0, 3.0, 10.0, 30.0)
RATES = (0.03, 0.1, 0.3, 1.0)  # of Adam, for either baseline
EPOCHS = 10
GAMES = {"pairs": 256, "iterations": 400, "eta": 0.05}
FIRST, FIFTH, LAST, AREA = "mean reward after 1 iteration", "mean reward after 5 iterations", "mean reward at the end", "mean reward over training"
EXPLOITABILITY = "exploitability of the average policy"


@part
class NoisyRewards:
    """The rewards with Gaussian noise."""

    deviation: float = hyper(0.1, at_least=0)  # of the noise

    def refuse(self, task) -> str | None:
        return None

    def __call__(self, task, groups, key):
        found = rewards(task, groups)
        return found + self.deviation * jax.random.normal(key, found.shape)


@part
class Clipped:
    """PPO's clipped surrogate for whole responses, advantages the rewards normalised over the batch."""

    epsilon: float = hyper(0.2, above=0)  # the clip range

    anchors = (PREVIOUS,)
    responses = None

    def __call__(self, columns):
        ratio = jnp.exp(columns.ratio(PREVIOUS))
        advantage = (columns.score - columns.score.mean()) / (columns.score.std() + 1e-8)
        return -jnp.mean(jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - self.epsilon, 1 + self.epsilon) * advantage), axis=1)


def bandit(seed: int):
    """Rewards tanh(1.5 phi . w) with w of length 1, and the log-linear policy of the same features."""
    k_phi, k_w = jax.random.split(jax.random.key(seed))
    phi = jax.random.normal(k_phi, (CONTEXTS, ACTIONS, FEATURES))
    w = jax.random.normal(k_w, (FEATURES,))
    policy = LogLinearPolicy(jnp.zeros((CONTEXTS, ACTIONS)), phi)
    return scored(policy, jnp.tanh(1.5 * phi @ (w / jnp.linalg.norm(w))), steps=ITERATIONS)


def reward(task, state):
    return {"reward": expected(state.policy.log_probs(), task.prompts.facts).mean()}


def best_of(methods: list, tasks: list, seeds: list[int]) -> Side:
    """The setting with the highest mean reward over training."""
    sides = []
    for method in methods:
        curve = trained(method, tasks, seeds, reward).observed["reward"]
        numbers = {FIRST: curve[:, 0], FIFTH: curve[:, 4], LAST: curve[:, -1], AREA: curve.mean(1)}
        sides.append(side(method, numbers, {"mean reward": curve}))
    return max(sides, key=lambda s: s.numbers[AREA].mean())


def average_exploitability(seeds: list[int]) -> Side:
    """REBEL on rock, paper, scissors, from a random policy, with its win rate against a sample of itself as reward."""
    P = preferences.rock_paper_scissors(0.9)
    first = [TabularPolicy(jax.random.normal(jax.random.key(seed), (1, 3))) for seed in seeds]
    source = Online(prompts_drawn=GAMES["pairs"], annotator=Judged(Table()))
    method = Preference(source, RelativeReward(GAMES["eta"]), LeastSquares(1e-2))
    tasks = [game(policy, P, steps=GAMES["iterations"]) for policy in first]
    log_p = trained(method, tasks, seeds, lambda task, state: {"log_probs": state.policy.log_probs()[0]}).observed["log_probs"]
    average = jnp.asarray(np.exp(log_p).mean(1))
    return side(method, {EXPLOITABILITY: preferences.exploitability(jnp.asarray(P, jnp.float32), average)})


def run(seeds: list[int]) -> dict[str, Side]:
    tasks = [bandit(seed) for seed in seeds]
    drawn = Online(prompts_drawn=PAIRS, annotator=NoisyRewards())
    paired = Online(prompts_drawn=PAIRS, annotator=NoisyRewards(), pairs=AllPairs())
    return {
        "REBEL": best_of([Preference(paired, RelativeReward(eta), LeastSquares(1e-2)) for eta in ETAS], tasks, seeds),
        "PPO": best_of([Preference(drawn, Clipped(), Minibatches(constant(rate), epochs=EPOCHS)) for rate in RATES], tasks, seeds),
        "online DPO": best_of([Preference(paired, Logistic(), Minibatches(constant(rate), epochs=EPOCHS)) for rate in RATES], tasks, seeds),
        "REBEL, a game": average_exploitability(seeds),
    }


CLAIM = Claim(
    method="rebel",
    statement="With two samples a prompt and neither critic nor clipping, regression on relative rewards is ahead of PPO after one iteration and "
    "even with it in the end; with win rates as rewards its average policy is nearly unexploitable.",
    baseline="PPO's clipped surrogate with rewards normalised over the batch, and online DPO, 10 epochs of Adam, each with the best of 4 step sizes; "
    "REBEL with the best of 4 eta",
    task="32 contexts, 50 actions, log-linear policies with 12 features, rewards tanh(1.5 phi . w) with noise .1, 30 iterations of 64 pairs; rock, "
    "paper, scissors won with .9, 400 iterations of 256 pairs",
    run=run,
    checks=(
        Check(LAST, "REBEL", above=0.95),
        Check(FIRST, "REBEL", over="PPO", above=0.05),
        Check(LAST, "REBEL", over="PPO", above=-0.02),
        Check(EXPLOITABILITY, "REBEL, a game", below=0.05),
    ),
    seconds=30,
    analysis="The lead of .05 over PPO after one iteration is for a PPO whose step was not tuned. With the best of four steps PPO is within .02 to "
    ".04 of REBEL after the first iteration (seeds for trying out), and both end at the best reward.",
)
