"""GSPO: the ratio of a completion is quiet where those of its tokens are noisy."""

import jax
import jax.numpy as jnp
import numpy as np

from polopt.claims.claim import Check, Claim, Side
from polopt.loops.wording import log_ratios
from polopt.policies.language.sampling import generate
from polopt.policies.language.tabular import TabularPolicy

LENGTH, VOCABULARY, PROMPTS, REPEATS, DRIFT = 64, 8, 8, 128, 0.1
SPREAD = "standard deviation of the importance ratio"


def measured(key):
    """The spreads of token ratios and of length-normalised ones, of a policy that has drifted from the one that drew."""
    k_policy, k_drift, k_write = jax.random.split(key, 3)
    logits = jax.random.normal(k_policy, (PROMPTS, LENGTH, VOCABULARY))
    old = TabularPolicy(logits, "chain")
    new = TabularPolicy(logits + DRIFT * jax.random.normal(k_drift, logits.shape), "chain")
    prompts = jnp.arange(PROMPTS)[:, None]
    made = generate(old, prompts, prompts >= 0, k_write, length=LENGTH, stop=(), repeats=REPEATS)
    rows = jnp.repeat(prompts, REPEATS, axis=0)
    now = new.score(rows, rows >= 0, made.tokens, made.mask).log_prob
    of_tokens = jnp.exp(now - made.log_prob)
    of_completions = jnp.exp(log_ratios(now, made.log_prob, made.mask) / LENGTH)
    return jnp.std(of_tokens), jnp.std(of_completions)


def run(seeds: list[int]) -> dict[str, Side]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    tokens, completions = (np.asarray(x, np.float64) for x in jax.jit(jax.vmap(measured))(keys))
    settings = {"length": LENGTH, "vocabulary": VOCABULARY, "prompts": PROMPTS, "completions": REPEATS, "drift of the logits": DRIFT}
    return {"tokens' ratios": Side(settings, {SPREAD: tokens}), "GSPO's": Side(settings, {SPREAD: completions})}


CLAIM = Claim(
    method="gspo",
    statement="The length-normalised ratio of a completion has far less spread than the ratios of its tokens, whose noise GRPO brings into the "
    "gradient.",
    baseline="token ratios",
    task="chains of 64 tokens out of 8 with N(0, 1) logits, 8 prompts of 128 completions; the policy has drifted by N(0, .1^2) since it drew",
    run=run,
    checks=(Check(SPREAD, "GSPO's", over="tokens' ratios", ratio=True, below=0.2),),
    seconds=5,
)
