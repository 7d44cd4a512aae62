"""Source text: whatever it is made of, it runs or ends in an error of its own."""

from __future__ import annotations

from behaviours.checks import ends, prints, raises
from behaviours.entry import Behaviour

AREA = "syntax"

BEHAVIOURS = (
    Behaviour(
        name="syntax error",
        area=AREA,
        code="total = 1\nfor in range(3):\n    total += 1",
        holds=raises("SyntaxError", shows="line 2\n    for in range(3):"),
    ),
    Behaviour(
        name="nul byte",
        area=AREA,
        code="print('a')\n\0",
        holds=raises("SyntaxError", "ValueError"),
    ),
    Behaviour(
        name="surrogate in source",
        area=AREA,
        code="half = '\ud83d'\nprint(len(half))",
        holds=ends("ok", "error"),
    ),
    Behaviour(
        name="deep nesting",
        area=AREA,
        code="[" * 4000 + "]" * 4000,
        holds=ends("error", "memory"),
    ),
    Behaviour(
        name="deep unary",
        area=AREA,
        code="print(" + "-" * 60_000 + "1)",
        holds=ends("error", "memory"),
    ),
    Behaviour(
        name="smart quotes and magic",
        area=AREA,
        code="%matplotlib inline\nprint(\u201chello\u201d)",
        holds=raises("SyntaxError"),
    ),
    Behaviour(
        name="crlf tabs bom",
        area=AREA,
        code="\ufeffif True:\r\n\tprint('ran')\r\n",
        holds=ends("ok", "error"),
    ),
    Behaviour(
        name="future import first",
        area=AREA,
        code="""\
'''A docstring may come before it.'''
from __future__ import annotations
def convert(value: not_defined_anywhere): ...
print(convert.__annotations__)
""",
        holds=prints("{'value': 'not_defined_anywhere'}"),
    ),
    Behaviour(
        name="empty",
        area=AREA,
        code="",
        holds=prints(""),
    ),
    Behaviour(
        name="input called",
        area=AREA,
        code="name = input('Your name? ')\nprint('Hello', name)",
        holds=raises("EOFError"),
    ),
)
