"""From rewards to advantages: the parts that several papers of the language families share."""

from __future__ import annotations

import jax.numpy as jnp

from polopt.core.parts import hyper, part
from polopt.objectives import advantages, reduction


def forgetful(cls):
    """An advantage part without statistics of its own: `cls` need define `advantage(batch, judged)` only."""
    cls.init = lambda self, task, key: ()
    cls.__call__ = lambda self, state, task, batch, judged: (self.advantage(batch, judged), state)
    return part(cls)


@forgetful
class Ones:
    """Every completion counts alike: likelihood."""

    def advantage(self, batch, judged):
        return jnp.ones_like(batch.reward)


@forgetful
class Raw:
    """The reward itself, less what the sampler knows of the prompt's value."""

    def advantage(self, batch, judged):
        return batch.reward - batch.baseline


@forgetful
class GroupRelative:
    """The reward less its group's mean, divided by a deviation: GRPO's with `group`, Dr. GRPO's with `none`, Lite PPO's with `batch`."""

    fewest = 2

    scale: str = hyper("group", choices=("group", "batch", "uncentred_batch", "none"))  # whose deviation divides
    ddof: int = hyper(0, at_least=0, at_most=1)  # what is taken from the count in the deviation
    epsilon: float = hyper(1e-6, at_least=0)  # added to the deviation

    def advantage(self, batch, judged):
        given = dict(scale=self.scale, ddof=self.ddof, epsilon=self.epsilon, mask=batch.valid)
        return advantages.group_relative(batch.reward, batch.group, **given)


@forgetful
class LeaveOneOut:
    """The reward less the mean of the others in its group: RLOO's."""

    fewest = 2

    def advantage(self, batch, judged):
        return advantages.leave_one_out(batch.reward, batch.group, mask=batch.valid)


@forgetful
class LengthWeighted:
    """The reward less the mean of its group in which long completions count more: OPO's."""

    fewest = 2

    def advantage(self, batch, judged):
        lengths = jnp.sum(batch.mask, axis=1)
        return advantages.length_weighted(batch.reward, lengths, batch.group, mask=batch.valid)


@forgetful
class Whitened:
    """REINFORCE++: the reward, with `centre` less its group's mean, standardised over all tokens of the batch.

    A token bears what the penalty adds from it on, not what was added before it.
    """

    centre: bool = False  # take the group's mean first (the paper's variant with a baseline)
    epsilon: float = hyper(1e-8, above=0)  # added to the deviation

    def advantage(self, batch, judged):
        raw = advantages.group_relative(batch.reward, batch.group, scale="none", mask=batch.valid) if self.centre else batch.reward
        before = jnp.cumsum(judged.paid, axis=1) - judged.paid
        return reduction.standardise(raw[:, None] - before, judged.learn, epsilon=self.epsilon)


@forgetful
class Centred:
    """The reward less its group's mean: Dr. GRPO's."""

    fewest = 2

    def advantage(self, batch, judged):
        return advantages.group_relative(batch.reward, batch.group, scale="none", mask=batch.valid)
