"""Results: what an honest program means is what comes back, as from a notebook's cell."""

from __future__ import annotations

import re
from collections.abc import Sequence

from behaviours.checks import described, ends, every, prints, raises, shows
from behaviours.entry import Behaviour, Facts, Outcome

AREA = "results"


def only_own_frames(results: Sequence[Outcome], facts: Facts) -> str:
    """Every frame in the traceback is of the program, whose file has no path."""
    (outcome,) = results
    files = re.findall(r'File "([^"]*)"', outcome.stderr)
    own = files and all(name.startswith("<") for name in files) and "/" not in outcome.stderr
    return "" if own else f"the traceback is not the program's own: {described(outcome)}"


def silent_then_x(results: Sequence[Outcome], facts: Facts) -> str:
    """The first program printed nothing, the second only its x."""
    return prints("")(results[:1], facts) or prints("x")(results[1:], facts)


def all_differ(results: Sequence[Outcome], facts: Facts) -> str:
    """No number of one program is in another's output."""
    numbers = [number for outcome in results for number in outcome.stdout.split()]
    return "" if len(set(numbers)) == len(numbers) == 4 else f"random numbers are the same: {numbers}"


BEHAVIOURS = (
    Behaviour(
        name="last expression",
        area=AREA,
        code="base = 40\nbase + 2",
        holds=prints("42"),
    ),
    Behaviour(
        name="last is assignment",
        area=AREA,
        code="base = 40\ntotal = base + 2",
        holds=prints(""),
    ),
    Behaviour(
        name="last in block",
        area=AREA,
        code="for k in (1, 2):\n    print(k)\n    k * 10",
        holds=prints("1\n2"),
    ),
    Behaviour(
        name="last is multiline",
        area=AREA,
        code="dict(\n  a=1,\n  b=[\n    2, 3,\n  ],\n)",
        holds=prints("{'a': 1, 'b': [2, 3]}"),
    ),
    Behaviour(
        name="semicolon and none",
        area=AREA,
        code=("6 * 7;  # not shown", "print('x')\nNone"),
        holds=silent_then_x,
    ),
    Behaviour(
        name="main guard",
        area=AREA,
        code="def main():\n    print('main ran')\n\nif __name__ == '__main__':\n    main()",
        holds=prints("main ran"),
    ),
    Behaviour(
        name="sys exit zero",
        area=AREA,
        code="import sys\nprint('before')\nsys.exit(0)\nprint('after')",
        holds=prints("before"),
    ),
    Behaviour(
        name="bad repr",
        area=AREA,
        code="class Shy:\n    def __repr__(self):\n        return {}['name']\nShy()",
        holds=raises("KeyError", shows="line 3"),
    ),
    Behaviour(
        name="traceback is clean",
        area=AREA,
        code="values = {}\nvalues['missing']\nprint(values)",
        holds=every(raises("KeyError", shows="line 2"), only_own_frames),
    ),
    Behaviour(
        name="big integers",
        area=AREA,
        code="import math\ntext = str(math.factorial(2500))\nprint(len(text), int(text) % 2503)",
        holds=prints("7412 1251"),
    ),
    Behaviour(
        name="rng differs",
        area=AREA,
        code=("import random, numpy\nprint(random.random(), numpy.random.random())",) * 2,
        holds=every(ends("ok"), all_differ),
    ),
    Behaviour(
        name="deep lru recursion",
        area=AREA,
        code="""\
import functools, sys
sys.setrecursionlimit(100_000)
@functools.lru_cache(maxsize=None)
def ways(n):
    return 1 if n < 2 else (ways(n - 1) + ways(n - 2)) % 1_000_007
print(ways(30_000))
""",
        holds=prints("22012"),
    ),
    Behaviour(
        name="warnings are not errors",
        area=AREA,
        code="import warnings\nwarnings.warn('this is old')\nprint(6 * 7)",
        holds=every(prints("42"), shows("this is old")),
    ),
    Behaviour(
        name="multiline string intact",
        area=AREA,
        code="def text():\n    return '''one\n  two\n\tthree\n'''\nprint(repr(text()))",
        holds=prints("'one\\n  two\\n\\tthree\\n'"),
    ),
)
