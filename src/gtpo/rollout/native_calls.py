"""Words for what is wrong with a call that `renderers` could not read, and arguments that it would cut short."""

from __future__ import annotations

import re

from renderers.base import ParsedToolCall, ToolCallParseStatus

FAULTS = {
    ToolCallParseStatus.INVALID_JSON: "its arguments are not valid JSON",
    ToolCallParseStatus.UNCLOSED_BLOCK: "it was not closed",
    ToolCallParseStatus.MISSING_NAME: "it names no tool",
    ToolCallParseStatus.MALFORMED_STRUCTURE: "its structure is broken",
    ToolCallParseStatus.UNKNOWN_TOOL: "there is no such tool",
}
"""In words, after "the call can't be read: "."""
_IN_TAGS = {
    ("<parameter", "</parameter>"): re.compile(
        r"""<parameter(?:=|\ name=")([^>"]+)"?>\n?(.*?)\n?</parameter>(?=\s*(?:<parameter|</function>|</invoke>|\Z))""",
        re.DOTALL | re.VERBOSE,
    ),
    ("<arg_value>", "</arg_value>"): re.compile(
        r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>(?=\s*(?:<arg_key>|\Z))", re.DOTALL
    ),
}
"""How tags hold the arguments of a call, by the tags that open and close one."""


def whole_arguments(attempt: ParsedToolCall) -> object:
    """The arguments of a call; a string in tags extends to the closing tag that no other text follows."""
    arguments = attempt.arguments or {}
    if not isinstance(arguments, dict):
        return arguments
    for (opening, closing), pattern in _IN_TAGS.items():
        if attempt.raw.count(closing) > len(arguments) == attempt.raw.count(opening):
            found = {match[1].strip(): match[2] for match in pattern.finditer(attempt.raw)}
            arguments = {
                name: found.get(name, value) if isinstance(value, str) else value for name, value in arguments.items()
            }
    return arguments
