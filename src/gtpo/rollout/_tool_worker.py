"""The process in which a user's function is called: one call after another, requested over pipes, in JSON.

It loads the function by its name, from its module or its file, and nothing of gtpo. What the function prints goes to
stderr. It ends with its parent even inside C code: the kernel sends SIGIO, which nothing here handles, when the other
end of the lifeline, a pipe on which nothing is ever sent, is closed.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import importlib.util
import inspect
import json
import os
import sys
from typing import Any


def main() -> None:
    """Serve calls until stdin ends. The arguments: what to load, as JSON, and the descriptor of the lifeline."""
    lifeline = int(sys.argv[2])
    if hasattr(os, "O_ASYNC"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        function = _loaded(**json.loads(sys.argv[1]))
        _send(answers, {"ready": True})
    except BaseException as error:
        _send(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    for line in requests:
        _send(answers, _outcome(function, json.loads(line)))


def _loaded(module: str, name: str, file: str | None, path: list[str]) -> Any:
    sys.path[:] = path
    if file is None:
        found: Any = importlib.import_module(module)
    else:
        spec = importlib.util.spec_from_file_location(module, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is not a Python file")
        found = sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _outcome(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        result = function(**arguments)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        if hasattr(result, "text") and hasattr(result, "status"):  # a ToolResult
            return {"tool_result": [result.text, result.status, result.note, result.final]}
        return {"value": json.loads(json.dumps(result, default=str))}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"}


async def _awaited(result: Any) -> Any:
    return await result


def _send(answers: Any, message: dict[str, Any]) -> None:
    data = memoryview(json.dumps(message).encode() + b"\n")
    while data:
        data = data[answers.write(data) :]


if __name__ == "__main__":
    main()
