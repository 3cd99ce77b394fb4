"""On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling.

Nicholas E. Corrado, Josiah P. Hanna. 2023. arXiv:2311.08290

On-policy learning needs data that are distributed as the policy's, not data drawn from the policy. A behaviour policy that is adapted
again and again to what the buffer lacks collects such data with less sampling error, and older data can be used once more.

With theta the learner, phi the behaviour, D the buffer, rho = pi_phi(a|s) / pi_theta(a|s):

    phi <- theta; then descend over minibatches of D, until the mean KL exceeds delta:
    L(phi) = E_D[ max(rho, clip(rho, 1 - eps, 1 + eps)) + lam KL( pi_theta || pi_phi ) ]      PPO's loss with A = -1
    grad L at theta = E_D[ grad log pi_theta(a|s) ], 0 where the actions in D are as frequent as theta has them
    ROS: phi = theta - alpha E_D[ grad log pi_theta(a|s) ], one step on the whole of D (Zhong et al. 2022, arXiv:2111.14552)

The learner is PPO, unchanged, on the last b batches as if theta had drawn them: the old probabilities are theta's. phi adapts to
what the learner will see: the b - 1 earlier batches and the new one so far. `behaviour.every` counts environment steps; the released code
has 8, and an adaptation costs up to 256 gradient steps. Adam starts anew with each adaptation. With continuous actions keep delta small.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core import spaces
from polopt.core.parts import hyper, part
from polopt.envs.task import ControlTask
from polopt.loops.behaviour import Buffered
from polopt.loops.descent import Descent, Step
from polopt.loops.on_policy import OnPolicy
from polopt.methods.policy_gradient.gae import GAE
from polopt.methods.policy_gradient.ppo import Clip
from polopt.methods.registry import composition
from polopt.objectives import surrogates
from polopt.optim.adam import Adam


def behaviour_loss(log_prob, target_log_prob, clip):
    """max(rho, clip(rho)) of each sample: it falls as actions that are there too often become less likely."""
    return surrogates.clipped(log_prob, target_log_prob, -array_namespace(log_prob).ones_like(log_prob), clip)


@part
class Clipped:
    """PROPS: epochs of clipped steps away from what the data have too much of."""

    step: Step = Adam(learning_rate=1e-3, anneal=False, max_grad_norm=None)  # its run is one adaptation
    epochs: int = hyper(16, at_least=1)  # passes over the buffer
    minibatches: int = hyper(16, at_least=1)  # steps in a pass
    clip: float = hyper(0.3, above=0)  # eps: a ratio beyond 1 +- clip pulls no longer where that would make it more extreme
    target_kl: float = hyper(0.1, above=0)  # delta: no more steps once the mean KL(learner || behaviour) of a minibatch exceeds this
    kl_coefficient: float = hyper(0.1, at_least=0)  # lam: weight of that KL in the loss

    def __call__(self, loop, actor, data, weight, key):
        target = loop.forward(actor, 0, data)
        raw = loop.samples(data.raw_action)
        known = jax.vmap(lambda d, r: d.log_prob(r))(target, raw)
        everything = data, weight, loop.as_batch(target), loop.as_batch(known)

        def loss(phi, minibatch):
            data, *rest = minibatch
            weight, target, known = map(loop.samples, rest)
            new = loop.forward(phi, 0, data)
            log_prob = jax.vmap(lambda d, r: d.log_prob(r))(new, loop.samples(data.raw_action))
            kl = jax.vmap(lambda t, d: t.kl(d))(target, new)
            losses = behaviour_loss(log_prob, known, self.clip) + self.kl_coefficient * kl
            count = jnp.maximum(jnp.sum(weight), 1.0)
            return jnp.sum(weight * losses) / count, jnp.sum(weight * kl) / count

        filled = jnp.max(weight.reshape(weight.shape[0], -1), axis=1) > 0

        def one_pass(passes):
            epoch, carry = passes

            def descend(carry, chosen):
                phi, optimiser, stopped = carry
                indices, valid = chosen
                data, weight, *rest = jax.tree.map(lambda x: x[indices], everything)
                gradient, kl = jax.grad(loss, has_aux=True)(phi, (data, jax.vmap(jnp.multiply)(weight, valid), *rest))
                stopped = stopped | (kl > self.target_kl)
                still = stopped | (valid.max() == 0)
                moved = self.step.update(gradient, optimiser, phi, epoch / self.epochs)
                return (*jax.tree.map(lambda new, old: jnp.where(still, old, new), moved, (phi, optimiser)), stopped), None

            carry, _ = jax.lax.scan(descend, carry, divided(filled, self.minibatches, jax.random.fold_in(key, epoch)))
            return epoch + 1, carry

        start = (actor, self.step.init(actor), ~filled.any())
        return jax.lax.while_loop(lambda passes: (passes[0] < self.epochs) & ~passes[1][2], one_pass, (0, start))[1][0]


def divided(filled, count: int, key):
    """A random division into `count` minibatches of the places that are filled (n,): indices (count, size), and which of them count."""
    n = filled.shape[0]
    order = jnp.argsort(jnp.where(filled, jax.random.uniform(key, (n,)), 2.0))
    bounds = (jnp.arange(count + 1) * jnp.sum(filled)) // count
    places = bounds[:-1, None] + jnp.arange(-(-n // count))[None]
    return order[jnp.minimum(places, n - 1)], (places < bounds[1:, None]).astype(jnp.float32)


@part
class Ros:
    """ROS: one gradient step that makes the data less likely."""

    learning_rate: float = hyper(0.1, above=0)  # alpha

    def __call__(self, loop, actor, data, weight, key):
        weight = loop.samples(weight)

        def likelihood(phi):
            log_prob = jax.vmap(lambda d, r: d.log_prob(r))(loop.forward(phi, 0, data), loop.samples(data.raw_action))
            return jnp.sum(weight * log_prob) / jnp.maximum(jnp.sum(weight), 1.0)

        return jax.tree.map(lambda p, g: p - self.learning_rate * g, actor, jax.grad(likelihood)(actor))


@composition
def props(task: ControlTask | None = None) -> OnPolicy:
    """PPO on data of a PROPS behaviour, the last two batches of 2048 steps."""
    return _compose(task, Buffered(Clipped()))


@composition
def ros(task: ControlTask | None = None) -> OnPolicy:
    """PPO on data of a ROS behaviour, adapted before each step."""
    return _compose(task, Buffered(Ros(), every=1))


def _compose(task: ControlTask | None, behaviour) -> OnPolicy:
    continuous = task is not None and isinstance(task.env.action_space, spaces.Box)
    return OnPolicy(
        Clip(),
        GAE(),
        Descent(Adam(learning_rate=3e-4), epochs=10, minibatches=32, target_kl=0.03),
        num_steps=256,
        entropy_coefficient=0.01,
        normalise_observations=continuous,
        normalise_rewards=True,
        behaviour=behaviour,
    )
