"""What runs in the sandbox to judge a program: the candidate in one process, the tests in another.

The modules here are shipped into the sandbox as text, and compiled for a sandbox that has this very Python: compiling
them takes longer than most programs run. None of them imports anything but the standard library.
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
    """The program that does one side's part.

    Args:
        side: candidate, asserts or stdin.
        asked: what its `main` gets.
        code: the untrusted code in it, which decides on the packages that the sandbox has loaded beforehand.
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
    """The side's source, with what it imports from here before it, and its code object as bytes."""
    parts = [side] if side == "stdin" else ["wire", side]
    texts = [(_HERE / f"{part}.py").read_text(encoding="utf-8") for part in parts]
    future = "from __future__ import annotations\n"
    text = future + "\n".join(part.replace(future, "") for part in texts)
    return text, marshal.dumps(compile(text, "<judge>", "exec", dont_inherit=True, optimize=2))
