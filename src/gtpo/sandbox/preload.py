"""Two kinds of servers: a light one with the standard library only, and one with numpy and sympy preloaded.

The cost of a fork grows with the memory of the server, so programs that need no scientific package use the light one.
"""

from __future__ import annotations

import importlib.util
import re

SCIENCE = ("numpy", "numpy.random", "numpy.linalg", "sympy")
WARM_UP = (
    """
import sympy
x, y = sympy.symbols("x y")
sympy.solve(x**2 - 5*x + 6, x), sympy.solve([x + y - 3, x - y - 1], [x, y]), sympy.Eq(x, y)
sympy.simplify((x**2 - 1) / (x - 1)), sympy.factor(x**2 - 1), sympy.expand((x + 1)**3)
sympy.diff(sympy.sin(x), x), sympy.integrate(x**2, x), sympy.limit(sympy.sin(x) / x, x, 0)
str(sympy.sqrt(8)), sympy.N(sympy.pi, 10), sympy.factorint(360), sympy.Rational(1, 3) + 1, sympy.latex(x / y)
""",
)

_NEEDS = re.compile(r"^.*\bimport\b.*$", re.MULTILINE)
_NAMES = re.compile(r"\b(?:numpy|sympy|mpmath|scipy|pandas|networkx|sklearn|matplotlib)\b")


def needs_science(code: str) -> bool:
    """Whether a line with the word `import` names a scientific package.

    This is a guess. If it is wrong, it costs only time: the program then imports the package itself.
    """
    return any(_NAMES.search(line.group()) for line in _NEEDS.finditer(code))


def installed() -> list[str]:
    """The modules of `SCIENCE` that can be imported here."""
    return [name for name in SCIENCE if importlib.util.find_spec(name.partition(".")[0]) is not None]


def warm_up(modules: list[str]) -> list[str]:
    """Programs that make the preloaded modules load and cache what they otherwise need at their first use."""
    return list(WARM_UP) if "sympy" in modules else []
