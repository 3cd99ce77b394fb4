"""D3S: a sixth to a half of the completions, chosen by the spread of advantages, teach as much as all; as many at random do not."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from polopt.claims.claim import Check, Claim, Side
from polopt.claims.language import learn, side
from polopt.core.parts import hyper, part
from polopt.data.testbeds import bandit, exact_returns
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import LogLikelihood
from polopt.methods.reasoning.d3s import DownSampling
from polopt.optim.sgd import Sgd

PROMPTS, COMPLETIONS, NORM = 64, 32, 3.0
EARLY, LAST = "exact accuracy after 15 steps", "exact accuracy at the end"


@part
class AtRandom:
    """As many completions as D3S takes. The order is fixed: prompts come in a new one each time, and the completions of a prompt are alike."""

    reads = False

    first: float = hyper(0.15, above=0, at_most=1)
    last: float = hyper(0.5, above=0, at_most=1)

    def __call__(self, judged, entropy, progress):
        n = judged.learn.shape[0]
        rank = jax.random.permutation(jax.random.key(0), n)
        return judged.learn & (rank < jnp.round(n * ((1 - progress) * self.first + progress * self.last)))[:, None]


def problem(seed: int):
    success = 0.02 + 0.9 * jax.random.beta(jax.random.key(seed), 0.5, 0.8, (PROMPTS,))
    return bandit(prompts=PROMPTS, answers=20, success=success, seed=seed, steps=60)


def run(seeds: list[int]) -> dict[str, Side]:
    whole = Language(sampler=Grouped(PROMPTS, COMPLETIONS), advantage=GroupRelative(), objective=LogLikelihood(), step_rule=Sgd(1.0, norm=NORM))
    methods = {
        "D3S": replace(whole, selection=DownSampling(first_tokens=1.0, last_tokens=1.0)),
        "all": whole,
        "random": replace(whole, selection=AtRandom()),
    }
    sides = {}
    for name, method in methods.items():
        accuracy = learn(method, problem, seeds, lambda task, policy: {"accuracy": jnp.mean(exact_returns(task, policy))})["accuracy"]
        sides[name] = side(method, {EARLY: accuracy[:, 15], LAST: accuracy[:, -1]}, {"exact accuracy": accuracy})
    return sides


CLAIM = Claim(
    method="d3s",
    statement="With gradients of one length, 15 to 50 % of the completions, chosen for the variance of their advantages, teach as much as all "
    "of them, and as many at random clearly less.",
    baseline="all completions, and as many at random",
    task="bandit of 64 prompts and 20 answers, one right, first success .02 + .9 Beta(.5, .8); 32 completions of each prompt, 60 steps of length 3",
    run=run,
    checks=(
        Check(EARLY, "D3S", over="random", above=0.05),
        Check(EARLY, "D3S", over="all", above=-0.01),
        Check(EARLY, "D3S", over="all", below=0.01),
        Check(LAST, "D3S", over="all", above=-0.01),
        Check(LAST, "D3S", over="all", below=0.01),
    ),
    seconds=10,
)
