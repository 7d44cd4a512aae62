"""What is a call, what is an invalid one, and what the model is told: pinned case by case."""

from __future__ import annotations

import pytest

from gtpo.errors import ConfigError
from gtpo.rollout import FencedFormat, ToolCallFormat, get_format
from gtpo.types import InvalidCall, ToolCall


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


GOOD = '{"name": "python", "arguments": {"code": "print(1)"}}'

VALID_TOOL_CALLS = [
    ("one call", call(GOOD), ["print(1)"]),
    ("reasoning around it", "First\n" + call(GOOD) + "\nthen", ["print(1)"]),
    ("two calls", call(GOOD) + call('{"name":"python","arguments":{"code":"2"}}'), ["print(1)", "2"]),
    ("no white space", f"<tool_call>{GOOD}</tool_call>", ["print(1)"]),
    ("code with newlines and quotes", call('{"name":"python","arguments":{"code":"x=\\"a\\"\\nx"}}'), ['x="a"\nx']),
    ("code that raises is a valid call", call('{"name":"python","arguments":{"code":"1/0"}}'), ["1/0"]),
    ("code that does not parse is a valid call", call('{"name":"python","arguments":{"code":"(("}}'), ["(("]),
    ("after thinking", "<think>maybe " + call("{}") + "</think>" + call(GOOD), ["print(1)"]),
    ("no call", "The answer is \\boxed{3}.", []),
    ("a call in thoughts is a draft", "<think>" + call(GOOD) + "</think>\\boxed{1}", []),
    ("unfinished thoughts hold no call", "<think>" + call(GOOD), []),
]

INVALID_TOOL_CALLS = [
    ("unclosed", "<tool_call>\n" + GOOD, "not closed"),
    ("never opened", GOOD + "</tool_call>", "no <tool_call> before"),
    ("nested", "<tool_call><tool_call>" + GOOD + "</tool_call>", "inside another"),
    ("not JSON", call("print(1)"), "not valid JSON"),
    ("empty", call(""), "not valid JSON"),
    ("single quotes", call("{'name': 'python'}"), "not valid JSON"),
    ("a list", call(f"[{GOOD}]"), "JSON object"),
    ("unknown tool", call('{"name": "search", "arguments": {"code": "1"}}'), "no tool named 'search'"),
    ("no name", call('{"arguments": {"code": "1"}}'), "no tool named None"),
    ("no arguments", call('{"name": "python"}'), '"arguments" must be an object'),
    ("arguments as text", call('{"name": "python", "arguments": "1"}'), '"arguments" must be an object'),
    ("missing argument", call('{"name": "python", "arguments": {}}'), '"code" is missing'),
    ("surplus argument", call('{"name":"python","arguments":{"code":"1","timeout":9}}'), "not 'timeout'"),
    ("no JSON constant", call('{"name":"python","arguments":{"code":"1"},"id":NaN}'), "NaN is no JSON value"),
    ("code is a number", call('{"name":"python","arguments":{"code":1}}'), "must be a string"),
    ("empty code", call('{"name":"python","arguments":{"code":" \\n"}}'), "code is empty"),
]

VALID_FENCES = [
    ("one block", "```python\nprint(1)\n```", ["print(1)"]),
    ("reasoning around it", "Let me see.\n```python\n1+1\n```\nThat is it.", ["1+1"]),
    ("two blocks", "```python\n1\n```\n```py\n2\n```", ["1", "2"]),
    ("carriage returns", "```python\r\n1\r\n2\r\n```\r\n", ["1\n2"]),
    ("capitals and spaces", "  ```Python  \n1\n  ```", ["1"]),
    ("longer fence may hold shorter ones", "````python\ns='''\n```\n'''\n````", ["s='''\n```\n'''"]),
    ("an output block is no call", "```output\n3\n```", []),
    ("an unlabelled block is no call", "```\n3\n```", []),
    ("no call", "\\boxed{3}", []),
    ("inline code is no call", "the value `x` of `y`", []),
    ("a draft in thoughts", "<think>```python\n1\n```</think>\\boxed{1}", []),
]

INVALID_FENCES = [
    ("unclosed", "```python\nprint(1)", "not closed"),
    ("unclosed and empty", "```python\n", "not closed"),
    ("empty", "```python\n\n```", "code is empty"),
    ("white space only", "```python\n  \n```", "code is empty"),
    ("code on the fence's line", "```python print(1)\n```", "line after"),
    ("closed on the same line", "```python print(1)```", "line after"),
    ("fence in the middle of a line", "So ```python\n1\n```", "start of a line"),
    ("another language", "```bash\nls\n```", "no tool for bash"),
]


def ids(table):
    return [row[0] for row in table]


@pytest.mark.parametrize(("_", "text", "codes"), VALID_TOOL_CALLS, ids=ids(VALID_TOOL_CALLS))
def test_tool_call_format_finds_valid_calls(_, text, codes):
    assert ToolCallFormat().parse(text) == tuple(map(ToolCall, codes))


@pytest.mark.parametrize(("_", "text", "codes"), VALID_FENCES, ids=ids(VALID_FENCES))
def test_fenced_format_finds_valid_calls(_, text, codes):
    assert FencedFormat().parse(text) == tuple(map(ToolCall, codes))


@pytest.mark.parametrize(("_", "text", "reason"), INVALID_TOOL_CALLS, ids=ids(INVALID_TOOL_CALLS))
def test_tool_call_format_says_what_is_wrong(_, text, reason):
    first, *rest = ToolCallFormat().parse(text)
    assert isinstance(first, InvalidCall)
    assert reason in first.reason
    assert reason in first.observation
    assert not [c for c in rest if isinstance(c, InvalidCall)]


@pytest.mark.parametrize(("_", "text", "reason"), INVALID_FENCES, ids=ids(INVALID_FENCES))
def test_fenced_format_says_what_is_wrong(_, text, reason):
    (invalid,) = FencedFormat().parse(text)
    assert isinstance(invalid, InvalidCall)
    assert reason in invalid.reason


@pytest.mark.parametrize("fmt", [ToolCallFormat(), FencedFormat()], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("code", ["1+1", 'print("a")\nx = {"k": 1}\nx', "s = '</tool'\n# é ∑"])
def test_a_rendered_call_is_parsed_back(fmt, code):
    assert fmt.parse(fmt.render_call(code)) == (ToolCall(code),)


def test_invalid_calls_keep_their_place_among_valid_ones():
    calls = ToolCallFormat().parse(call(GOOD) + call("oops") + call(GOOD))
    assert [type(c) for c in calls] == [ToolCall, InvalidCall, ToolCall]


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="fenced, tool_call"):
        get_format("xml")
