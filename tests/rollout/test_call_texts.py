"""Texts of turns as models write them, and their calls: the code of each valid one, None for an invalid one."""

from __future__ import annotations

import json

import pytest

from gtpo.rollout import get_format
from gtpo.types import InvalidCall, ToolCall

PLAIN = '{"name": "python", "arguments": {"code": "1+1"}}'


def tagged(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def coded(code: str) -> str:
    return tagged(json.dumps({"name": "python", "arguments": {"code": code}}))


TAGGED = [
    *((f"{mark} in a string", coded(f"print('{mark}')"), [f"print('{mark}')"])
      for mark in ("</tool_call>", "<tool_call>", "</think>", "<think>")),
    ("all of them after a thought", f"<think>a</think>{coded('</think><tool_call></tool_call>')}",
     ["</think><tool_call></tool_call>"]),
    ("a thought after the call", f"{tagged(PLAIN)}<think>b</think>", ["1+1"]),
    ("an open thought after the call", f"{tagged(PLAIN)}<think>b", ["1+1"]),
    ("a draft in a thought after the call", f"{tagged(PLAIN)}<think>{coded('2')}</think>", ["1+1"]),
    ("thoughts between calls", f"<think>a</think>{coded('1')}<think>b</think>{coded('2')}", ["1", "2"]),
    ("a draft that prints the end of a thought", f"<think>{coded(chr(39) + '</think>' + chr(39))}</think>4", []),
    ("a thought that began before the text", f"{coded('0')}</think>{coded('1')}", ["1"]),
    ("arguments as a string", tagged('{"name": "python", "arguments": "{\\"code\\": \\"1+1\\"}"}'), ["1+1"]),
    ("parameters", tagged('{"name": "python", "parameters": {"code": "1+1"}}'), ["1+1"]),
    ("further keys", tagged('{"id": "c1", "type": "function", "name": "python", "arguments": {"code": "1+1"}}'),
     ["1+1"]),
    ("within function", tagged(f'{{"type": "function", "function": {PLAIN}}}'), ["1+1"]),
    ("a real line break and tab", tagged('{"name": "python", "arguments": {"code": "if 1:\n\t2"}}'), ["if 1:\n\t2"]),
    ("a fence within the tags", tagged(f"```json\n{PLAIN}\n```"), ["1+1"]),
    ("a fence without a label", tagged(f"```\n{PLAIN}\n```"), ["1+1"]),
    ("a fence around the tags", f"```json\n{tagged(PLAIN)}\n```", ["1+1"]),
    ("a brace missing", tagged(PLAIN[:-1]), [None]),
    ("a brace missing, a tag in the string", coded("print('</tool_call>')").replace('"}}', '"}'), [None]),
    ("a trailing comma", tagged(PLAIN[:-1] + ",}"), [None]),
    ("single quotes", tagged(PLAIN.replace('"', "'")), [None]),
    ("typographic quotes", tagged(PLAIN.replace('"', "\u201c")), [None]),
    ("unescaped quotes", tagged('{"name": "python", "arguments": {"code": "print("a")"}}'), [None]),
    ("unescaped quotes around a tag", tagged('{"name": "python", "arguments": {"code": "print("</tool_call>")"}}'),
     [None]),
    ("the name twice", tagged(PLAIN.replace("python", "pythonpython")), [None]),
    ("two objects", tagged(f"{PLAIN}\n{PLAIN}"), [None]),
    ("nested too deeply", tagged('{"name": "python", "arguments": ' + "[" * 100_000), [None]),
    ("a valid call after a broken one", tagged("{") + tagged(PLAIN), [None, "1+1"]),
    ("opened and cut", "<tool_call>", [None]),
]  # fmt: skip

FENCED = [
    *((label, f"```{label}\n1+1\n```", ["1+1"])
      for label in ("python", "Python", "py", "python3", "python3.11", "{python}", "{.python}", "tool_code", " python",
                    'python title="a.py"', "python title='a'", "python:a.py", "python src/a.py",
                    "python {linenos=true}",
                    "python filename=a.py", '{.python .numberLines startFrom="1"}')),
    ("tildes", "~~~python\n1+1\n~~~", ["1+1"]),
    ("tildes around backticks", "~~~python\ns='''\n```\n'''\n~~~", ["s='''\n```\n'''"]),
    ("carriage returns", "```python\r\n1+1\r\n2\r\n```\r\n", ["1+1\n2"]),
    ("indented", "   ```python\n   if 1:\n       2\n   ```", ["if 1:\n    2"]),
    ("indented with a tab", "\t```python\n\t1+1\n\t```", ["1+1"]),
    ("prints a fence", "```python\nprint('```python')\n```", ["print('```python')"]),
    ("prints a fence on one line", "```python\nprint('```python 1 ```')\n```", ["print('```python 1 ```')"]),
    ("a fence within a string", "```python\ns='''\n```\n'''\ns\n```", ["s='''\n```\n'''\ns"]),
    ("prints the end of a thought", "```python\nprint('</think>')\n```", ["print('</think>')"]),
    ("the same after a thought", "<think>it's\n</think>\n```python\n'</think>'\n```", ["'</think>'"]),
    ("prints the tag of an answer", "```python\nprint('<answer>')\n```", ["print('<answer>')"]),
    ("in an answer", "<answer>\n```python\n1\n```\n</answer>", []),
    ("in an answer, not closed", "So <answer>```python\n1\n```", []),
    ("before an answer", "```python\n1\n```\n<answer>2</answer>", ["1"]),
    ("in a thought", "<think>\n```python\n1\n```\n</think>2", []),
    ("before a thought with a draft", "```python\n1\n```\n<think>\n```python\n2\n```\n</think>", ["1"]),
    ("a thought that began before the text", "```python\n0\n```\n</think>\n```python\n1\n```", ["1"]),
    ("code in place of a title", "```python x = 1\n```", [None]),
    ("a statement in place of a title", "```python import math\nmath.pi\n```", [None]),
    ("not closed", "```python\n1+1\n~~~", [None]),
    ("within a block of text", "```text\n```python\n```", []),
]  # fmt: skip

ELSEWHERE = [
    "<function=python>\n<parameter=code>\n1\n</parameter>\n</function>",
    "<|python_tag|>print(1)",
    '[TOOL_CALLS][{"name": "python", "arguments": {"code": "1"}}]',
    '<|channel|>commentary to=functions.python <|constrain|>json<|message|>{"code": "1"}',
    "python\n<arg_key>code</arg_key>\n<arg_value>1</arg_value>",
    '<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>python',
    '<|tool_calls_section_begin|><|tool_call_begin|>functions.python:0<|tool_call_argument_begin|>{"code": "1"}',
    '<minimax:tool_call>\n<invoke name="python">\n<parameter name="code">1</parameter>\n</invoke>',
    '<|tool_call_start|>[python(code="1")]<|tool_call_end|>',
    '<|START_ACTION|>[{"tool_name": "python", "parameters": {"code": "1"}}]<|END_ACTION|>',
    '<|tool_call>call:python{code:"1"}<tool_call|>',
    PLAIN,
]  # fmt: skip


def codes(calls):
    return [call.code if isinstance(call, ToolCall) else None for call in calls]


@pytest.mark.parametrize(("_", "text", "wanted"), TAGGED, ids=[row[0] for row in TAGGED])
def test_json_in_tags(_, text, wanted):
    assert codes(get_format("tool_call").parse(text)) == wanted


@pytest.mark.parametrize(("_", "text", "wanted"), FENCED, ids=[row[0] for row in FENCED])
def test_fenced_blocks(_, text, wanted):
    assert codes(get_format("fenced").parse(text)) == wanted


@pytest.mark.parametrize("name", ["tool_call", "fenced"])
@pytest.mark.parametrize("text", ELSEWHERE)
def test_a_call_in_another_familys_syntax_is_invalid_and_the_model_is_told_its_own(name, text):
    expected = {"tool_call": "write it as <tool_call>{", "fenced": "write it as a ```python block"}[name]
    (call,) = get_format(name).parse(f"Let me compute.\n{text}" if text != PLAIN else text)
    assert isinstance(call, InvalidCall)
    assert expected in call.reason
    assert get_format(name).parse(f"<think>{text}</think>4") == (), "a draft"


def test_tags_are_another_familys_in_a_fenced_turn_and_blocks_are_text_in_a_tagged_one():
    (call,) = get_format("fenced").parse(tagged(PLAIN))
    assert "write it as a ```python block" in call.reason
    assert get_format("tool_call").parse("For example:\n```python\n1\n```") == ()


def test_an_answer_that_mentions_nothing_of_the_kind_is_one():
    for text in ("1 < 2", "a [list]", "{}", '{"name": "x"}', "<b>7</b>", "f(x) = <x, x>"):
        for name in ("tool_call", "fenced"):
            assert get_format(name).parse(text) == ()


def test_the_cases_that_once_came_out_wrong(shared_data):
    lines = (shared_data / "verifier_cases.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [case for case in map(json.loads, lines) if case["set"] == "formats"]
    assert len(cases) == 48
    wrong = [
        case["kind"]
        for case in cases
        if codes(get_format(case["kind"].partition(":")[0]).parse(case["answer"])) != case["want_calls"]
    ]
    assert wrong == []
