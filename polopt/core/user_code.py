"""A user's own Python: modules by name or by the path of a file. Nothing here knows JAX."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from polopt.core.errors import MissingCode


def module_at(place: str, what: str, example: str) -> ModuleType:
    """The module that `package.module` or `path/to/file.py` means; modules are looked for in the working directory too.

    MissingCode where there is none, in a sentence that says `what` was wanted of it, with an `example` of a file.
    """
    return _of_file(place, what, example) if place.endswith(".py") else _of_name(place, what, example)


def _of_name(name: str, what: str, example: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # a console script, unlike `python -m`, does not look where it was started
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise MissingCode(
                f"There is no Python module {name!r} to take {what} from; install it, start from the folder that holds it, "
                f"or give the path of a file, as in {example}."
            ) from error
        raise


def _of_file(path: str, what: str, example: str) -> ModuleType:
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingCode(f"There is no file {path} to take {what} from; give the path of a Python file, as in {example}.")
    source = file.read_bytes()
    name = f"polopt_user_{file.stem}_{hashlib.sha1(str(file.resolve()).encode() + source).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
