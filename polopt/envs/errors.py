"""What goes wrong with environments, as sentences for the person who chose them."""

from __future__ import annotations

from polopt.core.errors import HostError


class UnknownEnvironment(ValueError):
    """No environment has the name that was given."""


class UnusableEnvironment(ValueError):
    """The environment was found but cannot be used: a package is missing, it does not start, or a space is not supported."""


class SimulatorError(HostError):
    """A simulator broke its own spaces, returned numbers that are not finite, or raised."""


class ActionError(SimulatorError):
    """The policy gave a simulator an action that is not finite."""
