"""User code: imported by path or from a file; its exceptions are reported in one sentence."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gtpo._text import did_you_mean
from gtpo.errors import ConfigError, GtpoError

_OURS = str(Path(__file__).parent)
_STANDARD = (sysconfig.get_path("stdlib"), "<frozen")
_PACKAGES = {"site-packages", "dist-packages"}
"""Folders that are inside the standard library's folder on some machines."""


def imported(path: str, option: str) -> Callable[..., Any]:
    """The object that `package.module:name` or `path/to/file.py:name` names.

    A module is looked for in the Python installation and in PYTHONPATH, never in the current folder: a file there that
    happens to have the same name must not run. A file is given by its path.

    Args:
        path: the import path or the file, a colon, and the name.
        option: the option that gave it, for messages.

    Raises:
        ConfigError: the object can't be imported, or is not callable.
    """
    module, _, name = path.rpartition(":")
    own_file = module.endswith(".py")
    hint = "" if own_file else f"; for a file of your own give its path, ./{module}.py:{name}"
    try:
        holder = _from_file(Path(module)) if own_file else _from_installation(module)
    except Exception as error:  # what is imported runs, and may raise anything
        raise ConfigError(f"{option} {path!r}: can't be imported: {described(error)}{hint}") from error
    if not hasattr(holder, name):
        missing = f"there is no {name!r} in it{did_you_mean(name, vars(holder))}"
        raise ConfigError(f"{option} {path!r}: can't be imported: {missing}{hint}")
    found = getattr(holder, name)
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


@contextmanager
def own_code(what: str, error: Callable[[str], GtpoError]) -> Iterator[None]:
    """Wraps a call of user code: an exception becomes one sentence that names the code, the error and the line.

    Args:
        what: names the code, such as "reward function f".
        error: makes the error to raise from the sentence. An error of gtpo is passed on unchanged.
    """
    try:
        yield
    except GtpoError:
        raise
    except Exception as raised:
        raise error(f"{what} raised {described(raised)}") from raised


def described(error: BaseException) -> str:
    """An exception's type and text, and the last line of user code in its traceback, if there is one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    last = [frame for frame in own if frame.filename == own[0].filename][-1:]  # not inside of what it calls
    place = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in last)
    return f"{type(error).__name__}: {text_of(error)}{place}"


def text_of(error: BaseException) -> str:
    """An exception's text, even if its class fails to produce one."""
    try:
        return str(error)
    except Exception:
        return "(without text)"


def _is_own(filename: str) -> bool:
    if filename.startswith(_OURS):
        return False
    return not filename.startswith(_STANDARD) or not _PACKAGES.isdisjoint(Path(filename).parts)
