"""The process in which math-verify runs: requests come in as JSON lines, replies go out as JSON lines.

A request is `{"id", "gold", "candidate", "limit_s"}`; `candidate` is null to try the gold answer alone.
Replies: `{"id", "stage": "gold"}` once the gold answer is read, then one of `{"id", "equal", "reason"}` or
`{"id", "unusable"}` (the gold answer can't be read, and why).

It limits its own memory. Its parent enforces the time limit from outside; the alarm here only makes sure that
a hanging comparison does not outlive a parent that was killed. Its first line is `{"ready": true}`.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from dataclasses import replace
from functools import lru_cache
from typing import Any


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
    from math_verify import verify

    if candidate is None:
        return True, "the gold answer can be read"
    parsed = _parse(candidate)
    if not parsed:
        return False, "not a mathematical expression"
    try:
        # "raise" first: by default math-verify turns a failed comparison into a plain False.
        equal = verify(list(_parse(gold)), list(parsed), timeout_seconds=None, raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        return False, f"can't be compared with the gold answer ({type(error).__name__})"
    return equal, "equal to the gold answer" if equal else "not equal to the gold answer"


def _unusable(gold: str) -> str | None:
    return None if _parse(gold) else "math-verify can't read it"


@lru_cache(maxsize=1024)
def _parse(latex: str) -> tuple[Any, ...]:
    """The expressions that math-verify reads the answer as; empty if it can't."""
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    # The box alone: math-verify's other patterns would pick any number out of unreadable text.
    boxed = LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)
    # By default letters that are also units are dropped, which makes `a + b + c` unreadable.
    units_kept = replace(boxed, normalization_config=replace(boxed.normalization_config, units=False))
    for config in (boxed, units_kept):
        found = parse(
            f"$\\boxed{{{latex}}}$",
            extraction_config=[config],
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )
        if found:
            return tuple(found)
    return ()
