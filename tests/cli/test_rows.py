"""Rows of the public form, and rows that need `--columns`, through each command that takes problems."""

from __future__ import annotations

import json

import pytest
from openai_server import CompletionServer

from gtpo.cli import main
from gtpo.evaluation import load_result
from gtpo.report import load

PUBLIC = [
    {"question": f"48/{i}?", "answer": f"It is 48/{i} = <<48/{i}={48 // i}>>{48 // i}.\n#### {48 // i}"} for i in (1, 2)
]
OTHER = [{"task": row["question"], "meta": {"gold": row["answer"][-2:]}, "worked": row["answer"]} for row in PUBLIC]
FUNCTION = """
def read(row):
    return {"question": row["task"], "answer": row["meta"]["gold"], "solution": row["worked"]}


def long(completions, meta, **columns):
    return [float(len(turns)) for turns in completions]
"""
FORMS = {
    "public": [],
    "columns": ["--columns", "question=task,answer=meta.gold,solution=worked"],
    "function": ["--columns", "./rows.py:read"],
}


@pytest.fixture(params=FORMS)
def rows(request, tmp_path, monkeypatch):
    """The options that a form of rows.jsonl needs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.py").write_text(FUNCTION)
    chosen = PUBLIC if request.param == "public" else OTHER
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return FORMS[request.param]


@pytest.fixture
def server():
    def script(body):
        number = int(body["messages"][-1]["content"].removeprefix("48/").removesuffix("?"))
        return 200, {"choices": [{"message": {"content": f"\\boxed{{{48 // number}}}"}, "finish_reason": "stop"}]}

    server = CompletionServer(script)
    yield server
    server.stop()


def test_eval_and_collect_read_them(rows, server, byte_model_dir, tmp_path):
    argv = ["--model", byte_model_dir, "--problems", "rows.jsonl", "--tool_format", "fenced", "--backend", "server"]
    argv += ["--dialect", "openai", "--api", "chat", "--base_url", server.url, *rows]
    assert main(["eval", *map(str, argv), "--output", "r.json"]) == 0
    assert load_result("r.json")["pass_rate"] == 1.0
    assert main(["collect-traces", *map(str, argv), "--output", "t.jsonl"]) == 0
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 2


def test_make_traces_reads_them(rows, tmp_path):
    argv = ["--solutions", "rows.jsonl", "--output", "t.jsonl", "--tool_format", "fenced", *rows]
    assert main(["make-traces", *argv]) == 0
    traces = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    last = [trace["messages"][-1]["content"] for trace in traces]
    assert last == ["The answer is \\boxed{48}.", "The answer is \\boxed{24}."]


def test_train_reads_them(rows, byte_model_dir, tmp_path):
    argv = ["--model", byte_model_dir, "--train_file", "rows.jsonl", "--tool_format", "fenced", "--run_dir", "run"]
    argv += ["--max_steps", 1, "--num_generations", 2, "--per_device_train_batch_size", 4, "--max_turn_tokens", 6]
    argv += ["--bf16", "false", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
    assert main(["train", *map(str, argv), *rows]) == 0
    assert set(load(tmp_path / "run").rollouts.answer) == {"48", "24"}


def test_rows_without_an_answer_train_where_functions_score(byte_model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.py").write_text(FUNCTION)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": r["task"], "meta": 1}) + "\n" for r in OTHER))
    argv = ["--model", byte_model_dir, "--train_file", "rows.jsonl", "--tool_format", "fenced", "--run_dir", "run"]
    argv += ["--max_steps", 1, "--num_generations", 2, "--per_device_train_batch_size", 4, "--max_turn_tokens", 6]
    argv += ["--bf16", "false", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
    assert main(["train", *map(str, argv)]) == 2
    assert "field 'answer': missing" in capsys.readouterr().err
    assert main(["train", *map(str, argv), "--reward_funcs", "./rows.py:long"]) == 0
    assert load(tmp_path / "run").rollouts.passed.all(), "each has at least one turn"


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ("task", "give pairs, question=COLUMN,answer=COLUMN, or a function"),
        ("label=task", "unknown field 'label'; known: id, question"),
        ("question=tasks", "no such column (there are: meta, task, worked)"),
        ("./rows.py:none", "can't be imported"),
        ("question=task,answer=worked", "no solution could be turned into a trace"),
    ],
)
def test_columns_that_can_not_be_used_are_refused(tmp_path, monkeypatch, capsys, columns, fault):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.py").write_text(FUNCTION)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OTHER))
    argv = ["--solutions", "rows.jsonl", "--output", "t.jsonl", "--tool_format", "fenced", "--columns", columns]
    assert main(["make-traces", *argv]) == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "t.jsonl").exists()
