"""Denoising with noise of any size, in the form of Karras et al. 2022, arXiv 2206.00364.

Conventions: noisy = clean + sigma noise, with standard normal noise. A network F that is fed inputs of deviation 1 is made into a denoiser D, whose
best guess is the mean of clean given noisy. `spread` is the deviation of clean data. Shapes broadcast dimension by dimension.
"""

from __future__ import annotations

from polopt.objectives.backend import Array, check_shapes


def input_scale(sigma: Array, spread: float = 1.0) -> Array:
    """c_in = 1 / sqrt(sigma^2 + spread^2): what noisy data are multiplied by so that their deviation is 1."""
    return (sigma**2 + spread**2) ** -0.5


def denoised(noisy: Array, output: Array, sigma: Array, spread: float = 1.0) -> Array:
    """D = c_skip noisy + c_out F, with c_skip = spread^2 / (sigma^2 + spread^2) and c_out = sigma spread / sqrt(sigma^2 + spread^2).

    Where there is little noise the data are kept, where there is much the network's output counts.
    """
    check_shapes("denoised", noisy=noisy, output=output, sigma=sigma)
    total = sigma**2 + spread**2
    return spread**2 / total * noisy + sigma * spread * total**-0.5 * output


def denoising(guess: Array, clean: Array, sigma: Array, spread: float = 1.0) -> Array:
    """(sigma^2 + spread^2) / (sigma spread)^2 (D - clean)^2: the squared error of F against what it should give, one per element."""
    check_shapes("denoising", guess=guess, clean=clean, sigma=sigma)
    return (sigma**2 + spread**2) / (sigma * spread) ** 2 * (guess - clean) ** 2
