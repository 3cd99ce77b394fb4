"""Occupancies: how densely episodes visit a place, as a function that is learnt from the features of the places visited.

The density lambda of the visits, relative to a reference measure nu, is taken to be <phi(x), omega>. Least squares under nu give

    omega = argmin_w E_nu[ (lambda(x) - <phi(x), w>)^2 ] = E_nu[ phi phi^T ]^-1 m,        m = the mean of phi over the visits

so that an episode has nothing to give but its sum of features. E_nu[ phi phi^T ] does not depend on the actor and is made once. `Table` is the
case where places are numbered: phi marks the place, nu counts, and omega = m is the table of visits.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

SAMPLES = 4096  # of nu, for E_nu[phi phi^T]
RIDGE = 1e-3  # of the mean eigenvalue of E_nu[phi phi^T]


class Table(eqx.Module):
    """Numbered places. A place is a vector (places,) with a one where it is."""

    size: int = eqx.field(static=True)

    def features(self, place):
        return place

    def density(self, moments, place):
        """lambda at a place, from m (size,)."""
        return moments @ place

    def even(self):
        """The moments of a density that is the same everywhere."""
        return jnp.full((self.size,), 1 / self.size)

    def integral(self, function: Callable, moments):
        """The integral over nu of a function of the density."""
        return jnp.sum(function(moments))


def bumps(place, centres, spread, width):
    """Gaussians of the distance to each centre in units of width times spread, divided by their sum."""
    distance = jnp.sum(((place[None] - centres) / (width * spread)[None]) ** 2, axis=1)
    return jax.nn.softmax(-0.5 * distance)


class Regression(eqx.Module):
    """Places in space. The features are Gaussian bumps around centres drawn from nu, divided by their sum.

    centres: (size, coordinates); spread: (coordinates,) deviations of nu; inverse: (size, size) of E_nu[phi phi^T];
    mean: (size,) E_nu[phi].
    """

    centres: jax.Array
    spread: jax.Array
    width: jax.Array
    inverse: jax.Array
    mean: jax.Array
    size: int = eqx.field(static=True)

    def __init__(self, draw: Callable, size: int, width, key):
        """draw: from a key to a place (coordinates,), distributed as nu; size: bumps; width: of a bump, in deviations of nu."""
        places = jax.vmap(draw)(jax.random.split(key, max(SAMPLES, size)))
        self.centres, self.spread = places[:size], jnp.std(places, axis=0) + 1e-6
        self.width, self.size = jnp.asarray(width, places.dtype), size
        phi = jax.vmap(lambda place: bumps(place, self.centres, self.spread, self.width))(places)
        gram = phi.T @ phi / places.shape[0]
        self.inverse = jnp.linalg.inv(gram + RIDGE * jnp.trace(gram) / size * jnp.eye(size))
        self.mean = jnp.mean(phi, axis=0)

    def features(self, place):
        return bumps(place, self.centres, self.spread, self.width)

    def density(self, moments, place):
        """lambda at a place, from m (size,). Least squares may make it negative."""
        return self.features(place) @ (self.inverse @ moments)

    def even(self):
        """The moments of a density that is the same everywhere: 1, as nu sums to 1."""
        return self.mean

    def integral(self, function: Callable, moments):
        """The integral over nu of a function of the density, as its mean over the centres."""
        return jnp.mean(function(jax.vmap(lambda place: self.density(moments, place))(self.centres)))
