"""The process in which math-verify runs: requests come in as JSON lines, replies go out as JSON lines.

A request is `{"id", "gold", "candidate", "limit_s"}`; `candidate` is null to try the gold answer alone.
Replies: `{"id", "stage": "gold"}` once the gold answer is read, then one of `{"id", "equal", "reason"}` or
`{"id", "unusable"}` (the gold answer can't be read, and why).

Where math-verify errs, more is done here: only the box is read; a unit is dropped only from the end, and not if it
may be a variable; i is the imaginary unit if the answers differ otherwise; numbers that are equal only by rounding are
compared again.

It limits its own memory. Its parent enforces the time limit from outside; the alarm here only makes sure that
a hanging comparison does not outlive a parent that was killed. Its first line is `{"ready": true}`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from gtpo.tasks.verifiers.answers import RELATIVE

Forms = tuple[Any, ...]
SWAMPING = 1e10
"""A term of this size leaves about six decimals of another in a sum of double precision."""

_TEXT = re.compile(r"\\(?:text(?:normal|bf|it|rm)?|mbox|math(?:rm|it|bf))\s*\{(?!\s*(?:and|or)\s*\})")
_UNITS = re.compile(
    r"(?<=[\w})\]])(?:(?:\s|\\[,;:! ]|/|\\cdot)*\\(?:text|textrm|mbox|mathrm)\s*\{[^{}\d]*[23]?\}"
    r"(?:\^-?\d|\^\{-?\d\})?)+$"
)
_LAST_BRACE = re.compile(r"\}(?:\^\d|\^\{\d\})?$")
_LAST_LETTER = re.compile(r"[\d}](?:[a-zA-Z]|ab|bc)$")
_LAST_WORD = re.compile(r"\s[a-zA-Z]{2,}$")
_OTHER_PLACES = re.compile(r"answer|\\fbox", re.IGNORECASE)
"""Where math-verify looks for an answer beside the box."""


def main(memory_bytes: int) -> None:
    """Answers requests until its standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever sympy prints must not mix with the replies
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401  # loaded here, so that "ready" means ready

    def reply(**fields: Any) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    reply(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, 2 * request["limit_s"] + 1)
        try:
            unusable = _unusable(request["gold"])
            if unusable:
                reply(id=request["id"], unusable=unusable)
                continue
            reply(id=request["id"], stage="gold")
            equal, reason = _compare(request["candidate"], request["gold"])
            reply(id=request["id"], equal=equal, reason=reason)
        except (MemoryError, RecursionError) as error:
            name = "memory" if isinstance(error, MemoryError) else "stack"
            reply(id=request["id"], equal=False, reason=f"ran out of {name}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _compare(candidate: str | None, gold: str) -> tuple[bool, str]:
    if candidate is None:
        return True, "the gold answer can be read"
    right, given = _parse(gold), _parse(candidate)
    if given and _hides_a_variable(candidate, gold, right):
        right, given = _parse(gold, units=False) or right, _parse(candidate, units=False)
    if not given:
        return False, "not a mathematical expression"
    try:
        equal = _equal(right, given) or _equal(*_imaginary(right, given))
        equal = equal and not (_both_tiny_but_different(right[0], given[0]) or _swamps(right, given))
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        return False, f"can't be compared with the gold answer ({type(error).__name__})"
    return equal, "equal to the gold answer" if equal else "not equal to the gold answer"


def _equal(gold: Forms, candidate: Forms) -> bool:
    from math_verify import verify

    # "raise": by default math-verify turns a failed comparison into a plain False.
    return bool(gold) and verify(list(gold), list(candidate), timeout_seconds=None, raise_on_error=True)


def _hides_a_variable(candidate: str, gold: str, right: Forms) -> bool:
    """Whether a letter that math-verify drops as a unit may be a variable: the t of 3t, the c of x + 2c."""
    if _LAST_WORD.search(candidate):
        return False
    algebraic = any(getattr(form, "free_symbols", None) for form in right)
    return bool(_LAST_LETTER.search(gold) or (algebraic and _LAST_LETTER.search(candidate)))


def _imaginary(gold: Forms, candidate: Forms) -> tuple[Forms, Forms]:
    """The same with the imaginary unit for the letter i; nothing if there is no such letter."""
    from sympy import I

    letters = {s for form in gold + candidate for s in getattr(form, "free_symbols", ()) if s.name == "i"}
    if not letters:
        return (), ()
    values = dict.fromkeys(letters, I)
    return tuple(form.subs(values) for form in gold), tuple(form.subs(values) for form in candidate)


def _both_tiny_but_different(gold: Any, candidate: Any) -> bool:
    """Whether two numbers are equal only because math-verify rounds both to zero."""
    from sympy import Expr, UnevaluatedExpr

    if not all(isinstance(x, Expr) and x.is_number and not x.has(UnevaluatedExpr) for x in (gold, candidate)):
        return False
    size = abs(gold.evalf())
    if not 0 < size < 0.001:
        return False
    return bool(abs(gold.evalf() - candidate.evalf()) > RELATIVE * size)


def _swamps(gold: Forms, candidate: Forms) -> bool:
    """Whether the candidate adds terms so large that, with floating point, nothing is left of the gold answer.

    In `gold - (1.0 \\cdot 10^{40} - 10^{40})` any gold answer is lost, and the difference is 0.
    """
    from sympy import Add, Expr, Float, preorder_traversal

    def numbers(form: Any) -> Iterator[Any]:
        nodes = preorder_traversal(form)
        return (node for node in nodes if isinstance(node, Expr) and node.is_number and not node.is_infinite)

    if not any(isinstance(number, Float) for form in gold + candidate for number in numbers(form)):
        return False
    sums = [form for form in candidate if any(isinstance(node, Add) for node in preorder_traversal(form))]
    return any(abs(number.evalf(5)) > SWAMPING for form in sums for number in numbers(form))


def _unusable(gold: str) -> str | None:
    return None if _parse(gold) else "math-verify can't read it"


@lru_cache(maxsize=1024)
def _parse(latex: str, units: bool = True) -> Forms:
    """The expressions that math-verify reads the answer as; empty if it can't. `units`: units may be dropped."""
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    if _OTHER_PLACES.search(latex):
        return ()
    latex = _UNITS.sub("", latex)
    # The box alone: math-verify's other patterns would pick any number out of unreadable text.
    boxed = LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)
    # By default letters that are also units are dropped, which makes `a + b + c` unreadable.
    units_kept = replace(boxed, normalization_config=replace(boxed.normalization_config, units=False))
    # Everything from the first \text to the last brace would be dropped as one unit.
    units = units and not (_TEXT.search(latex) and _LAST_BRACE.search(latex))
    for config in (boxed, units_kept) if units else (units_kept,):
        found = parse(
            f"$\\boxed{{{latex}}}$",
            extraction_config=[config],
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )
        if found:
            return tuple(found)
    return ()
