"""Runs one program like a notebook cell, inside the child, and reports how it ended.

All of the code is executed; the `repr` of a bare last expression is printed unless the value is None
or a semicolon follows. The program is `__main__`. Tracebacks show only the program's own lines, under the file
name "<code>", without frames or paths of the machine.

The program shares this interpreter, so it controls what is reported here.
"""

from __future__ import annotations
import __future__ as future

import ast
import contextlib
import io
import linecache
import mmap
import os
import sys
import traceback
import types

FILE = "<code>"
_FUTURE_FLAGS = 0
for _name in future.all_feature_names:
    _FUTURE_FLAGS |= getattr(future, _name).compiler_flag
_MAX_FRAMES = 20
_RESERVE_BYTES = 2 << 20
"""Address space reserved for reporting a lack of memory."""


def new_main() -> types.ModuleType:
    """Creates a new, empty `__main__`."""
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    return module


class Cell:
    """One program and the streams it writes to.

    Args:
        code: the source text.
    """

    def __init__(self, code: str) -> None:
        self.code = code.removeprefix("\ufeff")
        self.out, self.err = _stream(1), _stream(2)
        sys.stdout = sys.__stdout__ = self.out  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.err  # type: ignore[misc]
        empty = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
        sys.stdin = sys.__stdin__ = empty  # type: ignore[misc]

    def run(self, scope: dict[str, object] | None = None) -> tuple[str, str]:
        """Executes the program; returns ("ok" | "error" | "memory", class name of the exception or "").

        Args:
            scope: globals of an earlier program to continue with; default: a new `__main__`.
        """
        if scope is None:
            scope = new_main().__dict__
        reserve = mmap.mmap(-1, _RESERVE_BYTES)  # untouched, so it costs address space only
        try:
            linecache.cache[FILE] = (len(self.code), None, io.StringIO(self.code, newline=None).readlines(), FILE)
            self._execute(scope)
            self._flush()
            return "ok", ""
        except BaseException as error:
            sys.settrace(None)
            reserve.close()
            status = "memory" if issubclass(type(error), MemoryError) else "error"
            # the program may have changed everything that reports its end
            with contextlib.suppress(BaseException):
                if status == "memory":
                    scope.clear()
                    traceback.clear_frames(error.__traceback__)
            with contextlib.suppress(BaseException):
                if issubclass(type(error), SystemExit):
                    return self._left(error)  # type: ignore[arg-type]
                self._explain(error)
            return status, _class_name(error)
        finally:
            reserve.close()

    def _execute(self, scope: dict[str, object]) -> None:
        tree = ast.parse(self.code, FILE)
        shown = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not self._silenced(tree.body[-1]):
            shown = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        body = compile(tree, FILE, "exec", dont_inherit=True)
        tail = None
        if shown is not None:
            tail = compile(shown, FILE, "eval", flags=body.co_flags & _FUTURE_FLAGS, dont_inherit=True)
        exec(body, scope)
        if tail is not None:
            value = eval(tail, scope)
            if value is not None:
                scope["_"] = value
                print(repr(value))

    def _silenced(self, last: ast.Expr) -> bool:
        """Whether a semicolon follows the last expression."""
        lines = self.code.encode("utf-8").splitlines()
        rest = [lines[last.end_lineno - 1][last.end_col_offset :], *lines[last.end_lineno :]]  # type: ignore[operator]
        return any(b";" in line.split(b"#")[0] for line in rest)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream not in (self.out, self.err, None):
                stream.flush()

    def _left(self, error: SystemExit) -> tuple[str, str]:
        """`sys.exit` without an argument or with 0 is a normal end; a message goes to stderr as usual."""
        if error.code is None or (isinstance(error.code, int) and error.code == 0):
            return "ok", ""
        self._write(f"{error.code}\n" if isinstance(error.code, str) else f"SystemExit: {error.code!r}\n")
        return "error", "SystemExit"

    def _explain(self, error: BaseException) -> None:
        """Writes the traceback; if even that fails, the bare class name."""
        try:
            report = traceback.TracebackException(type(error), error, error.__traceback__, lookup_lines=False)
            _keep_own_frames(report, set())
            self._write(_without_paths("".join(report.format())))
        except BaseException:
            self._write(f"{_class_name(error)}\n")

    def _write(self, text: str) -> None:
        try:
            data = text.encode("utf-8", "backslashreplace")
            while data:
                data = data[os.write(2, data) :]
        except OSError:
            pass


def _class_name(error: BaseException) -> str:
    """The name of its class, independent of its metaclass."""
    return str(type.__dict__["__name__"].__get__(type(error)))


def _stream(fd: int) -> io.TextIOWrapper:
    """An unbuffered text stream, so all text printed before a kill is kept."""
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", newline="\n", write_through=True)


def _keep_own_frames(report: traceback.TracebackException, seen: set[int]) -> None:
    """Removes foreign frames and the middle of deep stacks from `report` and the exceptions chained to it."""
    if id(report) in seen:
        return
    seen.add(id(report))
    frames = [frame for frame in report.stack if frame.filename == FILE]
    repeated = len({(frame.lineno, frame.name) for frame in frames}) <= _MAX_FRAMES
    if len(frames) > _MAX_FRAMES and not repeated:
        frames = frames[: _MAX_FRAMES // 2] + frames[-_MAX_FRAMES // 2 :]
    report.stack = traceback.StackSummary.from_list(frames) if frames else None  # type: ignore[assignment]
    for link in (report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())):
        if link is not None:
            _keep_own_frames(link, seen)


def _without_paths(text: str) -> str:
    """Removes the directories of the interpreter, its packages, and the program from a message."""
    for path in sorted({*sys.path, os.environ.get("HOME", "")}, key=len, reverse=True):
        if len(path) > 1:
            text = text.replace(path + "/", "")
    return text
