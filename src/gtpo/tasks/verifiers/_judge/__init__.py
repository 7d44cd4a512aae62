"""The code that runs in the sandbox to check a program: the candidate in one process, the tests in another.

The modules here are sent into the sandbox as text, and also compiled, for a sandbox with exactly this version of
Python: compiling them takes longer than most programs run. They import only the standard library.
"""

from __future__ import annotations

import json
import marshal
import sys
from functools import cache
from pathlib import Path
from typing import Any

from gtpo.sandbox import preload

_HERE = Path(__file__).parent
_PROGRAM = """{hint}import json, marshal, sys
exec(marshal.loads({compiled!r}) if sys.version == {version!r} else compile({text!r}, "<judge>", "exec"))
main(json.loads({asked}));
"""


def program(side: str, asked: dict[str, Any], code: str) -> str:
    """Returns the program for one side.

    Args:
        side: candidate, asserts or stdin.
        asked: the argument of its `main`.
        code: the untrusted code in it; it determines whether the sandbox uses a server with preloaded packages.
    """
    text, compiled = _text(side)
    return _PROGRAM.format(
        hint="# import numpy\n" if preload.needs_science(code) else "",
        compiled=compiled,
        version=sys.version,
        text=text,
        asked=json.dumps(json.dumps(asked)),
    )


@cache
def _text(side: str) -> tuple[str, bytes]:
    """The source of a side, preceded by the modules that it imports from here, and its code object as bytes."""
    parts = [side] if side == "stdin" else ["wire", side]
    texts = [(_HERE / f"{part}.py").read_text(encoding="utf-8") for part in parts]
    future = "from __future__ import annotations\n"
    text = future + "\n".join(part.replace(future, "") for part in texts)
    return text, marshal.dumps(compile(text, "<judge>", "exec", dont_inherit=True, optimize=2))
