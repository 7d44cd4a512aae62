"""The process that parses and compares answers: it reads requests and writes replies as JSON lines.

A request is `{"id", "gold", "candidate", "limit_s"}`; `candidate` is null to try the gold answer alone.
Replies: `{"id", "stage": "gold"}` once the gold answer is read, then one of `{"id", "equal", "reason"}` or
`{"id", "unusable"}` (the gold answer can't be read, and why).

Expressions are parsed by math-verify's LaTeX parser (`_math_reading`) and compared by `_math_equal`.

The process limits its own memory. Its parent enforces the time limit from outside; the alarm here only ensures that
a hanging comparison does not outlive a parent that was killed. The first line is `{"ready": true}`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
from typing import Any

from gtpo.tasks.verifiers._math_equal import same_answer
from gtpo.tasks.verifiers._math_reading import Unreadable, read


def main(memory_bytes: int) -> None:
    """Answers requests until its standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever sympy prints must not mix with the replies
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    read("x + 1")  # loads what is needed, so that "ready" means ready

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
    if _spelling(candidate) == _spelling(gold):
        return True, "equal to the gold answer"
    try:
        given = read(candidate)
    except Unreadable as error:
        return False, f"not a mathematical expression ({error})"
    try:
        equal = same_answer(read(gold), given)
    except Unreadable:
        return False, "not equal to the gold answer, which is compared by its spelling"
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        return False, f"can't be compared with the gold answer ({type(error).__name__})"
    return equal, "equal to the gold answer" if equal else "not equal to the gold answer"


def _spelling(latex: str) -> str:
    return re.sub(r"\s", "", latex)


def _unusable(gold: str) -> str | None:
    """Why the gold answer can't be used. One that no form can hold completely is compared by its spelling instead."""
    try:
        read(gold)
    except Unreadable as error:
        words = re.search(r"[a-zA-Z]{3,}", re.sub(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+", "", gold))
        return None if not error.broken or words else str(error)
    return None
