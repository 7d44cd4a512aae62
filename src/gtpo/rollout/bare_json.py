"""Calls as Llama 3 writes them: a turn that is JSON, or Python after `<|python_tag|>`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gtpo.rollout.call_syntax import foreign_call, is_call, json_call, scan_json
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.types import InvalidCall, ToolCall

PYTHON_TAG = "<|python_tag|>"
EXPECTED = '{"name": ..., "parameters": {...}}'
_START = re.compile(r'\{\s*"(?:name|type|function|id)"\s*:')
_BUILT_IN = re.compile(r"(\w+)\.call\((.*)\)\s*", re.DOTALL)


def read_bare_calls(text: str, specs: Sequence[ToolSpec]) -> tuple[ToolCall | InvalidCall, ...]:
    """The calls of a turn's text, valid and invalid, in order.

    JSON calls may follow one another, with semicolons, commas or text between them. After `<|python_tag|>` there may
    also be a program, which is a call of the tool `python`.
    """
    before, tagged, after = text.partition(PYTHON_TAG)
    body = after if tagged else before
    calls: list[ToolCall | InvalidCall] = []
    at = 0
    while start := _START.search(body, at):
        if not calls and (foreign := foreign_call(body[: start.start()], EXPECTED, specs)):
            return foreign
        try:
            value, at = scan_json(body, start.start())
        except ValueError as error:
            calls.append(InvalidCall(f"the call is not valid JSON ({error}); write it as {EXPECTED}"))
            break
        if is_call(value, specs):
            calls.append(json_call(value, specs))
    if calls or not tagged:
        return tuple(calls) or foreign_call(text, EXPECTED, specs)
    python = next((spec for spec in specs if spec.is_python), None)
    if python is None or not body.strip() or _BUILT_IN.fullmatch(body):
        return (InvalidCall(f"what follows {PYTHON_TAG} is no call; write it as {EXPECTED}"),)
    return (python.call({python.required[0]: body.strip("\n")}),)
