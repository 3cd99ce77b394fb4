"""CQL: on a small log of one behaviour plain Q-learning promises more than it earns, and the conservative values less.

Nothing is claimed of the returns of the two: where every state is in the log, as here, plain Q-learning earns more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.envs.exact import tabular
from polopt.envs.exact.empirical import behaviour, empirical
from polopt.envs.exact.problems import random_mdp
from polopt.methods.offline.cql import conservative_gap

STATES, ACTIONS, TRANSITIONS, ALPHA = 20, 5, 300, 1.0
SWEEPS, INNER, RATE = 200, 20, 0.3
PROMISED, EARNED = "promised value - exact value of the policy, from the start", "(J - J_mu) / (J* - J_mu)"


def log_of(mdp, mu, key, n: int):
    """(S, A, S): how often each transition is among `n` from uniformly random states and actions of mu."""
    k_state, k_action, k_next = jax.random.split(key, 3)
    state = jax.random.randint(k_state, (n,), 0, mdp.states)
    action = jax.random.categorical(k_action, jnp.log(mu[state]))
    following = jax.random.categorical(k_next, jnp.log(mdp.transition[state, action]))
    return jnp.zeros(mdp.transition.shape).at[state, action, following].add(1.0)


def conservative_values(estimated, mu, start, alpha):
    """Q after sweeps of gradient steps on alpha { logsumexp Q - E_mu Q } + E_mu (Q - y)^2 / 2 in each state.

    y = r + gamma P E_pi Q with pi = softmax(Q), which the penalty is about.
    """

    def loss(q, y):
        gap = jax.vmap(lambda row, share: conservative_gap(jax.nn.logsumexp(row)[None, None], (share @ row)[None, None])[0])(q, mu)
        return jnp.sum(alpha * gap + 0.5 * jnp.sum(mu * (q - y) ** 2, axis=1))

    def sweep(_, q):
        y = tabular.lookahead(estimated, tabular.expectation(jax.nn.softmax(q), q))
        return jax.lax.fori_loop(0, INNER, lambda _, x: x - RATE * jax.grad(loss)(x, y), q)

    return jax.lax.fori_loop(0, SWEEPS, sweep, start)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def measured(alpha, key):
    """(promised - exact value, normalised exact return) of the softmax policy."""
    k_mdp, k_mu, k_log, k_start = jax.random.split(key, 4)
    mdp = random_mdp(k_mdp, STATES, ACTIONS, discount=0.9, concentration=0.3, reward="uniform")
    mdp = mdp.with_reward(10 * mdp.reward)  # so that the softmax of values is nearly greedy
    mu = jax.random.dirichlet(k_mu, jnp.full(ACTIONS, 0.5), (STATES,))
    counts = log_of(mdp, mu, k_log, TRANSITIONS)
    estimated, shares = empirical(mdp, counts), behaviour(counts)
    centre = 50.0  # of the values of this process: rewards of 5 at a discount of .9
    q = conservative_values(estimated, shares, centre + 10 * jax.random.normal(k_start, (STATES, ACTIONS)), alpha)
    policy = jax.nn.softmax(q)
    promised, exact = mdp.start @ tabular.expectation(policy, q), tabular.objective(mdp, policy)
    made, best = tabular.objective(mdp, mu), mdp.start @ tabular.optimal(mdp).values
    return promised - exact, (exact - made) / (best - made)


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    settings = {"states": STATES, "actions": ACTIONS, "transitions": TRANSITIONS, "sweeps": SWEEPS, "inner steps": INNER, "inner rate": RATE}
    sides = {}
    for name, alpha in (("CQL", ALPHA), ("Q-learning", 0.0)):
        excess, earned = (np.asarray(x, np.float64) for x in measured(jnp.float32(alpha), keys))
        sides[name] = Side({**settings, "alpha": alpha}, {PROMISED: excess, EARNED: earned})
    return sides


CLAIM = Claim(
    method="cql",
    statement="The conservative critic's value of its policy is a lower bound of what the policy earns, where plain Q-learning from the same log "
    "promises too much; and its policy is better than who made the log.",
    baseline="the same with weight 0: Q-learning on the log",
    task="random MDPs with 20 states, 5 actions, Dirichlet(.3), rewards in [0, 10], discount .9; 300 transitions of a Dirichlet(.5) behaviour; "
    "pi = softmax(Q), tables that start at N(50, 10^2)",
    run=run,
    checks=(
        Check(PROMISED, "CQL", below=0.0),
        Check(PROMISED, "Q-learning", above=0.5),
        Check(EARNED, "CQL", above=0.0),
    ),
    seconds=10,
)
