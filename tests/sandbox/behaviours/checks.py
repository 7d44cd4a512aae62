"""The shared checks, and the lines of code that many programs begin with."""

from __future__ import annotations

import errno
import platform
import re
from collections.abc import Sequence

from behaviours.entry import Check, Facts, Outcome

REFUSALS = ("EPERM", "EACCES", "ENOSYS", "ENOENT", "EROFS")
"""A refusal, or a path that does not exist in the sandbox's own root, or a root that is read-only."""

ATTEMPTS = """\
import errno, os
def attempt(name, deed, *arguments):
    try:
        deed(*arguments)
    except (OSError, ValueError) as error:
        not_allowed = isinstance(error, ValueError) and "not allowed" in str(error)
        number = errno.EPERM if not_allowed else getattr(error, "errno", None)
        print(name, errno.errorcode.get(number, repr(error)))
    else:
        print(name, "DONE")
"""
"""Defines `attempt(name, deed, *arguments)`, which prints the name and "DONE", or the error's symbol."""

SYSTEM_CALL = """\
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def system_call(number, *arguments):
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""
"""Defines `system_call(number, *arguments)`, below every wrapper of Python and most of libc's."""

X86 = platform.machine() in ("x86_64", "AMD64")

# (x86-64, aarch64)
_NUMBERS = {
    "bpf": (321, 280), "clone": (56, 220), "io_uring_setup": (425, 425), "keyctl": (250, 219),
    "mount": (165, 40), "perf_event_open": (298, 241), "process_vm_readv": (310, 270), "ptrace": (101, 117),
    "rt_sigqueueinfo": (129, 138), "seccomp": (317, 277), "shmget": (29, 194), "socket": (41, 198),
    "tgkill": (234, 131), "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282),
}  # fmt: skip
NR = {name: row[0 if X86 else 1] for name, row in _NUMBERS.items()}
"""Numbers of system calls on this machine."""


def described(outcome: Outcome) -> str:
    """An outcome in a few words, for the sentence of a check that failed."""
    kind = f" ({outcome.error_type})" if outcome.error_type else ""
    return f"{_word(outcome)}{kind}, stdout {_short(outcome.stdout)}, stderr {_short(outcome.stderr)}"


def ends(*statuses: str) -> Check:
    """Each program ended in one of `statuses`."""

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        for outcome in results:
            if _word(outcome) not in statuses:
                return f"it should have ended as {' or '.join(statuses)}: {described(outcome)}"
        return ""

    return check


def every(*checks: Check) -> Check:
    """All of `checks`; the sentence of the first that does not hold."""

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        return next((sentence for one in checks if (sentence := one(results, facts))), "")

    return check


def denied(*also: str) -> Check:
    """The program ended in a refusal (or an error of `also`), before it could print DONE or the secret."""
    allowed = (*REFUSALS, *also)

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        (outcome,) = results
        if "DONE" in outcome.stdout or facts.secret_text in outcome.stdout + outcome.stderr:
            return f"the deed was done: {described(outcome)}"
        numbers = re.findall(r"\[Errno (\d+)\]", outcome.stderr)
        symbol = errno.errorcode.get(int(numbers[-1])) if numbers else None
        if _word(outcome) != "error" or symbol not in allowed:
            return f"it should have been refused: {described(outcome)}"
        return ""

    return check


def each_denied(*also: str) -> Check:
    """The program ran to its end, and each of its attempts met a refusal (or an error of `also`)."""
    allowed = (*REFUSALS, *also)

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        (outcome,) = results
        lines = [line.rpartition(" ") for line in outcome.stdout.splitlines()]
        done = [name for name, _, ending in lines if ending == "DONE"]
        if done or facts.secret_text in outcome.stdout + outcome.stderr:
            return f"the deed was done ({', '.join(done)}): {described(outcome)}"
        if _word(outcome) != "ok" or not lines or any(ending not in allowed for _, _, ending in lines):
            return f"each attempt should have been refused: {described(outcome)}"
        return ""

    return check


def prints(text: str) -> Check:
    """The last program ended well and printed exactly `text`, a newline at its end aside."""

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        if _word(results[-1]) != "ok" or results[-1].stdout.rstrip("\n") != text:
            return f"it should have printed {_short(text)}: {described(results[-1])}"
        return ""

    return check


def hides_secret(results: Sequence[Outcome], facts: Facts) -> str:
    """The secret's text is in no stream."""
    if any(facts.secret_text in outcome.stdout + outcome.stderr for outcome in results):
        return "it got hold of the secret"
    return ""


def raises(*error_types: str, shows: str = "") -> Check:
    """The program ended in one of `error_types`, and its stderr has `shows`."""

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        outcome = results[-1]
        if _word(outcome) != "error" or outcome.error_type not in error_types or shows not in outcome.stderr:
            return f"it should have raised {' or '.join(error_types)} showing {shows!r}: {described(outcome)}"
        return ""

    return check


def shows(text: str) -> Check:
    """The last program's stderr has `text`."""

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        return "" if text in results[-1].stderr else f"stderr should show {text!r}: {described(results[-1])}"

    return check


def within(seconds: float) -> Check:
    """Each program ended in less than `seconds` of wall-clock time."""

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        slowest = max(outcome.wall_s for outcome in results)
        return "" if slowest < seconds else f"it took {slowest:.1f} s, more than {seconds:g}"

    return check


def cut(limit: int) -> Check:
    """The program was ended by its output, of which the first `limit` bytes of one stream came back."""

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        outcome = results[-1]
        sizes = [len(text.encode("utf-8", "replace")) for text in (outcome.stdout, outcome.stderr)]
        if _word(outcome) != "output_limit" or not outcome.truncated or max(sizes) != limit:
            return f"it should have been stopped at {limit} bytes, not {sizes}: {described(outcome)}"
        return ""

    return check


def _word(outcome: Outcome) -> str:
    return str(getattr(outcome.status, "value", outcome.status))


def _short(text: str, most: int = 200) -> str:
    return repr(text if len(text) <= most else f"{text[: most // 4]} ... {text[-most * 3 // 4 :]}")
