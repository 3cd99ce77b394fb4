"""Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy Optimization.

Chao Wang, Tao Yang, Hongtao Tian, Yunsheng Shi, Qiyao Ma, Xiaotao Liu, Ting Yao, Wenbo Ding. 2025. arXiv:2509.22115

Many completions are written and few are learnt from: those whose advantages, already normalised in their groups, have the greatest variance over
the whole batch, and in them the tokens with a large |advantage| times entropy. Both shares grow along the training.

    S            the n_S completions with the greatest Var(A_S) = mean A^2 - (mean A)^2: the k smallest and the n_S - k largest for the best k
    score_it     |A_i| H_it, with H_it the policy's entropy at token t; the top share of all tokens of S is learnt from
    share(x)     (1 - x) first + x last,   x in [0, 1] the progress of training
    loss         the host's surrogate, averaged over the tokens that are kept; A is not normalised again

The mean over fewer tokens makes steps longer: compare at equal gradient norms. What is saved is the backward pass of what is left out, for a trainer
that drops it; here it is masked. The paper does not give its shares: these are a choice.
"""

from __future__ import annotations

import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.parts import hyper, part
from polopt.data.language import LanguageTask
from polopt.loops.credit import GroupRelative
from polopt.loops.language import Language
from polopt.loops.prompting import Grouped
from polopt.loops.wording import Clipped, few, largest
from polopt.methods._language import adam
from polopt.methods.registry import composition


def widest(x, count):
    """Which `count` of x (n,) have the greatest variance, (n,) bool. The count may be an array."""
    xp = array_namespace(x)
    n = x.shape[0]
    order = xp.argsort(x, stable=True)
    ordered = xp.take(x, order)
    zero = xp.zeros_like(ordered[:1])
    first, second = (xp.concat([zero, xp.cumulative_sum(p)]) for p in (ordered, ordered**2))
    k = xp.arange(n + 1)
    start = xp.clip(n - count + k, max=n)  # the largest ones begin here
    s1, s2 = (p + p[-1] - xp.take(p, start) for p in (first, second))
    variance = s2 / count - (s1 / count) ** 2
    best = xp.argmax(xp.where(k <= count, variance, xp.full_like(variance, -xp.inf)))
    rank = xp.argsort(order)
    return (rank < best) | (rank >= n - count + best)


@part
class DownSampling:
    """The completions of the widest spread of advantages, and their most telling tokens."""

    reads = True

    first: float = hyper(0.15, above=0, at_most=1)  # share of completions at the start
    last: float = hyper(0.5, above=0, at_most=1)  # and at the end
    first_tokens: float = hyper(0.2, above=0, at_most=1)  # share of their tokens at the start
    last_tokens: float = hyper(0.6, above=0, at_most=1)  # and at the end

    def __call__(self, judged, entropy, progress):
        count = jnp.maximum(jnp.sum(judged.learn, axis=1), 1)
        advantage = jnp.sum(judged.advantage, axis=1) / count  # 0 where nothing is learnt
        n = advantage.shape[0]
        share = (1 - progress) * self.first + progress * self.last
        chosen = judged.learn & widest(advantage, jnp.clip(jnp.round(share * n), 1, n).astype(jnp.int32))[:, None]
        score = jnp.abs(judged.advantage) * entropy
        return largest(score, chosen, few((1 - progress) * self.first_tokens + progress * self.last_tokens, chosen))


@composition
def d3s(task: LanguageTask | None = None) -> Language:
    """GRPO on 32 completions of each prompt, of which few are learnt from."""
    return Language(
        sampler=Grouped(completions=32),
        advantage=GroupRelative(),
        objective=Clipped(),
        step_rule=adam(task),
        selection=DownSampling(),
        minibatches=2,
    )
