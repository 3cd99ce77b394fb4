"""Offline RL with Observation Histories: Analyzing and Improving Sample Complexity.

Joey Hong, Anca Dragan, Sergey Levine. 2023. arXiv:2310.20663

No two histories of observations are the same, so that nothing good of one trajectory is ever joined to another. A loss brings histories together in
the space of what the learner makes of them, as far as the same rewards and the same next latents follow from them, and with it joining comes back.

z = phi(h) for h = (o_1, a_1, ..., o_t), a model of z fitted to the log beside it, and pairs of histories h, i, with the action a logged after h:

    r^(z, a), P^(z'|z, a) = N(m, diag s^2):    L_model = E[ (r - r^)^2 / 2 - log P^(phi(h')|phi(h), a) ],    phi(h') = 0 after the end
    d(h, i; a) = |r^(z_h, a) - r^(z_i, a)| + gamma sum_j W_2( P^_j(.|z_h, a), P^_j(.|z_i, a) )
    J(phi) = E[ ( |phi(h) - phi(i)|_1 - d(h, i; a) )^2 ],    d held fixed
    L = L_host(Q on phi(h)) + alpha_b J(phi) + L_model

The pairs are the minibatch and a random order of it. The host is CQL for whole-number actions: double Q-learning and alpha_c (log sum exp Q - Q(a)).
`bisimulation` among the diagnostics is J, which says of a host with alpha_b = 0 whether it has found a compact state by itself.

Neither text nor code settles the rest. W_2 is summed over entries j, as |.|_1 is: W_2 of whole vectors is shorter, so that on every step back from a
reward histories would come closer. Of L_model the error of r^ moves phi, eta times as far as the model; without it one point for all histories, where
nothing pays, fulfils J. Also our choices: alpha_b = .03, a recurrent unit of 128, 64 latents, one step for all. A history is the last K steps, by
default as many as the log's longest episode has, at most 100.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from array_api_compat import array_namespace

from polopt.core.networks import Feedforward
from polopt.core.parts import hyper, part
from polopt.critics.action_value import polyak
from polopt.critics.latent_model import LatentModel, Outlook
from polopt.data.dataset import DataTask
from polopt.data.replay import Transitions
from polopt.loops.actor_critic import ActorCritic, descend
from polopt.loops.windows import OfflineWindows, vectors_only
from polopt.methods.actor_critic.dqn import backup
from polopt.methods.offline.cql import ConservativeDiscrete
from polopt.methods.registry import composition
from polopt.objectives import values
from polopt.objectives.backend import stop_gradient
from polopt.objectives.divergences import gaussian_wasserstein
from polopt.policies.distributions import Gaussian
from polopt.policies.histories import HistoryValuePolicy, HistoryValues, tokens

LONGEST = 100  # steps of a history, unless more are asked for


def behavioural_distance(first: Outlook, second: Outlook, discount):
    """d of what follows an action in two histories; rewards (...), means and log deviations (..., latent)."""
    xp = array_namespace(*first, *second)
    entries = (x[..., None] for x in (*first[1:], *second[1:]))
    return xp.abs(first.reward - second.reward) + discount * xp.sum(gaussian_wasserstein(*entries), axis=-1)


def bisimulation_loss(first, second, distance):
    """(|z_h - z_i|_1 - d)^2 for latents (..., latent) and distances (...), which are held fixed."""
    xp = array_namespace(first, second, distance)
    return (xp.sum(xp.abs(first - second), axis=-1) - stop_gradient(distance)) ** 2


def surprise(said: Outlook, following):
    """-log P^ of the next latent, which is held fixed."""
    return -Gaussian(said.mean, said.log_std, -jnp.inf, jnp.inf).log_prob(jax.lax.stop_gradient(following))


@part
class Bisimulating:
    """A host on latents of histories that are brought together by what follows them."""

    host: ConservativeDiscrete = ConservativeDiscrete()
    context: int = hyper(20, at_least=1)  # K: steps of a history
    remembered: int = hyper(128, at_least=1)  # numbers that the recurrent unit remembers
    latent: int = hyper(64, at_least=1)  # numbers of phi(h)
    model_network: Feedforward = Feedforward(hidden=(128,), activation="relu")
    bisimulation: float = hyper(0.03, at_least=0)  # alpha_b
    grounding: float = hyper(1.0, at_least=0)  # eta: how far the error of r^ moves phi

    critic = True

    def refuse(self, data) -> str | None:
        return vectors_only(data) or self.host.refuse(data)

    def init(self, data, key) -> ActorCritic:
        k_values, k_model = jax.random.split(key)
        spaces_of = data.observation_space, data.action_space
        critic = HistoryValues(self.host.network, *spaces_of, self.remembered, self.latent, k_values)
        model = LatentModel(self.model_network, self.latent, data.action_space.n, k_model)
        optimisers = {"all": self.host.step.init((critic, model))}
        return ActorCritic((), critic, (), critic, (model, self.host.weight.init()), optimisers, jnp.zeros((), jnp.int32))

    def policy(self, learner, normaliser):
        return HistoryValuePolicy(learner.critic, normaliser, self.context)

    def latents(self, critic, batch):
        """(phi(h), phi(h')), (n, latent) each."""

        def one(vectors, after, actions, mask):
            seen, taken = jnp.concatenate([vectors, after[-1:]]), jnp.concatenate([actions, jnp.zeros_like(actions[:1])])
            inside = jnp.append(mask, 1.0)
            return critic.encoder(tokens(seen, taken, inside), inside)[-2:]

        actions = jax.nn.one_hot(batch.action, critic.action_space.n)
        both = jax.vmap(one)(batch.inputs[0], batch.next_inputs[0], actions, batch.mask)
        return both[:, 0], both[:, 1]

    def loss(self, both, target_critic, host_weight, batch, key):
        """(L, diagnostics) of the values with their encoder and of the model."""
        critic, model = both
        reward, action = batch.reward[:, -1], batch.action[:, -1]
        discount = self.host.discount * (1.0 - batch.terminated[:, -1])
        z, after = self.latents(critic, batch)
        slow = jax.vmap(target_critic)(self.latents(target_critic, batch)[1])
        y = jax.lax.stop_gradient(backup(reward, discount, slow, jax.vmap(critic)(after), True))
        given = Transitions((z,), action, reward, discount, (after,), jnp.ones_like(reward), None)
        host, (bellman, value, gap) = self.host.critic_loss(critic, given, y, host_weight)

        order, taken = jax.random.permutation(key, len(reward)), jax.nn.one_hot(action, critic.action_space.n)
        held = jax.lax.stop_gradient(z)
        said, others, grounded = (jax.vmap(model)(x, taken) for x in (held, held[order], held + self.grounding * (z - held)))
        distance = behavioural_distance(said, others, self.host.discount)
        bisimulation = jnp.mean(bisimulation_loss(z, z[order], distance))
        following = jnp.where(batch.terminated[:, -1:], 0.0, after)
        fit = jnp.mean(values.squared(grounded.reward, reward) + jax.vmap(surprise)(said, following))
        metrics = {"loss/critic": bellman, "loss/model": fit, "bisimulation": bisimulation, "gap": jnp.mean(gap), "value": jnp.mean(value)}
        return host + self.bisimulation * bisimulation + fit, (metrics | {"distance": jnp.mean(distance)}, gap)

    def update(self, learner, batch, progress, key):
        model, state = learner.extra
        given = (learner.critic, model), learner.target_critic, self.host.weight.value(state), batch, key
        (_, (metrics, gap)), gradient = jax.value_and_grad(self.loss, has_aux=True)(*given)
        (critic, model), optimisers = descend(self.host.step, gradient, learner.optimisers, "all", given[0], progress)
        slow, state = polyak(learner.target_critic, critic, self.host.tau), self.host.weight.update(state, gap, progress)
        return ActorCritic((), critic, (), slow, (model, state), optimisers, learner.count + 1), metrics


@composition
def history_bisimulation(task: DataTask | None = None) -> OfflineWindows:
    """Discrete CQL on histories that a bisimulation loss brings together."""
    context = {} if task is None else {"context": min(LONGEST, int(task.dataset.episodes().lengths.max()))}
    return OfflineWindows(Bisimulating(**context))
