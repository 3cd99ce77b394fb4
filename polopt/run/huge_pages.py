"""Memory in huge pages, where Linux gives them to who asks: a CPU then finds large arrays with fewer misses.

XLA takes the temporary memory of a program from the C library, and glibc (from 2.35) asks for huge pages only where GLIBC_TUNABLES says so when a
process starts. Measured on two cores, benchmarks/RESULTS.md: an iteration of GRPO takes 0.65 to 0.75 of the time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def would_help(environment=os.environ, offered: Path = OFFERED) -> bool:
    """Whether huge pages are there for who asks, glibc can ask, and nobody has tuned it."""
    if VARIABLE in environment or not offered.is_file() or "[madvise]" not in offered.read_text():
        return False
    library = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    return len(library) == 2 and library[0] == "glibc" and tuple(map(int, library[1].split("."))) >= (2, 35)


def start_again() -> None:
    """Put the same command with huge pages in the place of this process; to be called before anything heavy is imported."""
    if would_help():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, VARIABLE: TUNABLE})
