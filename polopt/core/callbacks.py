"""Errors of code that runs on the host in the middle of a compiled program: how they come out as they were raised."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import jax

from polopt.core.errors import HostError

_raised: list[HostError] = []


def keep(error: HostError) -> None:
    """Remember an error that is about to be raised, for `clear_errors`."""
    _raised.append(error)


@contextmanager
def clear_errors():
    """Inside, a host's failure comes out of compiled programs as the HostError that it was.

    JAX hands an error on as a JaxRuntimeError with several tracebacks as its text, and logs another; neither says what a user can do.
    The with-block ends when what was started in it is done on the host. Blocks may be nested.
    """

    def not_ours(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HostError))

    logger = logging.getLogger("jax._src.callback")
    logger.addFilter(not_ours)
    _raised.clear()
    try:
        yield
        jax.effects_barrier()
    except Exception:
        if not _raised:
            raise
        first = _raised[0]
        _raised.clear()
        raise first from first.__cause__
    finally:
        logger.removeFilter(not_ours)
