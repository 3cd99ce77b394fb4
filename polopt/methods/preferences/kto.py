"""KTO: Model Alignment as Prospect Theoretic Optimization.

Kawin Ethayarajh, Winnie Xu, Niklas Muennighoff, Dan Jurafsky, Douwe Kiela. 2024. arXiv:2402.01306

Single responses that are labelled desirable or undesirable suffice: the loss is a human's value of a gain or a loss beside a reference point.

    r = log pi(y | x) / pi_ref(y | x)          z = max(0, mean over mismatched (x, y') of log pi(y' | x) / pi_ref(y' | x)), a constant

    L = lambda_D (1 - sigmoid(beta (r - z)))      of a desirable response
    L = lambda_U (1 - sigmoid(beta (z - r)))      of an undesirable one

z estimates the KL from the reference; a mismatched response is the next row's. Of a log with several responses to a prompt the best is desirable and
the others are not; a single one is desirable if its score is above 1/2.

Defaults: the paper's beta .1 and both weights 1, 32 responses a step, Adam 5e-7. The weights should bring lambda_D n_D / (lambda_U n_U) to 1 ... 4/3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.data.preferences import PreferenceTask
from polopt.loops.preference import START, Groups, Preference, mean_where
from polopt.loops.preference_sources import Logged
from polopt.methods._language import sized
from polopt.methods.registry import composition
from polopt.objectives.preferences import prospect


@part
class LabelledAndMismatched:
    """Each response by itself with the label 1 or 0, beside it the response of the next row, which answers another prompt."""

    fewest = 1

    def __call__(self, groups):
        size, count = groups.score.shape
        best = jnp.argmax(groups.score, axis=1)
        desirable = groups.score > 0.5 if count == 1 else jnp.arange(count)[None] == best[:, None]
        label = jnp.where(jnp.isfinite(groups.score), desirable.astype(groups.score.dtype), jnp.nan)
        tokens, mask = (jnp.stack([x, jnp.roll(x, -1, 0)], 2).reshape(size * count, 2, -1) for x in (groups.tokens, groups.mask))
        return Groups(jnp.repeat(groups.index, count), tokens, mask, jnp.broadcast_to(label.reshape(-1, 1), (size * count, 2)))


@part
class Prospect:
    """The value of a labelled response (first of two) beside the KL that mismatched ones (second) show."""

    beta: float = hyper(0.1, above=0)  # how fast value saturates
    desirable: float = hyper(1.0, at_least=0)  # lambda_D: weight of desirable responses
    undesirable: float = hyper(1.0, at_least=0)  # lambda_U: weight of undesirable ones

    anchors = (START,)
    responses = 2

    def __call__(self, columns):
        ratio, label = columns.ratio(), columns.score[:, 0]
        point = jax.lax.stop_gradient(jnp.maximum(jnp.mean(ratio[:, 1]), 0))
        return prospect(ratio[:, 0], label, point, self.beta, self.desirable, self.undesirable)

    def metrics(self, columns, real):
        """The log-ratio of desirable and of undesirable responses."""
        ratio, desirable = columns.ratio()[:, 0], columns.score[:, 0] > 0.5
        good, bad = mean_where(real & desirable, ratio), mean_where(real & ~desirable, ratio)
        return {"ratio/desirable": good, "ratio/undesirable": bad, "margin": good - bad}


@composition
def kto(task: PreferenceTask | None = None) -> Preference:
    """KTO on logged responses."""
    return sized(task, Preference(Logged(groups=32, pairs=LabelledAndMismatched()), Prospect()))
