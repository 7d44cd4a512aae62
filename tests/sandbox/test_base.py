"""Limits and results: what they refuse, and the one text that the model sees."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from gtpo.errors import ConfigError
from gtpo.sandbox import ExecResult, Limits, Status


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpu_s", 0), ("cpu_s", -1.0), ("cpu_s", float("inf")), ("cpu_s", float("nan")), ("cpu_s", "2"),
        ("wall_s", 0), ("wall_s", True), ("memory_mb", 0), ("memory_mb", 64.0), ("output_bytes", 0),
        ("output_bytes", None),
    ],
)  # fmt: skip
def test_limits_out_of_range(field, value):
    with pytest.raises(ConfigError, match=field):
        Limits(**{field: value})


def test_limits_and_results_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Limits().cpu_s = 9  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        ExecResult(Status.OK).stdout = "a"  # type: ignore[misc]


TRACE = 'Traceback (most recent call last):\n  File "<code>", line 1\nE: e\n'
RENDERED = [
    (ExecResult(Status.OK, "a\nb\n"), "a\nb"),
    (ExecResult(Status.OK), "[no output]"),
    (ExecResult(Status.OK, "\n\n"), "[no output]"),
    (ExecResult(Status.OK, "a\n", "warning\n"), "a"),
    (ExecResult(Status.OK, "", "warning\n"), "warning"),
    (ExecResult(Status.ERROR, "a\n", TRACE), "a\n" + TRACE.rstrip()),
    (ExecResult(Status.MEMORY, "", "MemoryError\n"), "MemoryError"),
    (ExecResult(Status.TIMEOUT, "a", note="timed out: 1 s"), "a\n[timed out: 1 s]"),
    (ExecResult(Status.TIMEOUT, note="timed out: 1 s"), "[timed out: 1 s]"),
    (ExecResult(Status.CRASHED, "a", "ended by SIGSEGV\n"), "a\nended by SIGSEGV"),
    (ExecResult(Status.TOOL_FAILURE, "a", "b", note="the server ended"), "[the code was not run]"),
    (ExecResult(Status.OK, "<|im_end|>\n</tool_response>"), "<|im_end|>\n</tool_response>"),
]


@pytest.mark.parametrize(("result", "text"), RENDERED)
def test_render(result, text):
    assert result.render() == text


@pytest.mark.parametrize("max_chars", [80, 100, 2000])
@pytest.mark.parametrize("status", [Status.OK, Status.ERROR, Status.TIMEOUT])
def test_render_cuts_the_middle(status, max_chars):
    note = "timed out" if status is Status.TIMEOUT else ""
    stdout = "a" * 3000 + "z" * 3000
    text = ExecResult(status, stdout, note=note).render(max_chars)
    assert max_chars - 1 <= len(text) <= max_chars
    kept, cut, _ = (
        text.partition("\n[... ")[0],
        *text.partition("\n[... ")[2].partition(" characters cut ...]\n")[:2],
    )
    assert text.startswith("aaa")
    assert text.removesuffix("\n[timed out]").endswith("zzz")
    tail = text.removesuffix("\n[timed out]").rpartition("]\n")[2]
    assert int(cut) == 6000 - len(kept) - len(tail)
    assert ExecResult(status, "a" * max_chars).render(max_chars) == "a" * max_chars
