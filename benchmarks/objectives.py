"""Every objective, compiled by JAX at (256, 1024) tokens, against the memory traffic that it cannot do without.

    python benchmarks/objectives.py
    PYTHONPATH=<where verl and TRL are installed> python benchmarks/objectives.py

The floor of a function is the time that a copy of as many bytes takes: each input read once, each output written once, at the bandwidth
at which JAX copies an array of (256, 1024) float32, measured beside the function so that both see the same load. Where a function
takes more than 1.3 times its floor the table says why. If verl or TRL can be imported, their functions run on the same numbers in
PyTorch, beside ours in PyTorch and in JAX.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polopt.objectives import advantages, backend, divergences, layout, preferences, reduction, risk, surrogates, values

BATCH, TIME, GROUP = 256, 1024, 8

EXP = "exp: arithmetic that a copy has not, see the rows of one primitive"
EXPM1 = "expm1 costs more arithmetic than exp, see the rows of one primitive"
SCAN = "the recurrence is {time} steps that wait for each other, and reads and writes columns of rows"
TWICE = "two recurrences, each of {time} steps that wait for each other, on columns of rows"
SUM = "sums, and passes that wait for them: see the rows of one primitive"
SEGMENTS = "segments are numbered by a cumulative sum and summed by scatter and gather, an element at a time on CPU"
SORT = "rows are sorted, n log n"
CALL = "256 numbers: the fixed cost of a call, see the row of an empty call"
LOG = "softplus: exp and log1p, arithmetic that a copy has not"


class Row(NamedTuple):
    name: str
    function: Callable
    inputs: str
    why: str = ""


def arrays():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    x = {name: normal(BATCH, TIME) for name in ("advantage", "values", "next_values", "rewards", "target", "a")}
    logits = normal(BATCH, TIME), normal(BATCH, TIME)
    x["log_p"], x["log_q"] = (y - np.log(np.sum(np.exp(y), axis=-1, keepdims=True)) for y in logits)
    x["old"] = -rng.gamma(1.0, size=(BATCH, TIME)).astype(np.float32)
    x["log_prob"], x["ref"] = x["old"] + 0.1 * normal(BATCH, TIME), x["old"] + 0.1 * normal(BATCH, TIME)
    lengths = rng.integers(TIME // 4, TIME, size=BATCH)
    x["mask"] = np.arange(TIME)[None] < lengths[:, None]
    x["terminated"] = rng.random((BATCH, TIME)) < 0.005
    x["ended"] = x["terminated"] | (rng.random((BATCH, TIME)) < 0.005)
    x["ids"] = np.cumsum(rng.random((BATCH, TIME)) < 0.005, axis=-1).astype(np.int32)
    x["score"], x["lengths"] = normal(BATCH), lengths.astype(np.int32)
    x["groups"] = np.repeat(np.arange(BATCH // GROUP), GROUP).astype(np.int32)
    x["column"] = normal(BATCH, 1)
    return {name: jnp.asarray(y) for name, y in x.items()}


def rows():
    s, a, d, v, p = surrogates, advantages, divergences, values, preferences
    tokens = "log_prob old advantage"
    steps = "rewards values next_values terminated ended"
    yield Row("one primitive: copy", jnp.copy, "a")
    yield Row("one primitive: exp", jnp.exp, "a", EXP)
    yield Row("one primitive: expm1", jnp.expm1, "a", EXPM1)
    yield Row("one primitive: log1p", lambda x: jnp.log1p(x * x), "a", LOG)
    yield Row("one primitive: sum", jnp.sum, "a", SUM)
    yield Row("one primitive: cumulative sum", lambda x: jnp.cumsum(x.reshape(-1)), "a", SEGMENTS)
    yield Row("one primitive: sort", lambda x: jnp.sort(x, axis=-1), "a", SORT)
    yield Row("an empty call", lambda x: x + 1, "score", CALL)
    yield Row("policy_gradient", s.policy_gradient, "log_prob advantage")
    yield Row("importance_weighted", s.importance_weighted, tokens, EXP)
    yield Row("clipped", lambda x, o, y: s.clipped(x, o, y, 0.2, 0.28), tokens, EXP)
    yield Row("clipped, masked", lambda x, o, y, m: s.clipped(x, o, y, 0.2, 0.28, mask=m), f"{tokens} mask", EXP)
    yield Row("clipped, dual", lambda x, o, y: s.clipped(x, o, y, 0.2, 0.28, 3.0), tokens, EXP)
    yield Row("clipped + reduce", lambda x, o, y, m: reduction.reduce(s.clipped(x, o, y, 0.2, mask=m), m, "token"), f"{tokens} mask", EXP)
    yield Row("gspo", lambda x, o, y, m: s.gspo(x, o, y, 3e-4, 4e-4, mask=m), f"{tokens} mask", SUM)
    yield Row("gspo, packed", lambda x, o, y, m, i: s.gspo(x, o, y, 3e-4, 4e-4, mask=m, segment_ids=i), f"{tokens} mask ids", SEGMENTS)
    yield Row("gspo_token", lambda x, o, y, m: s.gspo_token(x, o, y, 3e-4, 4e-4, mask=m), f"{tokens} mask", EXP)
    yield Row("cispo", lambda x, o, y: s.cispo(x, o, y, high=0.28), tokens, EXP)
    yield Row("topr", lambda x, o, y, m: s.topr(x, o, y, mask=m), f"{tokens} mask", SUM)
    yield Row("spo", lambda x, o, y: s.spo(x, o, y, 0.2), tokens, f"{EXP}; {EXPM1}")
    yield Row("mdpo", lambda x, o, y: s.mdpo(x, o, y, 0.5), tokens, f"{EXP}; {EXPM1}")
    yield Row("generalized_advantage_estimate", lambda *x: a.generalized_advantage_estimate(*x, 0.99, 0.95), steps, SCAN)
    yield Row("the same, time-major", lambda *x: a.generalized_advantage_estimate(*x, 0.99, 0.95, axis=0), steps, SCAN.partition(", and")[0])
    yield Row("returns_to_go", lambda r, e: a.returns_to_go(r, e, 0.99), "rewards ended", SCAN)
    yield Row("lambda_returns", lambda *x: a.lambda_returns(*x, 0.99, 0.95), "rewards next_values terminated ended", SCAN)
    yield Row("vtrace", lambda *x: a.vtrace(*x, 0.99), f"log_prob old {steps}", SCAN)
    yield Row("token_rewards", a.token_rewards, "column values mask", SCAN)
    yield Row("token_advantage_estimate", lambda r, x, m: a.token_advantage_estimate(r, x, m, 1.0, 0.95), "rewards values mask", TWICE)
    yield Row(
        "token_advantage_estimate, packed",
        lambda r, x, m, i: a.token_advantage_estimate(r, x, m, 1.0, 0.95, segment_ids=i),
        "rewards values mask ids",
        TWICE,
    )
    yield Row("group_relative", a.group_relative, "score groups", CALL)
    yield Row("leave_one_out", a.leave_one_out, "score groups", CALL)
    yield Row("length_weighted", a.length_weighted, "score lengths groups", CALL)
    yield Row("groups_of_one", a.groups_of_one, "groups", CALL)
    yield Row("k1", d.k1, "log_prob ref")
    yield Row("k2", d.k2, "log_prob ref")
    yield Row("k3", d.k3, "log_prob ref", EXPM1)
    for name in d.ESTIMATORS:
        if name != "k1":
            why = {"k2": "", "k3": EXPM1}.get(name, EXP)
            inputs = "log_prob ref" if name in ("k2", "k3") else "log_prob ref old"
            yield Row(f"kl_loss, {name}", lambda x, r, o=None, n=name: d.kl_loss(x, r, old_log_prob=o, estimator=n), inputs, why)
    yield Row("categorical_kl", d.categorical_kl, "log_p log_q", EXP)
    yield Row("unnormalised_kl", d.unnormalised_kl, "log_p log_q", EXP)
    yield Row("gaussian_kl", d.gaussian_kl, "a values target advantage", f"{EXP}; {EXPM1}")
    for name, f in d.F_DIVERGENCES.items():
        yield Row(f"f_divergence, {name}", lambda x, y, f=f: d.f_divergence(x, y, f), "log_p log_q", LOG if name == "js" else EXP)
    for f in (v.squared, v.huber):
        yield Row(f.__name__, f, "values target")
    yield Row("clipped_squared", lambda x, o, t: v.clipped_squared(x, o, t, 0.2), "values next_values target")
    yield Row("expectile", lambda x, t: v.expectile(x, t, 0.9), "values target")
    yield Row("quantile", lambda x, t: v.quantile(x, t, 0.9), "values target")
    yield Row("quantile_huber", lambda x, t: v.quantile_huber(x, t, 0.9), "values target")
    yield Row("gumbel", lambda x, t: v.gumbel(x, t, 1.0, clip=5.0), "values target", EXPM1)
    yield Row("sequence_log_prob", p.sequence_log_prob, "log_prob mask", SUM)
    yield Row("logistic", p.logistic, "a", LOG)
    yield Row("bradley_terry", p.bradley_terry, "a values", LOG)
    yield Row("dpo, 256 pairs", lambda x: p.dpo(x, -x, x, x, 0.1), "score", CALL)
    yield Row("ipo, 256 pairs", lambda x: p.ipo(x, -x, x, x, 0.1), "score", CALL)
    yield Row("cvar", lambda x: risk.cvar(x, 0.1, tail="lower"), "a", SORT)
    yield Row("mixed_quantile", lambda x: risk.mixed_quantile(x, 0.2, 0.8, 1.5), "a", SORT)
    yield Row("cvar_bound", lambda x, t: risk.cvar_bound(x, t, 0.1, tail="upper"), "a column")
    yield Row("entropic", lambda x: risk.entropic(x, 0.5), "a", f"{SUM}; {EXPM1}")
    for mode, scale in (("token", None), ("sequence", None), ("constant", 1024.0)):
        yield Row(f"reduce, {mode}", lambda x, m, mode=mode, s=scale: reduction.reduce(x, m, mode, scale=s), "a mask", SUM)
    yield Row("reduce, sequence, packed", lambda x, m, i: reduction.reduce(x, m, "sequence", segment_ids=i), "a mask ids", SEGMENTS)
    yield Row("standardise", reduction.standardise, "a mask", SUM)
    yield Row("reverse_recurrence", backend.reverse_recurrence, "a values", SCAN)
    yield Row("sequence_sum, packed", layout.sequence_sum, "a ids", SEGMENTS)


def seconds(function, args, repeats, sync=jax.block_until_ready):
    """The best mean time of a few calls."""
    sync(function(*args))
    start = time.perf_counter()
    sync(function(*args))
    calls = max(1, min(50, int(2e-3 / (time.perf_counter() - start))))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*args)
        sync(result)
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def own_table(x, repeats):
    copy = jax.jit(jnp.copy)
    print(f"\n{'function':36}{'us':>9}{'MB':>7}{'floor us':>10}{'ratio':>8}  why over 1.3")
    over = []
    for row in rows():
        args = [x[name] for name in row.inputs.split()]
        function = jax.jit(row.function)
        traffic = sum(y.nbytes for y in (*args, *jax.tree.leaves(function(*args))))
        bandwidth = 2 * x["a"].nbytes / seconds(copy, [x["a"]], repeats)
        took, floor = seconds(function, args, repeats), traffic / bandwidth
        ratio = took / floor
        why = row.why.format(time=TIME) if ratio > 1.3 else ""
        if ratio > 1.3 and not why:
            why = "no reason known: measure again on an idle machine"
            over.append(row.name)
        print(f"{row.name:36}{took * 1e6:9.1f}{traffic / 1e6:7.2f}{floor * 1e6:10.1f}{ratio:8.2f}  {why}", flush=True)
    if over:
        print("\nover 1.3 without a reason:", ", ".join(over))


# -- others' functions on the same numbers -----------------------------------------------------------------------------


def verl_rows():
    """(name, ours on tensors, theirs), both from the dictionary of tensors."""
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig

    config = ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.28)

    def ppo(t):
        return core_algos.compute_policy_loss_vanilla(t["old"], t["log_prob"], t["advantage"], t["weight"], "token-mean", config)[0]

    def token_gae(t):
        a = advantages.token_advantage_estimate(t["rewards"], t["values"], t["mask"], 1.0, 0.95)
        return reduction.standardise(a, t["mask"], ddof=1)  # verl's own whitens

    yield "token GAE, whitened", token_gae, lambda t: core_algos.compute_gae_advantage_return(t["rewards"], t["values"], t["weight"], 1.0, 0.95)
    # verl's policy loss has dual clip on and returns its metrics too
    yield (
        "PPO loss, token mean",
        lambda t: reduction.reduce(surrogates.clipped(t["log_prob"], t["old"], t["advantage"], 0.2, 0.28, 3.0, mask=t["mask"]), t["mask"], "token"),
        ppo,
    )
    yield (
        "group relative",
        lambda t: advantages.group_relative(t["score"], t["groups"], ddof=1)[:, None] * t["weight"],
        lambda t: core_algos.compute_grpo_outcome_advantage(t["outcome"], t["weight"], t["index"]),
    )
    yield (
        "leave one out",
        lambda t: advantages.leave_one_out(t["score"], t["groups"])[:, None] * t["weight"],
        lambda t: core_algos.compute_rloo_outcome_advantage(t["outcome"], t["weight"], t["index"]),
    )
    yield "k3", lambda t: divergences.k3(t["log_prob"], t["ref"]), lambda t: core_algos.kl_penalty(t["log_prob"], t["ref"], "low_var_kl")
    yield (
        "clipped value loss, token mean",
        lambda t: reduction.reduce(values.clipped_squared(t["values"], t["next_values"], t["target"], 0.2), t["mask"], "token"),
        lambda t: core_algos.compute_value_loss(t["values"], t["target"], t["next_values"], t["weight"], 0.2)[0],
    )


def trl_rows():
    """TRL's losses are inside its trainers: the method runs on a stand-in whose model gives the log-probabilities; its metrics are timed too."""
    import torch
    from trl import GRPOTrainer

    class StandIn:
        aux_loss_enabled = use_vllm = use_adaptive_entropy = _entropy_bonus_enabled = False
        top_entropy_quantile, off_policy_mask_threshold, beta = 1.0, None, 0.0
        importance_sampling_level, loss_type, epsilon_low, epsilon_high = "token", "bnpo", 0.2, 0.28
        current_gradient_accumulation_steps, model = 1, SimpleNamespace(training=True)
        args = SimpleNamespace(delta=None, use_bias_correction_kl=False)
        accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x)

        def __init__(self, t):
            self.t, self._metrics = t, {"train": {name: [] for name in ("kl", "entropy", *self.clips)}}

        clips = tuple(f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max"))

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            return self.t["log_prob"], -self.t["log_prob"], None

    def loss(t):
        tokens = torch.zeros(t["mask"].shape, dtype=torch.long)
        inputs = {"prompt_ids": tokens[:, :1], "prompt_mask": t["mask"][:, :1], "completion_ids": tokens, "completion_mask": t["weight"]}
        inputs |= {"advantages": t["score"], "old_per_token_logps": t["old"]}
        return GRPOTrainer._compute_loss(StandIn(t), None, inputs)

    yield (
        "GRPO loss, token mean",
        lambda t: reduction.reduce(surrogates.clipped(t["log_prob"], t["old"], t["score"][:, None], 0.2, 0.28, mask=t["mask"]), t["mask"], "token"),
        loss,
    )


def other_table(package, make, x, repeats):
    try:
        import torch

        pairs = list(make())
    except ImportError as problem:
        print(f"\n{package} is not here ({problem}): left out.")
        return
    t = {name: torch.from_numpy(np.array(y)) for name, y in x.items()}
    t["weight"] = t["mask"].float()
    t["index"] = np.asarray(x["groups"])
    t["outcome"] = torch.zeros_like(t["rewards"])
    t["outcome"][:, 0] = t["score"]
    x = {**x, "weight": x["mask"].astype(jnp.float32)}
    columns = f"{'ours, JAX us':>14}{'ours, torch us':>16}{'theirs us':>12}{'theirs/JAX':>12}{'difference':>12}"
    print(f"\n{f'{package} {version(package)}, values only':36}{columns}")

    def first(y):
        return y[0] if isinstance(y, tuple) else y

    for name, ours, theirs in pairs:
        with torch.no_grad():
            in_jax = seconds(jax.jit(ours), [x], repeats)
            in_torch = seconds(ours, [t], repeats, sync=lambda y: y)
            other = seconds(theirs, [t], repeats, sync=lambda y: y)
            mask = t["mask"] if first(theirs(t)).ndim == 2 else torch.tensor(True)
            difference = float(torch.max(torch.abs(torch.where(mask, ours(t) - first(theirs(t)), 0.0))))
        print(f"{name:36}{in_jax * 1e6:14.0f}{in_torch * 1e6:16.0f}{other * 1e6:12.0f}{other / in_jax:12.1f}{difference:12.1e}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timings of which the best counts")
    options = parser.parse_args()
    found = []
    for package in ("polopt", "jax", "numpy", "torch", "array-api-compat"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} (not installed)")
    x = arrays()
    bandwidth = 2 * x["a"].nbytes / seconds(jax.jit(jnp.copy), [x["a"]], options.repeats)
    print(", ".join(found))
    print(f"Python {platform.python_version()}, {platform.machine()}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores")
    print(f"load average {', '.join(f'{load:.1f}' for load in os.getloadavg())}; copying (256, 1024) float32: {bandwidth / 1e9:.0f} GB/s")
    own_table(x, options.repeats)
    other_table("verl", verl_rows, x, options.repeats)
    other_table("trl", trl_rows, x, options.repeats)


if __name__ == "__main__":
    main()
