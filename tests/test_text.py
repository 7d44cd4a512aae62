"""Texts of others on their way to a terminal, a tokenizer, a file."""

from __future__ import annotations

import ast
import json
import re
from collections import deque
from pathlib import Path

import pytest

import gtpo
from gtpo._text import each_text, for_terminal, well_formed
from gtpo.cli import main
from gtpo.evaluation import EvalProtocol, evaluate
from gtpo.rollout import ChatEncoder, FunctionTool, Prompts, RolloutEngine, get_format
from gtpo.tasks.problems import Problem, load_problems
from gtpo.tasks.verifiers import get_verifier
from gtpo.testing import ScriptedBackend

ODD = "a\ud800b\x1b]0;owned\x07\x9b31m\u202e\u2028\x00c"
SOURCES = Path(gtpo.__file__).parent
WRITES = {"print", "write"}
APART = (
    "_text.py",
    "_terminal.py",
    "completion.py",
    "_child",
    "_judge",
    "_remote_main.py",
    "_math_worker.py",
    "_tool_worker.py",
)
"""The one place with its tables and bars, a script for a shell, and where writing is not for a terminal."""


def test_what_a_terminal_would_obey_is_an_escape_and_words_of_any_language_are_kept():
    assert for_terminal("größe 数 العربية हिन्दी 🐍\n\tπ ≤ 3.2") == "größe 数 العربية हिन्दी 🐍\n\tπ ≤ 3.2"
    shown = for_terminal(ODD)
    assert shown == r"a\ud800b\x1b]0;owned\x07\x9b31m\u202e\u2028\x00c"
    assert shown.encode()
    assert for_terminal("progress\rover it\x7f\x08") == r"progress\rover it\x7f\x08"


def test_a_lone_surrogate_is_replaced_and_all_else_is_kept():
    assert well_formed(ODD) == ODD.replace("\ud800", "\ufffd")
    assert well_formed("\U0001f40d") == "\U0001f40d"
    assert each_text({"\ud800": ["\ud800", 1, None, ("x",)]}, well_formed) == {"\ufffd": ["\ufffd", 1, None, ["x"]]}


def test_nothing_is_printed_but_by_the_one_place():
    found = []
    for path in SOURCES.rglob("*.py"):
        if any(part in APART for part in path.parts):
            continue
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if re.search(r"print\(|sys\.std", text) else ():
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("print", "sys.stderr.write", "sys.stdout.write"):
                    found.append(f"{path.relative_to(SOURCES)}:{node.lineno}")
    assert found == []


def test_an_error_of_a_command_does_not_reach_the_terminal_raw(capsys, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": ODD, "question": "q", "answer": "1", "verifier": "no"}) + "\n")
    assert main(["eval", "--problems", str(path), "--model", "x"]) == 2
    shown = capsys.readouterr().err
    assert "a row cannot name the verifier" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e\ud800\x00")


def odd(word: str) -> str:
    """Return an odd text.

    Args:
        word: any.
    """
    return f"{word}{ODD}"


def test_odd_texts_of_data_tools_and_models_do_not_end_an_evaluation(tmp_path, qwen_tokenizer):
    """Ids, questions, system prompts, arguments, names of tools that there are not, results: all hold `ODD`."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": f"1{ODD}", "question": f"q{ODD}", "answer": "7", "more": [ODD]}) + "\n")
    problems = load_problems(path)
    assert "\ud800" not in problems[0].question + problems[0].id + problems[0].extras["more"][0]
    problems += [Problem(id=f"2{ODD}", question=f"r{ODD}", answer="7")]
    tool = FunctionTool(odd)
    tool_format = get_format("tool_call", [tool.spec])
    engine = RolloutEngine(ChatEncoder(qwen_tokenizer, tool_format), tool, prompts=Prompts(tool_format, f"s{ODD}"))
    calls = [json.dumps({"name": name, "arguments": {"word": ODD}}) for name in ("odd", f"x{ODD}")]
    turn = "".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
    backend = ScriptedBackend(
        qwen_tokenizer,
        {tuple(engine.encoder.prompt_ids(engine.prompts.messages(p))): [turn, "\\boxed{7}"] for p in problems},
    )
    verifier = get_verifier("math")
    try:
        found = evaluate(problems, engine, backend, verifier, EvalProtocol(), journal=tmp_path / "journal")
    finally:
        verifier.close()
    assert found.pass_rate == 1
    assert found.samples[0]["turns"][0]["statuses"] == ["ok", "invalid"]
    result = found.samples[0]["turns"][0]["results"][0]
    assert "\x1b]0;owned" in result, "the record keeps what the tool said"
    found.save(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["pass_rate"] == 1


def test_the_table_of_completions_is_made_printable():
    from gtpo.training.completions_table import make_printable

    logs = {"prompt": deque([[{"role": "user", "content": ODD}]], maxlen=1), "completion": deque([ODD], maxlen=1)}
    make_printable(logs)
    assert logs["completion"][0] == for_terminal(ODD)
    assert logs["prompt"][0] == [{"role": "user", "content": for_terminal(ODD)}]


@pytest.mark.parametrize("change", [well_formed, for_terminal])
def test_hostile_texts_are_changed_in_linear_time(change):
    assert len(change("\ud800\x1b" * 10**5)) >= 2 * 10**5
