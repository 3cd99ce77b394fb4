"""Other libraries, which have an environment of their own: `make interop` builds it and runs these tests."""

import importlib
import importlib.util
import warnings

import pytest


def peer(name: str):
    """The module, imported without its warnings being errors; without the package the test is skipped."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; `make interop` makes an environment that has it and runs this", allow_module_level=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
