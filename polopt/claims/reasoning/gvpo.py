"""GVPO: from somebody else's samples it comes to the regularised optimum; a penalised policy gradient does not."""

import dataclasses

import jax
import jax.numpy as jnp

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import learn, side
from polopt.core.parts import part
from polopt.data import testbeds
from polopt.envs.exact import sequences
from polopt.loops.language import Anchor, KLPenalty
from polopt.loops.prompting import Grouped, written
from polopt.loops.wording import LogLikelihood
from polopt.methods.reasoning.gvpo import GroupVariance, gvpo
from polopt.policies.language.sampling import Sampling
from polopt.policies.language.tabular import TabularPolicy

PROMPTS, ANSWERS, SIZE, STEPS, BETA = 8, 8, 8, 3000, 1.0
DISTANCE = "KL(pi || regularised optimum)"


@part
class Foreign:
    """All prompts, their completions by a policy that is drawn once, softmax of N(0, 1), and never learns."""

    prompts: int = PROMPTS
    completions: int = SIZE

    groups = Grouped.groups
    size = Grouped.size
    temperature = 1.0
    refuse = Grouped.refuse
    tell = Grouped.tell

    def init(self, task, key):
        return TabularPolicy(jax.random.normal(key, task.model.logits.shape), "bandit")

    def gather(self, state, task, policy, key):
        return written(task, state, jnp.arange(self.prompts, dtype=jnp.int32), key, Sampling(), repeats=self.completions), state


@part
class Decaying:
    """A plain step that falls as 1 / (1 + t / 500), 0.3 for each prompt at first."""

    def init(self, params):
        return ()

    def update(self, gradient, state, params, progress):
        rate = 0.3 * PROMPTS / (1 + progress * STEPS / 500)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), state


def problem(seed: int):
    k_policy, k_reward = jax.random.split(jax.random.key(seed))
    task = testbeds.bandit(prompts=PROMPTS, answers=ANSWERS, steps=STEPS)
    rewards = jax.random.uniform(k_reward, (PROMPTS, ANSWERS), maxval=2.0)
    policy = TabularPolicy(0.7 * jax.random.normal(k_policy, (PROMPTS, ANSWERS)), "bandit")
    return dataclasses.replace(task, model=policy, prompts=dataclasses.replace(task.prompts, facts=rewards))


def observe(task, policy):
    best = sequences.regularised_optimum(task.model.log_probs(), task.prompts.facts, BETA)
    return {DISTANCE: jnp.mean(sequences.kl(policy.log_probs(), best.log_probs))}


def run(seeds: list[int]) -> dict[str, Side]:
    regression = GroupVariance(BETA, reference="anchor")
    method = dataclasses.replace(gvpo(), sampler=Foreign(), objective=regression, penalty=Anchor(), step_rule=Decaying(), epochs=1)
    gradient = dataclasses.replace(method, objective=LogLikelihood(), penalty=KLPenalty(BETA, "k3"))
    sides = {}
    methods = {"GVPO": method, "policy gradient with k3": gradient}
    for name, method in methods.items():
        curve = learn(method, problem, seeds, observe)[DISTANCE]
        sides[name] = side(method, {DISTANCE: curve[:, -1]}, {DISTANCE: curve[:, ::50]})
    return sides


CLAIM = Claim(
    method="gvpo",
    statement="Trained on samples of an unrelated policy, without importance weights, GVPO comes to the optimum of the reward regularised by the "
    "divergence from the reference.",
    baseline="centred rewards and a k3 penalty, GRPO's, on the same samples",
    task="8 prompts of 8 answers, rewards U(0, 2), reference softmax(.7 N), samples of softmax(N), beta 1, 3000 steps of .3 / (1 + t / 500) a prompt",
    run=run,
    checks=(
        Check(DISTANCE, "GVPO", below=1e-3),
        Check(DISTANCE, "policy gradient with k3", above=5e-3),
    ),
    seconds=10,
)
