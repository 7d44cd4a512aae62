"""`gtpo eval` against a stub server: right and wrong answers in every domain, kills, comparisons."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from openai_server import CompletionServer

from gtpo.cli import main
from gtpo.errors import ConfigError, DataError
from gtpo.evaluation import compare, load_result

PROBLEMS = [
    {"id": "m", "question": "What is 6*7?", "answer": "42"},
    {"id": "f", "question": "Half?", "answer": "\\frac{1}{2}"},
    {
        "id": "c",
        "question": "Where?\n(A) here\n(B) there",
        "answer": "B",
        "choices": ["here", "there"],
        "domain": "commonsense",
    },
    {"id": "y", "question": "Is it?", "answer": "yes", "domain": "commonsense"},
    {
        "id": "q",
        "question": "Who?",
        "answer": "Ada Lovelace",
        "aliases": ["Ada Lovelace", "Ada"],
        "domain": "commonsense",
    },
    {
        "id": "t",
        "question": "Write add.",
        "answer": "assert add(1, 2) == 3\n",
        "answer_kind": "tests",
        "domain": "code",
    },
    {"id": "l", "question": "f(1)?", "answer": "[1, 'a']", "answer_kind": "literal", "domain": "code"},
]
RIGHT = {
    "m": "\\boxed{42}",
    "f": "\\boxed{0.5}",
    "c": "\\boxed{B}",
    "y": "\\boxed{yes}",
    "q": "\\boxed{ada}",
    "t": "<answer>\ndef add(a, b):\n    return a + b\n</answer>",
    "l": "\\boxed{[1, 'a']}",
}
WRONG = {
    "m": "\\boxed{43}",
    "f": "\\boxed{2}",
    "c": "\\boxed{A}",
    "y": "\\boxed{no}",
    "q": "\\boxed{Charles Babbage}",
    "t": "<answer>\ndef add(a, b):\n    return a - b\n</answer>",
    "l": "\\boxed{[1, 'b']}",
}
ID_OF = {row["question"]: row["id"] for row in PROBLEMS}


def chat(text):
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}


def asked(body):
    """The problem that a request is about."""
    return ID_OF[next(m["content"] for m in body["messages"] if m["role"] == "user")]


@pytest.fixture
def server():
    server = CompletionServer(lambda body: chat(server.says(body)))
    yield server
    server.stop()


@pytest.fixture
def problem_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    return path


def argv_of(server, model, problems, output, *more):
    argv = ["--model", model, "--problems", problems, "--tool_format", "fenced", "--backend", "server"]
    argv += ["--dialect", "openai", "--api", "chat", "--base_url", server.url, "--output", output, *more]
    return [str(arg) for arg in argv]


def evaluate(server, says, model, problems, output, *more):
    server.says = says
    assert main(["eval", *argv_of(server, model, problems, output, *more)]) == 0
    return load_result(output)


def test_gold_answers_score_one_and_wrong_ones_zero_in_every_domain(server, byte_model_dir, problem_file, tmp_path):
    right = evaluate(server, lambda body: RIGHT[asked(body)], byte_model_dir, problem_file, tmp_path / "right.json")
    wrong = evaluate(server, lambda body: WRONG[asked(body)], byte_model_dir, problem_file, tmp_path / "wrong.json")
    assert set(right["domains"]) == {"math", "commonsense", "code"}
    for name in right["domains"]:
        assert right["domains"][name]["scores"]["avg@1"]["value"] == 1.0
        assert wrong["domains"][name]["scores"]["avg@1"]["value"] == 0.0
    assert (right["pass_rate"], wrong["pass_rate"]) == (1.0, 0.0)
    assert all(sample["verdict"] for sample in wrong["samples"])
    prompts = right["protocol"]["system_prompts"]
    assert set(prompts) == {"math", "choice", "qa", "tests", "literal"}
    assert "<answer>" in prompts["tests"]
    assert "letter" in prompts["choice"]
    assert not right["samples"][0]["token_exact"], "a chat server gives no token ids"


def test_the_trace_with_its_tool_calls_scores_one(server, byte_model_dir, problem_file, tmp_path):
    def says(body):
        if body["messages"][-1]["content"].startswith("```output"):
            return RIGHT[asked(body)]
        return "```python\nprint(6 * 7)\n```"

    found = evaluate(server, says, byte_model_dir, problem_file, tmp_path / "r.json")
    assert found["pass_rate"] == 1.0
    assert found["calls_per_rollout"] == 1.0
    assert found["call_statuses"] == {"ok": 1.0}
    assert found["samples"][0]["turns"][0]["results"] == ["42"]


def test_without_tools_the_model_is_told_of_none_and_a_block_is_no_call(server, byte_model_dir, problem_file, tmp_path):
    text = "```python\n6*7\n```\n\\boxed{42}"
    argv = (byte_model_dir, problem_file, tmp_path / "r.json", "--tools", "none")
    found = evaluate(server, lambda body: text, *argv)
    assert found["calls_per_rollout"] == 0.0
    assert found["samples"][0]["passed"]
    assert found["protocol"]["rollout"]["tools"] == "none"
    assert "Python" not in found["protocol"]["system_prompts"]["math"]


def test_avg_pass_and_maj_at_k_by_hand(server, byte_model_dir, problem_file, tmp_path):
    """Four samples: 42, 0.5+41.5 by other words, 43 and 43."""
    answers = iter(["\\boxed{42}", "\\boxed{43}", "\\boxed{84/2}", "\\boxed{43.0}"])
    lock = threading.Lock()

    def says(body):
        with lock:
            return next(answers)

    (tmp_path / "one.jsonl").write_text(json.dumps(PROBLEMS[0]) + "\n")
    argv = (byte_model_dir, tmp_path / "one.jsonl", tmp_path / "r.json", "--samples", "4")
    scores = {name: e["value"] for name, e in evaluate(server, says, *argv)["scores"].items()}
    assert scores == {
        "avg@4": 0.5,
        "pass@2": pytest.approx(5 / 6),
        "pass@4": 1.0,
        "maj@2": pytest.approx((1 + 0 + 4 * 0.5) / 6),
        "maj@4": 0.5,
    }


def test_a_kill_loses_nothing_and_a_restart_repeats_nothing(server, byte_model_dir, tmp_path):
    count = 24
    rows = [{"id": f"p{i}", "question": f"{i}+1?", "answer": str(i + 1)} for i in range(count)]
    ID_OF.update({row["question"]: row["id"] for row in rows})
    problems = tmp_path / "many.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []

    def says(body):
        number = int(asked(body)[1:])
        seen.append(number)
        time.sleep(0.1 * number)
        return f"\\boxed{{{number + 1 + number % 2}}}"

    whole = evaluate(server, says, byte_model_dir, problems, tmp_path / "whole.json")
    assert sorted(seen) == list(range(count))
    seen.clear()
    output, journal = tmp_path / "killed.json", tmp_path / "killed.json.samples.jsonl"
    command = [sys.executable, "-m", "gtpo.cli", "eval", *argv_of(server, byte_model_dir, problems, output)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 5):
        assert time.monotonic() < deadline, "no sample was kept"
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = journal.read_bytes()
    assert not output.exists()
    done = {json.loads(line)["number"] for line in kept[: kept.rfind(b"\n")].splitlines()[1:]}
    assert 0 < len(done) < count
    journal.write_bytes(kept + b'{"number": 3, "passed"')  # cut in the middle of a line
    time.sleep(0.1 * count)  # requests of the killed process come to their end
    seen.clear()
    resumed = evaluate(server, says, byte_model_dir, problems, output)
    assert sorted(seen) == sorted(set(range(count)) - done)
    assert not journal.exists()
    whole["seconds"] = resumed["seconds"] = None
    assert resumed == whole


def test_what_was_begun_with_other_options_is_not_gone_on_with(server, byte_model_dir, problem_file, tmp_path, capsys):
    output = tmp_path / "r.json"
    journal = tmp_path / "r.json.samples.jsonl"
    server.says = lambda body: "\\boxed{1}"
    argv = argv_of(server, byte_model_dir, problem_file, output)
    assert main(["eval", *argv]) == 0
    assert main(["eval", *argv]) == 2
    assert "r.json exists" in capsys.readouterr().err
    header = {"protocol": {**load_result(output)["protocol"], "seed": 9}}
    journal.write_text(json.dumps(header) + "\n")
    assert main(["eval", *argv, "--overwrite", "true"]) == 2
    assert "protocol.seed: 9 and 0" in capsys.readouterr().err
    journal.write_text("{broken\n")
    assert main(["eval", *argv, "--overwrite", "true"]) == 2
    assert "r.json.samples.jsonl:1: broken JSON at column 2" in capsys.readouterr().err


def test_a_server_that_dies_leaves_what_was_verified(
    server, byte_model_dir, problem_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("gtpo.rollout.backends.openai.PATIENCE_S", 0.5, raising=False)
    output = tmp_path / "r.json"

    def script(body):
        if asked(body) == "m":
            return chat(RIGHT["m"])
        time.sleep(0.5)
        return 400, {"error": {"message": "the model went away"}}

    server.script = script
    assert main(["eval", *argv_of(server, byte_model_dir, problem_file, output)]) == 2
    assert "the model went away" in capsys.readouterr().err
    kept = [json.loads(line) for line in (tmp_path / "r.json.samples.jsonl").read_text().splitlines()]
    assert [record["problem_id"] for record in kept[1:]] == ["m"]
    server.script = lambda body: chat(RIGHT[asked(body)])
    server.bodies.clear()
    assert main(["eval", *argv_of(server, byte_model_dir, problem_file, output)]) == 0
    assert len(server.bodies) == len(PROBLEMS) - 1
    assert load_result(output)["pass_rate"] == 1.0


def test_a_comparison_is_paired_and_refuses_what_can_not_be_compared(
    server, byte_model_dir, problem_file, tmp_path, capsys
):
    names = {name: tmp_path / f"{name}.json" for name in ("right", "half", "other", "fewer")}
    half = {**WRONG, "m": RIGHT["m"], "q": RIGHT["q"], "t": RIGHT["t"]}
    evaluate(server, lambda body: RIGHT[asked(body)], byte_model_dir, problem_file, names["right"])
    evaluate(server, lambda body: half[asked(body)], byte_model_dir, problem_file, names["half"], "--seed", "5")
    evaluate(server, lambda body: half[asked(body)], byte_model_dir, problem_file, names["other"], "--max_turns", "3")
    evaluate(
        server, lambda body: half[asked(body)], byte_model_dir, problem_file, names["fewer"], "--max_problems", "3"
    )
    capsys.readouterr()
    assert main(["compare", str(names["half"]), str(names["right"])]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["overall"]["value"] == pytest.approx(4 / 7)
    assert found["overall"]["p_value"] == pytest.approx(2 / 16)
    assert found["domains"]["math"]["changed"] == 1
    assert found["notes"] == ["seed: 5 and 0"]
    assert "0.1250" in shown.err
    with pytest.raises(ConfigError, match=r"different protocols: rollout.max_turns: 8 and 3"):
        compare(names["right"], names["other"])
    with pytest.raises(ConfigError, match="4 are in the first only, 0 in the second only"):
        compare(names["right"], names["fewer"])
    changed = load_result(names["right"])
    changed["samples"][0]["answer"] = "41"
    names["other"].write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="problems that differ in their question or answer: 1, such as 'm'"):
        compare(names["right"], names["other"])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x.json: not a result of `gtpo eval`"):
        compare(names["right"], tmp_path / "x.json")


def test_benchmarks_bring_their_number_of_samples(server, byte_model_dir, tmp_path, capsys):
    for name in ("gsm8k", "aime24"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**PROBLEMS[0], "id": name}) + "\n")
    argv = argv_of(server, byte_model_dir, "aime24", tmp_path / "r.json", "--data_dir", tmp_path)
    server.says = lambda body: "\\boxed{42}"
    assert main(["eval", *argv]) == 0
    assert load_result(tmp_path / "r.json")["protocol"]["samples"] > 1
    argv = argv_of(server, byte_model_dir, "aime24", tmp_path / "s.json", "--data_dir", tmp_path)
    argv.insert(argv.index("aime24"), "gsm8k")
    assert main(["eval", *argv]) == 2
    assert "the usual number of samples per problem differs" in capsys.readouterr().err
    assert main(["eval", *argv, "--samples", "2"]) == 0
    assert set(load_result(tmp_path / "s.json")["sources"]) == {"gsm8k", "aime24"}


def test_a_users_own_verifier_and_instructions(server, byte_model_dir, problem_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_checks.py").write_text(
        "def polite(text, problem):\n    return 0.5 if 'please' in text else float('thanks' in text)\n"
    )
    (tmp_path / "say.yaml").write_text("./my_checks.py:polite: Be polite\nmath: Be polite\n")
    argv = (byte_model_dir, problem_file, tmp_path / "r.json", "--verifier", "./my_checks.py:polite")
    argv += ("--instructions", tmp_path / "say.yaml")
    found = evaluate(server, lambda body: "thanks" if asked(body) == "m" else "please", *argv)
    assert found["pass_rate"] == pytest.approx(1 / 7)
    assert found["scores"]["score"]["value"] == pytest.approx(4 / 7)
    assert found["protocol"]["system_prompts"]["./my_checks.py:polite"].endswith(
        "Be polite and make no call in that turn."
    )
