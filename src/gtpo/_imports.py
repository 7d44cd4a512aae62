"""Objects of the user's own, by import path or by file."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gtpo._text import did_you_mean
from gtpo.errors import ConfigError


def imported(path: str, option: str) -> Callable[..., Any]:
    """What `package.module:name` or `path/to/file.py:name` names.

    A module is looked for where Python is installed and in PYTHONPATH, never in the current folder: a file there that
    happens to have the name must not run. A file is given by its path.

    Args:
        path: the import path or the file, a colon, and the name.
        option: which option it was given to, for messages.

    Raises:
        ConfigError: it can't be imported, or is not callable.
    """
    module, _, name = path.rpartition(":")
    try:
        holder = _from_file(Path(module)) if module.endswith(".py") else _from_installation(module)
        if not hasattr(holder, name):
            raise AttributeError(f"there is no {name!r} in it{did_you_mean(name, vars(holder))}")
        found = getattr(holder, name)
    except (ImportError, AttributeError, ValueError, OSError) as error:
        hint = "" if module.endswith(".py") else f"; for a file of your own give its path, ./{module}.py:{name}"
        raise ConfigError(f"{option} {path!r}: can't be imported: {error}{hint}") from error
    if not callable(found):
        raise ConfigError(f"{option} {path!r}: is not callable")
    result: Callable[..., Any] = found
    return result


def _from_file(path: Path) -> ModuleType:
    """The module in a file, loaded once."""
    name = f"_gtpo_file_{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_installation(name: str) -> ModuleType:
    with _without_the_current_folder():
        return importlib.import_module(name)


@contextmanager
def _without_the_current_folder() -> Iterator[None]:
    """sys.path without the current folder, which `python -m` puts there, unless PYTHONPATH names it."""
    named = {os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part}
    before = list(sys.path)
    sys.path[:] = [part for part in before if os.path.abspath(part) != os.getcwd() or os.getcwd() in named]
    try:
        yield
    finally:
        sys.path[:] = before
