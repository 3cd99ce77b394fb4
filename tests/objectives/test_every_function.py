"""What holds for every public function of the room, whatever it computes.

Each has a case below: inputs drawn from a seed, and a call. NumPy, JAX and PyTorch agree in values and gradients; gradients agree with
finite differences; compiling and mapping change nothing; what is masked never matters.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polopt.objectives import advantages, backend, diffusion, divergences, importance, layout, preferences, reduction, risk, surrogates, values

MODULES = (advantages, backend, diffusion, divergences, importance, layout, preferences, reduction, risk, surrogates, values)
PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"

seeds = st.integers(0, 10**6)
quick = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


# -- inputs ------------------------------------------------------------------------------------------------------------

BATCH, TIME = 3, 5
DRAWS = 3


def normal(rng, b, t):
    return rng.normal(size=(b, t))


def column(rng, b, t):
    return rng.normal(size=(b, 1))


def vector(rng, b, t):
    return rng.normal(size=b)


def log_prob(rng, b, t):
    return -rng.gamma(2.0, 0.3, size=(b, t))


def log_probs(rng, b, t):
    logits = rng.normal(size=(b, t))
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def positive(rng, b, t):
    return rng.gamma(2.0, size=(b, t)) + 0.1


def mask(rng, b, t):
    m = rng.random((b, t)) < 0.6
    m[:, rng.integers(t)] = True
    return m


def ends(rng, b, t):
    return rng.random((b, t)) < 0.3


def segments(rng, b, t):
    return np.cumsum(rng.random((b, t)) < 0.3, axis=-1)


def vector_mask(rng, b, t):
    m = np.ones(b, bool)
    m[rng.integers(b)] = b == 1
    return m


def groups(rng, b, t):
    return rng.integers(-2, 2, size=b)


def lengths(rng, b, t):
    return rng.integers(1, 5, size=b)


def labels(rng, b, t):
    return rng.integers(0, 2, size=b).astype(float)


def several(rng, b, t):
    return rng.normal(size=(b, t + 1))


# -- cases -------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    function: Callable
    call: Callable
    """Takes the inputs by position; knobs are set inside."""
    inputs: tuple[Callable, ...]
    moves: tuple[int, ...]
    """The inputs that the gradient is taken in."""
    stopped: bool = False
    """Whether a weight inside is a constant, so that the gradient is not the derivative of the value."""
    mask: int | None = None
    """Which input is the mask."""
    constants: tuple[int, ...] = ()
    """Floating inputs through which no gradient may flow."""


def case(function, *inputs, call=None, moves=(0,), stopped=False, constants=(), **knobs):
    if call is None:

        def call(*arrays):
            return function(*arrays, **knobs)

    return Case(function, call, inputs, moves, stopped, None, constants)


def masked(function, *inputs, moves=(0,), stopped=False, constants=(), kind=mask, segment=False, **knobs):
    """The same with a mask behind the inputs, and segment ids behind it."""

    def call(*arrays):
        rest = dict(zip(("mask", "segment_ids"), arrays[len(inputs) :]))
        return function(*arrays[: len(inputs)], **rest, **knobs)

    return Case(function, call, (*inputs, kind, *([segments] if segment else [])), moves, stopped, len(inputs), constants)


S, A, D, V, P, R = surrogates, advantages, divergences, values, preferences, risk
RATIO = (log_prob, log_prob, normal)
STEPS = (normal, normal, ends, ends)
PAIR = (vector, vector, vector, vector)


def drift_case(drift):
    return case(drift, log_prob, normal, call=lambda x, a: drift(0.3)(x, a))


CASES = {
    "policy_gradient": masked(S.policy_gradient, log_prob, normal, constants=(1,)),
    "policy_gradient-per-sequence": masked(S.policy_gradient, log_prob, column, constants=(1,)),
    "importance_weighted": masked(S.importance_weighted, *RATIO, constants=(1, 2)),
    "clipped": masked(S.clipped, *RATIO, low=0.2, constants=(1, 2)),
    "clipped-no-mask": case(S.clipped, *RATIO, low=0.2, constants=(1, 2)),
    "clipped-higher-dual": masked(S.clipped, *RATIO, low=0.2, high=0.28, dual=1.5, constants=(1, 2)),
    "clipped-limit": masked(S.clipped, *RATIO, low=0.2, log_ratio_limit=0.3, constants=(1, 2)),
    "gspo": masked(S.gspo, log_prob, log_prob, column, low=0.05, high=0.1, constants=(1, 2)),
    "gspo-packed": masked(S.gspo, *RATIO, low=0.05, segment=True, constants=(1, 2)),
    "gspo_token": masked(S.gspo_token, *RATIO, low=0.05, stopped=True, constants=(1, 2)),
    "gspo_token-packed": masked(S.gspo_token, *RATIO, low=0.05, stopped=True, segment=True, constants=(1, 2)),
    "cispo": masked(S.cispo, *RATIO, high=0.2, stopped=True, constants=(1, 2)),
    "cispo-cap": masked(S.cispo, *RATIO, cap=1.1, low=0.3, stopped=True, constants=(1, 2)),
    "cispo-limit": masked(S.cispo, *RATIO, cap=9.0, log_ratio_limit=0.3, stopped=True, constants=(1, 2)),
    "topr": masked(S.topr, *RATIO, stopped=True, constants=(1, 2)),
    "topr-packed": masked(S.topr, *RATIO, stopped=True, segment=True, constants=(1, 2)),
    "topr-token": masked(S.topr, *RATIO, ratio="token", stopped=True, constants=(1, 2)),
    "drifted": masked(S.drifted, *RATIO, drift=surrogates.clip_drift(0.2, 0.3), constants=(1, 2)),
    "spo": masked(S.spo, *RATIO, width=0.2, constants=(1, 2)),
    "mdpo": masked(S.mdpo, *RATIO, step_size=0.5, constants=(1, 2)),
    "mdpo-exact": case(S.mdpo, *RATIO, positive, call=lambda x, o, a, k: S.mdpo(x, o, a, 0.5, kl=k), moves=(0, 3)),
    "clip_drift": drift_case(S.clip_drift),
    "quadratic_drift": drift_case(S.quadratic_drift),
    "kl_drift": drift_case(S.kl_drift),
    "gae": case(A.generalized_advantage_estimate, normal, *STEPS, discount=0.9, lam=0.8, moves=(0, 1, 2)),
    "gae-time-major": case(A.generalized_advantage_estimate, normal, *STEPS, discount=0.9, lam=0.8, axis=0, moves=(0, 1, 2)),
    "returns_to_go": case(A.returns_to_go, normal, ends, discount=0.9),
    "returns_to_go-bootstrap": case(
        A.returns_to_go, normal, ends, normal, call=lambda r, e, b: A.returns_to_go(r, e, 0.9, bootstrap=b, axis=0), moves=(0, 2)
    ),
    "lambda_returns": case(A.lambda_returns, *STEPS, discount=0.9, lam=0.8, moves=(0, 1)),
    "vtrace": case(A.vtrace, log_prob, log_prob, normal, *STEPS, discount=0.9, lam=0.8, rho_clip=1.1, moves=(0, 1, 2, 3, 4)),
    "token_rewards": masked(A.token_rewards, column, normal, moves=(0, 1)),
    "token_rewards-packed": masked(A.token_rewards, normal, normal, moves=(0, 1), segment=True),
    "token_advantage_estimate": masked(A.token_advantage_estimate, normal, normal, discount=0.95, lam=0.8, moves=(0, 1)),
    "token_advantage_estimate-zero": masked(
        A.token_advantage_estimate, normal, normal, discount=0.95, lam=0.8, moves=(0, 1), tool_tokens="zero", segment=True
    ),
    "token_advantage_estimate-bootstrap": case(
        A.token_advantage_estimate,
        normal,
        normal,
        mask,
        column,
        segments,
        call=lambda r, v, m, b, s: A.token_advantage_estimate(r, v, m, 0.95, 0.8, bootstrap=b, segment_ids=s, tool_tokens="bootstrap"),
        moves=(0, 1, 3),
    ),
    "token_advantage_estimate-cut": case(
        A.token_advantage_estimate,
        normal,
        normal,
        mask,
        column,
        call=lambda r, v, m, b: A.token_advantage_estimate(r, v, m, 0.95, 0.8, bootstrap=b),
        moves=(0, 1, 3),
    ),
    "group_relative": masked(A.group_relative, vector, groups, kind=vector_mask, epsilon=1e-3),
    "group_relative-batch": masked(A.group_relative, vector, groups, kind=vector_mask, scale="batch", ddof=1),
    "group_relative-uncentred": masked(A.group_relative, vector, groups, kind=vector_mask, scale="uncentred_batch", ddof=1),
    "group_relative-none": masked(A.group_relative, vector, groups, kind=vector_mask, scale="none", group_of_one="raw"),
    "leave_one_out": masked(A.leave_one_out, vector, groups, kind=vector_mask),
    "length_weighted": masked(A.length_weighted, vector, lengths, groups, kind=vector_mask),
    "groups_of_one": case(A.groups_of_one, groups, moves=()),
    "k1": masked(D.k1, log_prob, log_prob, moves=(0, 1)),
    "k2": masked(D.k2, log_prob, log_prob, moves=(0, 1)),
    "k3": masked(D.k3, log_prob, log_prob, moves=(0, 1)),
    "k3-cap": masked(D.k3, log_prob, log_prob, moves=(0, 1), cap=0.05),
    **{
        f"kl_loss-{name}": case(
            D.kl_loss,
            log_prob,
            log_prob,
            log_prob,
            mask,
            call=lambda x, r, o, m, name=name: D.kl_loss(x, r, old_log_prob=o, estimator=name, mask=m),
            constants=(1, 2),
        )._replace(mask=3)
        for name in D.ESTIMATORS
        if name != "k1"
    },
    "kl_loss-on-policy": masked(D.kl_loss, log_prob, log_prob, stopped=True, constants=(1,)),
    "categorical_kl": case(D.categorical_kl, log_probs, log_probs, moves=(0, 1)),
    "unnormalised_kl": case(D.unnormalised_kl, normal, normal, moves=(0, 1)),
    "gaussian_kl": case(D.gaussian_kl, normal, normal, normal, normal, moves=(0, 1, 2, 3)),
    "gaussian_wasserstein": case(D.gaussian_wasserstein, normal, normal, normal, normal, moves=(0, 1, 2, 3)),
    **{
        f"f_divergence-{name}": case(D.f_divergence, log_probs, log_probs, divergence=f, moves=(0, 1), axis=0) for name, f in D.F_DIVERGENCES.items()
    },
    "alpha_divergence": case(D.alpha_divergence, log_probs, log_probs, call=lambda p, q: D.f_divergence(p, q, D.alpha_divergence(0.5))),
    **{
        f"derivative-{name}": case(D.f_divergence, normal, call=f.derivative)
        for name, f in {**D.F_DIVERGENCES, "alpha": D.alpha_divergence(3.0)}.items()
    },
    **{
        f"conjugate-{name}": case(D.f_divergence, positive, call=lambda y, f=f: f.conjugate(-y))
        for name, f in {**D.F_DIVERGENCES, "alpha": D.alpha_divergence(0.5), "alpha-3": D.alpha_divergence(3.0)}.items()
    },
    "input_scale": case(diffusion.input_scale, positive, spread=0.5),
    "denoised": case(diffusion.denoised, normal, normal, positive, spread=0.5, moves=(0, 1, 2)),
    "denoising": case(diffusion.denoising, normal, normal, positive, spread=0.5, moves=(0, 1, 2)),
    "cumulative_ratios": masked(importance.cumulative_ratios, normal),
    "discount_powers": masked(importance.discount_powers, normal, moves=(), discount=0.9),
    "effective_sample_size": case(importance.effective_sample_size, vector),
    "squared": masked(V.squared, normal, normal, moves=(0, 1)),
    "clipped_squared": masked(V.clipped_squared, normal, normal, normal, clip=0.5, moves=(0, 1, 2)),
    "huber": masked(V.huber, normal, normal, delta=0.7, moves=(0, 1)),
    "expectile": masked(V.expectile, normal, normal, tau=0.9, moves=(0, 1)),
    "quantile": masked(V.quantile, normal, normal, tau=0.9, moves=(0, 1)),
    "quantile-pairs": case(
        V.quantile_huber, normal, normal, positive, call=lambda v, t, p: V.quantile_huber(v[..., :, None], t[..., None, :], p[..., :, None] / 9)
    ),
    "quantile_huber": masked(V.quantile_huber, normal, normal, tau=0.9, kappa=0.5, moves=(0, 1)),
    "gumbel": masked(V.gumbel, normal, normal, beta=2.0, moves=(0, 1)),
    "gumbel-clipped": masked(V.gumbel, normal, normal, beta=1.0, clip=0.5, moves=(0, 1)),
    "sequence_log_prob": masked(P.sequence_log_prob, log_prob),
    "sequence_log_prob-normalised": masked(P.sequence_log_prob, log_prob, length_normalised=True),
    "margin": case(
        P.margin,
        *PAIR,
        vector,
        vector,
        call=lambda c, r, rc, rr, oc, orr: P.margin(c, r, [(0.3, rc, rr), (0.7, oc, orr)]),
        moves=(0, 1),
        constants=(2, 3, 4, 5),
    ),
    "logistic": case(P.logistic, vector, vector, call=lambda h, s: P.logistic(h, 1 / (1 + s**2)), moves=(0, 1)),
    "squared_link": case(P.squared_link, vector, vector, moves=(0, 1)),
    "hinge": case(P.hinge, vector),
    "bradley_terry": case(P.bradley_terry, vector, vector, offset=0.1, penalty=1e-3, moves=(0, 1)),
    "dpo": case(P.dpo, *PAIR, beta=0.3, label_smoothing=0.1, moves=(0, 1), constants=(2, 3)),
    "ipo": case(P.ipo, *PAIR, tau=0.3, moves=(0, 1), constants=(2, 3)),
    "ipo-normalised": case(
        P.ipo,
        *PAIR,
        lengths,
        lengths,
        call=lambda c, r, rc, rr, lc, lr: P.ipo(c, r, rc, rr, 0.3, length_normalised=True, lengths=(lc, lr)),
        moves=(0, 1),
        constants=(2, 3),
    ),
    "reverse_kl": case(P.reverse_kl, normal, log_probs, moves=(0, 1)),
    "mean_pair_difference": case(P.mean_pair_difference, several),
    "prospect": case(P.prospect, vector, labels, point=0.2, beta=0.7, desirable=1.0, undesirable=1.3),
    "ensemble_reward": case(P.ensemble_reward, normal, mode="uncertainty", coefficient=0.5),
    "ensemble_reward-worst": case(P.ensemble_reward, normal, mode="worst", axis=-1),
    "range_value_at_risk": case(R.range_value_at_risk, normal, call=lambda x: R.range_value_at_risk(x, 0.13, 0.71)),
    "cvar": case(R.cvar, normal, positive, call=lambda x, p: R.cvar(x, 0.37, tail="upper", weights=p)),
    "cvar-masked": case(R.cvar, normal, mask, call=lambda x, m: R.cvar(x, 0.37, tail="lower", weights=m))._replace(mask=1),
    "cvar-axis": case(R.cvar, normal, level=0.4, tail="lower", axis=0),
    "cvar_bound": case(R.cvar_bound, normal, column, level=0.1, tail="upper", moves=(0, 1)),
    "cvar_bound-lower": case(R.cvar_bound, normal, column, level=0.1, tail="lower", moves=(0, 1)),
    "mixed_quantile": case(R.mixed_quantile, normal, low=0.17, high=0.83, emphasis=1.5),
    "entropic": case(R.entropic, normal, positive, call=lambda x, p: R.entropic(x, -0.7, weights=p), moves=(0, 1)),
    "entropic-masked": case(R.entropic, normal, mask, call=lambda x, m: R.entropic(x, 0.7, weights=m))._replace(mask=1),
    "reduce-token": masked(reduction.reduce, normal, mode="token"),
    "reduce-sequence": masked(reduction.reduce, normal, mode="sequence", count=7.0),
    "reduce-packed": masked(reduction.reduce, normal, mode="sequence", segment=True),
    "reduce-constant": masked(reduction.reduce, normal, mode="constant", scale=4.0),
    "reduce-no-mask": case(reduction.reduce, normal, mask=None, mode="token"),
    "standardise": masked(reduction.standardise, normal, ddof=1),
    "standardise-variance": masked(reduction.standardise, normal, ddof=1, epsilon=1e-2, epsilon_in="variance"),
    "standardise-no-mask": case(reduction.standardise, normal),
    "ids_from_lengths": case(layout.ids_from_lengths, lengths, size=7, moves=()),
    "segment_ends": case(layout.segment_ends, segments, moves=()),
    "last_positions": case(layout.last_positions, normal, segments, moves=()),
    "sequence_sum": case(layout.sequence_sum, normal, segments),
    "stop_gradient": case(backend.stop_gradient, normal, stopped=True),
    "reverse_recurrence": case(backend.reverse_recurrence, normal, normal, moves=(0, 1)),
    "reverse_recurrence-time-major": case(backend.reverse_recurrence, normal, normal, axis=0, moves=(0, 1)),
    "group_index": case(backend.group_index, groups, moves=()),
    "group_sum": case(backend.group_sum, vector, groups, call=lambda x, g: backend.group_sum(x, backend.group_index(g))),
    "zero_masked": case(backend.zero_masked, normal, mask, call=lambda x, m: backend.zero_masked(m, x)[0])._replace(mask=1),
    "as_weights": case(backend.as_weights, normal, mask, call=lambda x, m: backend.as_weights(m, x), moves=()),
    "safe_divide": case(backend.safe_divide, normal, normal, moves=(0, 1)),
    "safe_sqrt": case(backend.safe_sqrt, normal),
    "softplus": case(backend.softplus, normal),
    "log_gamma": case(backend.log_gamma, positive),
}

REFUSALS = {"check_shapes", "check_choice"}


# -- the three libraries -----------------------------------------------------------------------------------------------


def draw(case, seed, dtype=np.float64, batch=BATCH, time=TIME):
    rng = np.random.default_rng(seed)
    arrays = [make(rng, batch, time) for make in case.inputs]
    return [x.astype(dtype) if x.dtype == np.float64 else x for x in arrays]


def outputs(result):
    """One flat array of what a function gives, so that all are compared alike."""
    parts = result if isinstance(result, tuple) else (result,)
    return [np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in parts]


def direction(shape, k):
    """Fixed numbers without structure."""
    return np.sin(1.7 * np.arange(int(np.prod(shape))) + k + 1).reshape(shape)


def total(result, convert):
    """A scalar that depends on every output."""
    parts = result if isinstance(result, tuple) else (result,)
    return sum((x * convert(direction(tuple(x.shape), k))).sum() for k, x in enumerate(parts))


COMPILED = {}


def jax_values_and_gradients(name, draws):
    """For each draw of inputs the value of `name` and the gradient of its total: compiled, and mapped over the draws."""
    case = CASES[name]
    inputs = tuple(sorted({*case.moves, *case.constants}))
    dtype = next((x.dtype for x in draws[0] if x.dtype.kind == "f"), np.dtype(np.float64))
    if (name, dtype) not in COMPILED:

        def both(*arrays):
            def scalar(*moving):
                full = list(arrays)
                for i, x in zip(inputs, moving):
                    full[i] = x
                result = case.call(*full)
                return total(result, lambda d: jnp.asarray(d, dtype)), result

            if not inputs:
                return case.call(*arrays), ()
            gradient, result = jax.grad(scalar, argnums=tuple(range(len(inputs))), has_aux=True)(*(arrays[i] for i in inputs))
            return result, gradient

        # These programs run a handful of times on a handful of numbers: what they cost is compiling.
        COMPILED[name, dtype] = jax.jit(jax.vmap(both), compiler_options={"xla_backend_optimization_level": 0})
    with jax.enable_x64(dtype == np.float64):
        result, gradient = COMPILED[name, dtype](*(jnp.asarray(np.stack(x)) for x in zip(*draws)))
        result, gradient = outputs(result), [np.asarray(g) for g in gradient]
    return [([x[k] for x in result], {i: g[k] for i, g in zip(inputs, gradient)}) for k in range(len(draws))]


def torch_value_and_gradient(name, arrays):
    case = CASES[name]
    inputs = sorted({*case.moves, *case.constants})
    tensors = [torch.from_numpy(x.copy()).requires_grad_(i in inputs) for i, x in enumerate(arrays)]
    result = case.call(*tensors)
    gradient = [None] * len(inputs)
    if inputs and (scalar := total(result, torch.from_numpy)).requires_grad:
        gradient = torch.autograd.grad(scalar, [tensors[i] for i in inputs], allow_unused=True)
    return outputs(result), {i: np.zeros_like(arrays[i]) if g is None else np.asarray(g) for i, g in zip(inputs, gradient)}


def close(given, expected, tolerance):
    size = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    np.testing.assert_allclose(given, expected, rtol=0, atol=tolerance * size)


cases = pytest.mark.parametrize("name", CASES)


@cases
def test_three_libraries_agree_in_values_and_gradients(name):
    """NumPy on one draw after the other, PyTorch with autograd, JAX compiled and mapped."""

    @quick
    @given(seeds)
    def check(seed):
        for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 1e-5)):
            draws = [draw(CASES[name], seed + k, dtype) for k in range(DRAWS)]
            for arrays, (in_jax, jax_gradient) in zip(draws, jax_values_and_gradients(name, draws), strict=True):
                expected = outputs(CASES[name].call(*arrays))
                in_torch, torch_gradient = torch_value_and_gradient(name, arrays)
                for e, j, t in zip(expected, in_jax, in_torch, strict=True):
                    assert e.dtype.kind == j.dtype.kind == t.dtype.kind and (e.dtype.kind != "f" or e.dtype == j.dtype == t.dtype == dtype)
                    close(j, e, tolerance)
                    close(t, e, tolerance)
                for i in jax_gradient:
                    close(jax_gradient[i], torch_gradient[i], tolerance)
                for i in CASES[name].constants:
                    assert not np.any(jax_gradient[i]) and not np.any(torch_gradient[i])

    check()


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.moves and not c.stopped])
def test_gradients_are_the_derivatives_of_the_values(name):
    @quick
    @given(seeds)
    def check(seed):
        case = CASES[name]
        arrays = draw(case, seed)
        _, gradient = torch_value_and_gradient(name, arrays)
        for i in case.moves:
            step = direction(arrays[i].shape, 7)

            def along(h, i=i, step=step):
                moved = [x + h * step if k == i else x for k, x in enumerate(arrays)]
                return float(total(case.call(*moved), np.asarray))

            h = 1e-5
            difference = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
            slope = float(np.sum(gradient[i] * step))
            # A kink within 2e-5 of the point would show; the seeds are fixed and none has one.
            assert abs(slope - difference) <= 1e-6 * max(1.0, abs(slope)), (i, slope, difference)

    check()


FIRST = {case.function: name for name, case in reversed(CASES.items())}
"""One case a function, where running JAX line by line costs more than it finds."""


@pytest.mark.parametrize("name", FIRST.values())
def test_compiling_and_mapping_change_nothing(name):
    draws = [draw(CASES[name], seed, np.float32) for seed in range(DRAWS)]
    for arrays, (compiled, _) in zip(draws, jax_values_and_gradients(name, draws)):
        for x, y in zip(compiled, outputs(CASES[name].call(*map(jnp.asarray, arrays))), strict=True):
            close(x, y, 1e-6)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.mask is not None])
def test_what_is_masked_never_matters(name):
    """NaN where the mask is 0 changes neither value nor gradient, and gets gradient 0."""
    case = CASES[name]
    draws = [draw(case, seed) for seed in range(DRAWS)]
    hidden = [~arrays[case.mask] for arrays in draws]
    assert all(h.any() for h in hidden)
    poisoned = [[np.where(h, np.nan, x) if x.dtype.kind == "f" and x.shape == h.shape else x for x in arrays] for h, arrays in zip(hidden, draws)]

    def in_torch(name, draws):
        return [torch_value_and_gradient(name, arrays) for arrays in draws]

    def in_numpy(name, draws):
        return [(outputs(case.call(*arrays)), {}) for arrays in draws]

    for run in (jax_values_and_gradients, in_torch, in_numpy):
        for h, (value, gradient), (poisoned_value, poisoned_gradient) in zip(hidden, run(name, draws), run(name, poisoned), strict=True):
            for x, y in zip(value, poisoned_value, strict=True):
                np.testing.assert_array_equal(x, y)
            for i in gradient:
                np.testing.assert_array_equal(gradient[i], poisoned_gradient[i])
                assert gradient[i].shape != h.shape or not np.any(gradient[i][h])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seeds, st.integers(1, 4), st.integers(1, 9), st.sampled_from(list(CASES)))
def test_any_shape(seed, batch, time, name):
    """NumPy and PyTorch, which need no compiling, on shapes of every size."""
    arrays = draw(CASES[name], seed, batch=batch, time=time)
    for x, y in zip(outputs(CASES[name].call(*arrays)), outputs(CASES[name].call(*map(torch.from_numpy, arrays))), strict=True):
        close(y, x, 1e-9)


def public(module):
    """The functions that a module defines for others."""
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if not name.startswith("_") and function.__module__ == module.__name__:
            yield name, function


def test_every_public_function_has_a_case():
    tested = {case.function for case in CASES.values()}
    missing = [f"{m.__name__}.{n}" for m in MODULES for n, f in public(m) if f not in tested and n not in REFUSALS]
    assert not missing


def test_every_public_function_is_on_the_page():
    page = PAGE.read_text()
    missing = [f"{m.__name__}.{n}" for m in MODULES for n, f in public(m) if f"`{m.__name__.rpartition('.')[2]}.{n}(" not in page]
    assert not missing


def test_every_public_function_says_what_it_does():
    missing = [f"{m.__name__}.{n}" for m in MODULES for n, f in public(m) if not f.__doc__]
    assert not missing
