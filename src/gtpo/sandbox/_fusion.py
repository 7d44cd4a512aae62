"""Builds the request to a SandboxFusion server for one program, and interprets its answer.

The API follows that project's `sandbox/server/sandbox_api.py` and `sandbox/runners/base.py`: a process that ended by
itself is "Finished" whatever its return code; "Error" is a failure of the server, not of the program.
"""

from __future__ import annotations

import base64
import json
import math
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import httpx

from gtpo._http import ask, retry_after_s
from gtpo.errors import SandboxError
from gtpo.sandbox.base import ExecResult, Limits, Status
from gtpo.sandbox.preload import needs_science

_RETRIED = {408, 425, 429}
_ANSWER_BYTES = 64 << 20
_KEPT_BYTES = (1 << 20) - 256
_HEADROOM_MB = 256
_NOTE_CHARS = 500
_REPORT = re.compile(r" (ok|error|memory|output_limit|tool_failure) (\d{1,9}\.\d\d\d) (\d{1,12}) (.*)")


class RetryableError(Exception):
    """A failure of the server after which a retry may succeed, `wait_s` seconds later or more."""

    def __init__(self, cause: str, wait_s: float = 0.0) -> None:
        super().__init__(cause[:_NOTE_CHARS])
        self.wait_s = wait_s


class NotBegunError(RetryableError):
    """The script reports that it could not run the program; a program that overwrites the report can claim this too."""


@dataclass(frozen=True)
class Ended:
    """How the process on the server ended; `code` is None if the server ended it at its time limit."""

    code: int | None
    stdout: str
    stderr: str
    wall_s: float


def script(code: str, word: str, limits: Limits, seed: int | None) -> str:
    """Returns a plain Python script that runs the program like the local sandbox.

    Args:
        code: source code of the program.
        word: first word of the report that the script writes at the end of stderr.
        limits: limits of the program.
        seed: seed for the random number generators; None for fresh randomness.
    """
    main, snippet = _sources()
    program = base64.b64encode(code.encode("utf-8", "surrogatepass")).decode()
    output_bytes = min(limits.output_bytes, _KEPT_BYTES)
    values = (snippet, program, word, limits.cpu_s, limits.memory_mb, output_bytes, seed)
    # The program is encoded there; the hint leads `gtpo sandbox serve` to its server with numpy loaded.
    hint = "# import numpy\n" if needs_science(code) else ""
    return f"{hint}{main}\n\nmain{values!r}\n"


def request(text: str, limits: Limits, compile_timeout_s: float) -> dict[str, Any]:
    """Returns the body of a POST to `/run_code`.

    The script limits memory itself; the server's own limit is a second safeguard, with room for the interpreter.
    """
    return {
        "code": text,
        "language": "python",
        "compile_timeout": compile_timeout_s,
        "run_timeout": limits.wall_s,
        "memory_limit_MB": limits.memory_mb + _HEADROOM_MB,
        "stdin": "",
    }


def fetch(url: str, payload: Mapping[str, Any] | None, headers: Mapping[str, str], timeout_s: float) -> bytes:
    """Sends a POST, or a GET without a payload, and returns the body of the answer.

    Raises:
        RetryableError: the server does not answer, or asks to try later.
        SandboxError: the server refuses the request.
    """
    try:
        answer = ask(
            "GET" if payload is None else "POST",
            url,
            timeout_s=timeout_s,
            document=payload,
            headers={"Accept": "application/json", **headers},
            most_bytes=_ANSWER_BYTES,
        )
    except httpx.TransportError as error:
        raise RetryableError(f"{url}: no answer ({type(error).__name__}: {error})") from error
    except httpx.InvalidURL as error:
        raise SandboxError(f"{url}: not a valid URL ({error})") from error
    status = answer.status_code
    if status == 200:
        return answer.content
    if 300 <= status < 400:
        raise SandboxError(
            f"{url}: HTTP status {status}, a redirect to {answer.headers.get('Location')}; use that URL instead"
        )
    problem = f"{url}: HTTP status {status}: {answer.text[:_NOTE_CHARS]}"
    if status in _RETRIED or status >= 500:
        raise RetryableError(problem, retry_after_s(answer.headers.get("Retry-After")))
    raise SandboxError(problem)


def ended(body: bytes) -> Ended:
    """Parses the server's answer.

    Raises:
        RetryableError: the answer is unreadable, or says that the server failed.
    """
    try:
        answer = json.loads(body)
        status, run = answer["status"], answer["run_result"]
        if status == "SandboxError":
            raise RetryableError(f"SandboxError: {answer.get('message')}")
        number = None if run["status"] == "TimeLimitExceeded" else int(run["return_code"])
        stdout, stderr = run["stdout"] or "", run["stderr"] or ""
        if status not in ("Success", "Failed") or not isinstance(stdout, str) or not isinstance(stderr, str):
            raise ValueError("not an answer to /run_code")
        wall_s = float(run["execution_time"] or 0.0)
        if not math.isfinite(wall_s):
            raise ValueError(f"execution_time is {wall_s}")
        return Ended(number, stdout, stderr, wall_s)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RetryableError(f"unreadable answer ({type(error).__name__}: {error}): {body[:200]!r}") from error


def result(end: Ended, limits: Limits, word: str) -> ExecResult:
    """Returns the result of the program, by the streams' length, the server's clock, the report and the return code.

    Raises:
        NotBegunError: the script reports that it failed outside the program.
    """
    before, begun, after = end.stderr.partition(f"{word} begun\n")
    said, found, tail = (before + after if begun else end.stderr).rpartition(word)
    report = _REPORT.match(tail) if found else None
    status, cpu_s, rss_kib, detail = report.groups() if report else ("", "0", "0", "")
    most = min(limits.output_bytes, _KEPT_BYTES)
    (stdout, more_out), (stderr, more_err) = _cut(end.stdout, most), _cut(said if found else before + after, most)
    error_type, note = detail if detail.isidentifier() else None, ""
    if cut := more_out or more_err or status == "output_limit":
        status, error_type, note = "output_limit", None, f"stopped: more than {most} bytes of output"
    elif end.code is None:
        status, error_type, note = "timeout", None, f"timed out: more than {limits.wall_s:g} s of running time"
    elif status == "tool_failure" and begun:  # the program itself may have written that
        status, error_type = "error", None
    elif status == "tool_failure":
        raise NotBegunError(f"the program could not be run there: {detail}")
    elif signal_name := "" if status else _signal_name(end.code):
        status = "crashed"
        if signal_name == "SIGXCPU":
            status, note = "timeout", f"timed out: more than {limits.cpu_s:g} s of processor time"
        else:
            stderr += f"the process was ended by {signal_name}\n"
    elif not status and end.code != 0:
        error_type = _last_error(stderr)
        status = "memory" if error_type and error_type.endswith("MemoryError") else "error"
    return ExecResult(
        Status(status or "ok"), stdout, stderr, end.wall_s, error_type, cut, note, float(cpu_s), int(rss_kib) / 1024
    )


def _signal_name(code: int) -> str:
    """The signal in a return code, as Python (-11) or a shell (139) puts it; "" if there is none."""
    number = -code if code < 0 else code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}" if code < 0 else ""


def _last_error(stderr: str) -> str | None:
    """Class name at the start of a traceback's last line; a "MemoryError" alone comes from the interpreter."""
    last = stderr.rstrip().rpartition("\n")[2]
    name = last.partition(":")[0].rpartition(".")[2]
    is_error = name.isidentifier() and ("Traceback (most recent call last)" in stderr or name == "MemoryError")
    return name if is_error else None


def _cut(text: str, most: int) -> tuple[str, bool]:
    """Returns at most `most` bytes of the text, and whether there were more."""
    data = text.encode("utf-8", "replace")
    return data[:most].decode("utf-8", "replace"), len(data) > most


@cache
def _sources() -> tuple[str, str]:
    """The text of `_remote_main.py`, and that of `_child/snippet.py` in base64."""
    folder = files("gtpo.sandbox")
    snippet = base64.b64encode((folder / "_child" / "snippet.py").read_bytes()).decode()
    return (folder / "_remote_main.py").read_text(encoding="utf-8"), snippet
