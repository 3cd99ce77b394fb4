"""SimPO ranks responses by the likelihood they are decoded with; DPO's implicit reward can rank them right where the likelihood does not."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.preferences.training import logged, side, trained
from polopt.envs.exact import sequences
from polopt.loops.preference import Groups, Minibatches, Preference, log_probs
from polopt.loops.preference_sources import Logged
from polopt.methods.preferences.dpo import Logistic
from polopt.methods.preferences.simpo import simpo
from polopt.optim.adam import Adam
from polopt.policies.language.tabular import TabularPolicy

VOCABULARY, LENGTH, PAIRS, HELD_OUT = 3, 5, 4000, 2000  # token 0 ends a response
BATCH, UPDATES, ITERATIONS = 100, 40, 25
ACCURACY = "held-out pairs whose preferred response has the higher mean log-probability"


def lengths_of(responses) -> np.ndarray:
    """The tokens up to the first 0, that one too."""
    ended = responses == 0
    return np.where(ended.any(-1), ended.argmax(-1) + 1, LENGTH)


def problem(seed: int):
    """(task, held-out task): pairs of a random reference; the reward of a response is the mean worth of its tokens, each in its place."""
    draw = np.random.default_rng(seed)
    logits = draw.standard_normal((sequences.prefixes(VOCABULARY, LENGTH), VOCABULARY))
    model = TabularPolicy(jnp.asarray(logits[None], jnp.float32), "autoregressive")
    probabilities = np.asarray(jnp.exp(model.log_probs()[0]), np.float64)
    everything = sequences.sequences(VOCABULARY, LENGTH)
    pairs = everything[draw.choice(len(everything), size=(PAIRS + HELD_OUT, 2), p=probabilities / probabilities.sum())]
    length, worth = lengths_of(pairs), draw.standard_normal((LENGTH, VOCABULARY))
    written = np.arange(LENGTH) < length[..., None]
    reward = 2 * (worth[np.arange(LENGTH), pairs] * written).sum(-1) / length
    won = draw.random(len(pairs)) < 1 / (1 + np.exp(reward[:, 1] - reward[:, 0]))
    score = np.stack([won, ~won], 1)
    return [
        logged(model, np.zeros(len(rows)), pairs[rows], score[rows], steps=ITERATIONS, lengths=length[rows])
        for rows in (np.arange(PAIRS), np.arange(PAIRS, PAIRS + HELD_OUT))
    ]


def accuracy(policy, task):
    """Of pairs that differ in their label."""
    log = task.preferences
    sums = log_probs(policy, log.prompts, Groups(jnp.arange(len(log)), log.responses, log.mask, log.score))
    mean = sums / log.mask.sum(-1)
    return jnp.mean((mean[:, 0] > mean[:, 1]) == (log.score[:, 0] > log.score[:, 1]))


def run(seeds: list[int]) -> dict[str, Side]:
    tasks, held_out = zip(*(problem(seed) for seed in seeds))
    fit = Minibatches(Adam(learning_rate=0.05, max_grad_norm=None), minibatches=UPDATES)
    source = Logged(groups=BATCH * UPDATES)
    link = simpo(None).link
    first = [float(accuracy(task.model, task)) for task in held_out]
    sides = {"reference": Side({"length": LENGTH}, {ACCURACY: np.array(first)})}
    for name, method in (("SimPO", Preference(source, link, fit, length_normalised=True)), ("DPO", Preference(source, Logistic(), fit))):
        policies = trained(method, list(tasks), seeds).policies
        one = jax.jit(accuracy)
        found = [float(one(jax.tree.map(itemgetter(i), policies), task)) for i, task in enumerate(held_out)]
        sides[name] = side(method, {ACCURACY: found})
    return sides


CLAIM = Claim(
    method="simpo",
    statement="With the mean log-probability as reward, the likelihood by which responses are decoded ranks unseen pairs right more often than "
    "after DPO, whose reward is a ratio to the reference.",
    baseline="DPO with beta .1 on the same pairs, with the same steps; the reference",
    task="responses of up to 5 of 3 tokens, one of which ends them, an autoregressive table; Bradley-Terry labels by the mean worth of tokens; "
    "4000 pairs, 1000 batches of 100, Adam .05 annealed",
    run=run,
    checks=(
        Check(ACCURACY, "SimPO", over="DPO", above=0),
        Check(ACCURACY, "SimPO", over="reference", above=0.05),
    ),
    seconds=15,
)
