"""The mathematics of policy learning: plain arrays in, arrays out, on NumPy, JAX and PyTorch.

advantages   how credit is given to actions        surrogates    what is minimised so that a sampled policy improves
divergences  how far two policies are apart        preferences   losses of pairs
values       losses that fit a value               risk          measures of more than the mean
reduction    from losses of tokens to one number   layout        padded, packed and concatenated sequences
backend      stop-gradient and a scan over time         importance    weights of whole trajectories

Importing this room needs NumPy and array-api-compat only. Losses are minimised, advantages are higher-is-better, what is masked never
matters. docs/objectives.md lists every function with its formula and source.
"""

from polopt.objectives import advantages, backend, divergences, importance, layout, preferences, reduction, risk, surrogates, values

__all__ = ["advantages", "backend", "divergences", "importance", "layout", "preferences", "reduction", "risk", "surrogates", "values"]
