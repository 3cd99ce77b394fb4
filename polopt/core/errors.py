"""What goes wrong on the host, as sentences for a user. Nothing here knows JAX, as simulators' own processes start without it."""

from __future__ import annotations


class HostError(RuntimeError):
    """What code on the host could not do for a compiled program."""


class MissingCode(ValueError):
    """There is no module or file of the name that a user gave."""
