"""Where the preference loop's groups come from: a log, or responses that are drawn and scored now."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.data.preferences import PreferenceTask
from polopt.loops.preference import PREVIOUS, START, AsDrawn, BestAndWorst, Drawn, Groups, Pairs, pick
from polopt.policies.language.mixture import GeometricMixture
from polopt.policies.language.sampling import Sampling, generate

# -- a log -------------------------------------------------------------------------------------------------------------


@part
class Logged:
    """Groups of a log, at random. The columns of the first policy are computed once."""

    groups: int | None = hyper(64, at_least=1)  # groups an iteration; none: all of the log
    pairs: Pairs = BestAndWorst()

    takes = PreferenceTask
    needs = "preferences (--data)"
    temperature = 1.0

    def refuse(self, task, link) -> str | None:
        logged = task.preferences.score.shape[1]
        built = jax.eval_shape(self.built, task).score.shape
        if logged < self.pairs.fewest or (link.responses is not None and built[1] != link.responses):
            return f"compares {link.responses or 'several'} responses to a prompt, but {task.name} gives {logged}"
        if self.groups is not None and self.groups > built[0]:
            return f"learns from {self.groups} groups an iteration, but {task.name} has {built[0]}. Set fewer groups"
        return None

    def prompts(self, task):
        return task.preferences.prompts

    def count(self, task) -> int:
        return jax.eval_shape(self.built, task).index.shape[0] if self.groups is None else self.groups

    def built(self, task) -> Groups:
        """All groups, as the link compares them."""
        log = task.preferences
        everything = Groups(jnp.arange(log.score.shape[0]), jnp.asarray(log.responses), jnp.asarray(log.mask), jnp.asarray(log.score))
        return self.pairs(everything)

    def init(self, loop, task) -> dict[str, jax.Array]:
        """The column of the first policy where the link asks for it."""
        return {START: loop.log_probs(task, task.model, self.built(task))} if START in loop.link.anchors else {}

    def draw(self, loop, task, held, policies, key) -> Drawn:
        built = self.built(task)
        n = built.index.shape[0]
        chosen = jnp.arange(n) if self.groups is None else pick(key, n, self.groups)
        groups, anchor = jax.tree.map(lambda x: x[chosen], (built, held))
        others = {name: loop.log_probs(task, policies[name], groups) for name in loop.link.anchors if name != START}
        return Drawn(groups, anchor | others, {"score": jnp.mean(groups.score)})


# -- responses drawn now -----------------------------------------------------------------------------------------------


class Sampler(Protocol):
    """What draws a response."""

    def __call__(self, policies: dict[str, Any]) -> Any:
        """A LanguagePolicy from the policies called "current", "start" and "previous"."""
        ...


@part
class Draws:
    """One policy, by name."""

    policy: str = hyper("current", choices=("current", START, PREVIOUS))  # the current one, the first, or the previous in the schedule's sense

    def __call__(self, policies):
        return policies[self.policy]


@part
class Mixture:
    """The geometric mixture of the current and the first policy, token by token: log pi^a = (1 - a) log pi + a log pi_ref - log Z."""

    share: float = hyper(0.5, at_least=0, at_most=1)  # a: the exponent of the first policy

    def __call__(self, policies):
        return GeometricMixture(policies["current"], policies[START], self.share)


class Judge(Protocol):
    """The probability (n,) that response a is preferred to b, for prompts `index` (n,)."""

    def __call__(self, prompts, index, tokens_a, mask_a, tokens_b, mask_b) -> jax.Array: ...


class Annotator(Protocol):
    """What the responses are worth: scores (B, K) of drawn groups."""

    def refuse(self, task) -> str | None: ...

    def __call__(self, task, groups: Groups, key) -> jax.Array: ...


def rewards(task, groups: Groups) -> jax.Array:
    """(B, K): what the task's verifier says of each response; nan where it failed."""
    size, count, length = groups.tokens.shape
    index = jnp.repeat(groups.index, count)
    graded = task.verifier(task.prompts, index, groups.tokens.reshape(-1, length), groups.mask.reshape(-1, length))
    return jnp.where(graded.valid, graded.reward, jnp.nan).reshape(size, count)


@part
class Rewards:
    """The reward of each response by itself."""

    def refuse(self, task) -> str | None:
        return None if task.verifier is not None else "scores each response by itself, but the task has no verifier"

    def __call__(self, task, groups, key):
        return rewards(task, groups)


@part
class Comparisons:
    """The share of the group's other responses that a response wins against: the one with the higher reward wins, and equal ones win half."""

    sampled: bool = True  # equal ones win or lose at random; false: half counts

    def refuse(self, task) -> str | None:
        return None if task.verifier is not None else "compares responses by their rewards, but the task has no verifier"

    def __call__(self, task, groups, key):
        reward = rewards(task, groups)
        return win_shares(lambda a, b: 0.5 + 0.5 * jnp.sign(reward[:, a] - reward[:, b]), groups, key, self.sampled)


@part
class Judged:
    """The same by a judge's probabilities."""

    judge: Judge
    sampled: bool = True  # a comparison is won or lost at random; false: its probability counts

    def refuse(self, task) -> str | None:
        return None

    def __call__(self, task, groups, key):
        def wins(first, second):
            flat = lambda x, which: x[:, which].reshape(-1, x.shape[-1])  # noqa: E731
            a, b = ((flat(groups.tokens, which), flat(groups.mask, which)) for which in (first, second))
            return self.judge(task.prompts, jnp.repeat(groups.index, first.shape[0]), *a, *b).reshape(-1, first.shape[0])

        return win_shares(wins, groups, key, self.sampled)


def win_shares(wins, groups: Groups, key, sampled: bool) -> jax.Array:
    """(B, K): each response's share of wins over the others, from `wins(a, b)`, the probabilities (B, n) that responses a (n,) beat b (n,)."""
    size, count = groups.mask.shape[:2]
    first, second = jnp.triu_indices(count, 1)
    won = wins(first, second)
    if sampled:
        won = jnp.where(jnp.isfinite(won), (jax.random.uniform(key, won.shape) < won).astype(won.dtype), won)
    return jnp.zeros((size, count), won.dtype).at[:, first].add(won).at[:, second].add(1 - won) / (count - 1)


@part
class Online:
    """Prompts at random; the first response of each by `sampler`, the others by `opponent`; scores by `annotator`."""

    prompts_drawn: int = hyper(64, at_least=1)  # prompts an iteration
    responses: int = hyper(2, at_least=2)  # K: responses to a prompt
    sampler: Sampler = Draws()
    opponent: Sampler = Draws()
    annotator: Annotator = Rewards()
    pairs: Pairs = AsDrawn()
    kl_coefficient: float = hyper(0.0, at_least=0)  # weight of log pi / pi_ref, at the time of drawing, that a score loses
    sampling: Sampling = Sampling()

    takes = LanguageTask
    needs = "prompts and a verifier (--task)"

    @property
    def temperature(self):
        return self.sampling.temperature

    def refuse(self, task, link) -> str | None:
        compared = self.built().score.shape[1]
        if link.responses is not None and compared != link.responses:
            return f"compares {link.responses} responses to a prompt, but is given {compared}. Set another number of responses, or build pairs"
        return self.annotator.refuse(task)

    def prompts(self, task):
        return task.prompts

    def built(self):
        """The shapes of an iteration's groups, as the link compares them, with responses of one token."""
        shape, one = (self.prompts_drawn, self.responses), jax.ShapeDtypeStruct
        return jax.eval_shape(self.pairs, Groups(one(shape[:1], int), one((*shape, 1), int), one((*shape, 1), bool), one(shape, float)))

    def count(self, task) -> int:
        return self.built().index.shape[0]

    def init(self, loop, task):
        return ()

    def draw(self, loop, task, held, policies, key) -> Drawn:
        k_prompts, k_first, k_others, k_scores = jax.random.split(key, 4)
        index = pick(k_prompts, task.prompts.tokens.shape[0], self.prompts_drawn)
        if isinstance(self.sampler, Draws) and self.sampler == self.opponent:  # one pass over the prompts draws them all
            tokens, mask, finished = self.responses_of(self.sampler(policies), task, index, self.responses, k_first)
        else:
            first = self.responses_of(self.sampler(policies), task, index, 1, k_first)
            others = self.responses_of(self.opponent(policies), task, index, self.responses - 1, k_others)
            tokens, mask, finished = (jnp.concatenate(pair, 1) for pair in zip(first, others))
        groups = Groups(index, tokens, mask, jnp.zeros(mask.shape[:2]))
        score = jax.lax.stop_gradient(self.annotator(task, groups, k_scores))
        now, start = (loop.log_probs(task, policies[name], groups) for name in ("current", START))
        groups = groups._replace(score=score - self.kl_coefficient * (now - start))
        metrics = {
            "score": jnp.nanmean(score),
            "kl": jnp.mean((now - start)[:, 0]),
            "length": jnp.mean(mask.sum(-1)),
            "finished": jnp.mean(finished),
            "skipped": jnp.mean(~jnp.isfinite(score)),
        }
        groups = self.pairs(groups)
        return Drawn(groups, {name: loop.log_probs(task, policies[name], groups) for name in loop.link.anchors}, metrics)

    def responses_of(self, policy, task, index, count: int, key):
        """tokens, mask (B, count, N) and finished (B, count)."""
        x = task.prompts.tokens[index], task.prompts.mask[index]
        drawn = generate(policy, *x, key, length=task.length, stop=task.stop, sampling=self.sampling, repeats=count)
        return tuple(v.reshape(index.shape[0], count, *v.shape[1:]) for v in (drawn.tokens, drawn.mask, drawn.finished))
