"""`--environment` in `gtpo eval` and `gtpo collect-traces`: an environment scores, and its dialogues become traces."""

from __future__ import annotations

import json

import pytest
from openai_server import CompletionServer

from gtpo.cli import main
from gtpo.evaluation import load_result
from gtpo.lab.tiny.model import make_model
from gtpo.rollout import ChatEncoder, get_format
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.training.data import load_traces

CODE = '''
class Doubling:
    """Asks for a number's double, once more if need be."""

    def reset(self, number, id, **columns):
        self.number, self.tries, self.done = number, 0, False
        return f" Double {number}."

    def hint(self) -> str:
        """Ask for a hint."""
        return f"{self.number} + {self.number}"

    def respond(self, message):
        self.tries += 1
        self.done = message == str(2 * self.number)
        return "Right." if self.done else "No." if self.tries < 2 else None

    def get_turn_reward(self):
        return -0.5 * (self.tries > 1)

    def get_reward(self):
        return float(self.done)
'''


@pytest.fixture
def files(tmp_path, tiny_tokenizer):
    (tmp_path / "doubling.py").write_text(CODE)
    rows = [{"id": f"p{n}", "question": "Hello!", "number": n} for n in (1, 2, 3)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=1).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def says(body):
    """Right at once for 1; after a hint and a mistake for 2; never for 3."""
    said = [message["content"] for message in body["messages"]]
    number = int(said[-1 - 2 * sum(m["role"] == "assistant" for m in body["messages"])].split("Double ")[1][0])
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    text = {1: ["2"], 2: ["```hint\n```", "3", "4"], 3: ["5", "5"]}[number][turn]
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}


@pytest.fixture
def argv(files):
    server = CompletionServer(says)
    yield [
        *("--model", str(files / "model"), "--problems", str(files / "problems.jsonl"), "--tool_format", "fenced"),
        *("--environment", f"{files}/doubling.py:Doubling", "--backend", "server", "--dialect", "openai"),
        *("--api", "chat", "--base_url", server.url),
    ]
    server.stop()


def test_an_evaluation_is_scored_by_the_environment(argv, files):
    assert main(["eval", *argv, "--output", str(files / "r.json")]) == 0
    found = load_result(files / "r.json")
    assert [sample["passed"] for sample in found["samples"]] == [True, True, False]
    assert [sample["stop_reason"] for sample in found["samples"]] == ["done", "done", "answer"]
    assert [len(sample["turns"]) for sample in found["samples"]] == [1, 3, 2]
    second = found["samples"][1]["turns"]
    assert [turn["results"] for turn in second] == [["2 + 2"], ["No."], ["Right."]]
    assert [turn.get("role", "tool") for turn in second] == ["tool", "user", "user"]
    assert found["samples"][1]["prompt"][-1]["content"] == "Hello! Double 2."
    assert found["rewards"]["reward"]["value"] == pytest.approx(2 / 3)
    assert found["rewards"]["turn_reward/Doubling"]["value"] == pytest.approx((0 - 0.5 - 0.5) / 3)
    assert found["protocol"]["rollout"]["environment"].endswith("doubling.py:Doubling")
    assert found["protocol"]["rollout"]["tools"] == "none"
    (prompt,) = found["protocol"]["system_prompts"].values()
    assert "hint" in prompt
    assert "boxed" not in prompt


def test_dialogues_that_pass_become_traces_that_the_encoder_takes(argv, files, tiny_tokenizer):
    output = files / "traces.jsonl"
    assert main(["collect-traces", *argv, "--output", str(output)]) == 0
    one, two = load_traces(output)
    assert [message["role"] for message in one] == ["system", "user", "assistant"]
    assert [message["role"] for message in two][1:] == ["user", "assistant", "tool", "assistant", "user", "assistant"]
    assert two[1]["content"] == "Hello! Double 2."
    hint = ToolSpec("hint", "Ask for a hint.", {}, (), ability="ask")
    trace = ChatEncoder(tiny_tokenizer, get_format("fenced", (hint,))).trace(two)
    assert [turn.text for turn in trace.turns] == ["```hint\n```", "3", "4"]
    assert [turn.observation and turn.observation.role for turn in trace.turns] == ["tool", "user", None]
