"""Traces from rollouts: which are kept, and that cold start reads them as the ids that were sampled."""

from __future__ import annotations

import json

import pytest
from openai_server import CompletionServer

from gtpo.cli import main
from gtpo.errors import ConfigError
from gtpo.rollout import ChatEncoder, Prompts, get_format
from gtpo.tasks.problems import Problem
from gtpo.traces.from_rollouts import traces_of
from gtpo.training.data import load_traces

PROMPTS = Prompts(get_format("fenced"))
PROBLEM = Problem("p", "?", "1")


def block(code):
    return f"```python\n{code}\n```"


def sample(*turns, passed=True, invalid=0, tokens=10, problem="p"):
    """Each turn: its text and the statuses of its calls."""
    return {
        "problem_id": problem,
        "passed": passed,
        "invalid_calls": invalid,
        "sampled_tokens": tokens,
        "turns": [{"text": text, "statuses": list(s), "results": [f"<{x}>" for x in s]} for text, s in turns],
    }


SHORT = sample((block("1"), ["ok"]), ("\\boxed{1}", []), tokens=5)
LONG = sample((block("1"), ["ok"]), (block("2"), ["ok"]), ("\\boxed{1}", []))
REPAIRED = sample((block("1/0"), ["error"]), (block("1"), ["ok"]), ("\\boxed{1}", []), tokens=20)


def chosen(samples, **options):
    found = traces_of(samples, [PROBLEM], PROMPTS, **options)
    return [trace["messages"][2]["content"] for trace in found.traces], dict(found.left_out)


def test_only_rollouts_that_passed_without_invalid_calls_are_kept():
    samples = [sample(("no", []), passed=False), sample((block("1"), ["invalid"]), ("x", []), invalid=1), SHORT]
    assert chosen(samples) == ([block("1")], {"not passed": 1, "invalid calls": 1})
    assert chosen(samples, max_invalid_calls=1, per_problem=9)[1] == {
        "not passed": 1,
        "with the same code as another one of the problem": 1,
    }


def test_the_same_code_is_kept_once():
    again = sample((f"In other words\n{block('1 ')}", ["ok"]), ("So \\boxed{1}", []))
    texts, left_out = chosen([SHORT, again, LONG], per_problem=9)
    assert len(texts) == 2
    assert left_out == {"with the same code as another one of the problem": 1}


@pytest.mark.parametrize(
    ("prefer", "first"),
    [
        ((), SHORT),
        (("turns",), LONG),
        (("repaired",), REPAIRED),
        (("short",), SHORT),
        (("turns", "repaired"), REPAIRED),
    ],
)
def test_preferences_decide_between_the_rollouts_of_a_problem(prefer, first):
    found = traces_of([SHORT, LONG, REPAIRED], [PROBLEM], PROMPTS, prefer=prefer)
    (trace,) = found.traces
    assert trace["messages"][2]["content"] == first["turns"][0]["text"]
    assert trace["repaired"] == (first is REPAIRED)
    assert found.left_out == {"beyond per_problem traces of the problem": 2}
    assert trace["messages"][:2] == PROMPTS.messages(PROBLEM)


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match="prefer: unknown best; known: turns, repaired, short"):
        traces_of([], [], PROMPTS, prefer=("best",))
    with pytest.raises(ConfigError, match="per_problem must be at least 1"):
        traces_of([], [], PROMPTS, per_problem=0)


def test_collect_writes_traces_that_cold_start_reads_as_the_sampled_ids(
    byte_model_dir, byte_tokenizer, tmp_path, capsys
):
    sampled = {}

    def script(body):
        context = byte_tokenizer.decode(body["prompt"])
        number = int(context.split("+1?")[0].rpartition("\n")[2])
        text = f"\\boxed{{{number + number % 2}}}" if "```output" in context else block(f"{number}+1")
        ids = [*byte_tokenizer.encode(text), byte_tokenizer.eos_token_id]
        sampled[number] = [*body["prompt"], *ids]
        logprobs = {"token_logprobs": [-0.5] * len(ids)}
        return 200, {"choices": [{"text": text, "finish_reason": "stop", "token_ids": ids, "logprobs": logprobs}]}

    problems, output = tmp_path / "p.jsonl", tmp_path / "new" / "traces.jsonl"
    problems.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(8)))
    server = CompletionServer(script, max_model_len=4096)
    argv = ["--model", byte_model_dir, "--problems", problems, "--tool_format", "fenced", "--backend", "server"]
    argv = [str(arg) for arg in [*argv, "--base_url", server.url, "--output", output, "--samples", "2"]]
    assert main(["collect-traces", *argv, "--prefer", "best"]) == 2
    assert "prefer: unknown best" in capsys.readouterr().err
    assert not server.bodies, "refused before any work"
    assert main(["collect-traces", *argv]) == 0
    assert main(["collect-traces", *argv]) == 2, "never overwritten"
    server.stop()
    said = capsys.readouterr().err
    assert "4 traces in" in said
    assert "8 not passed, 4 with the same code as another one of the problem" in said
    assert [path.name for path in output.parent.iterdir()] == ["traces.jsonl"]
    encoder = ChatEncoder(byte_tokenizer, get_format("fenced"))
    for messages, number in zip(load_traces(output), (1, 3, 5, 7), strict=True):
        trace = encoder.trace(messages)
        assert [*trace.prompt_ids, *trace.completion_ids] == sampled[number]
