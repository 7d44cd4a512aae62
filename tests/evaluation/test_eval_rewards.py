"""Rewards in `gtpo eval` and `gtpo collect-traces`: the words of training, in result, journal and comparison."""

from __future__ import annotations

import json

import pytest
from openai_server import CompletionServer
from test_eval import argv_of, chat

from gtpo.cli import main
from gtpo.evaluation import load_result
from gtpo.evaluation.statistics import mean_of
from gtpo.scoring import Scorer
from gtpo.tasks.problems import Problem
from gtpo.types import StopReason, Trajectory, Turn

PROBLEMS = [{"id": f"p{i}", "question": f"{i}+1?", "answer": str(i + 1), "level": i} for i in range(4)]
REWARDS = """
def near(completions, answer, **columns):
    said = [turns[-1]["content"] for turns in completions]
    return [1.0 if f"{{{a}}}" in text else 0.25 for text, a in zip(said, answer)]


async def easy(prompts, completions, completion_ids, level, trainer_state, log_extra, **columns):
    assert [p[-1]["content"] for p in prompts] == columns["question"]
    return [None if one == 3 else float(one) for one in level]


def brief(trajectories, level, **columns):
    return [[-float(one)] * len(t.turns) for t, one in zip(trajectories, level)]


def bad(completions, **columns):
    return [float("nan")] * len(completions)


def never(completions, **columns):
    return [None] * len(completions)


def half(answer_text, problem):
    return 0.5
"""


@pytest.fixture
def server():
    server = CompletionServer(lambda body: chat(server.says(int(body["messages"][-1]["content"].split("+")[0]))))
    server.says = lambda number: f"\\boxed{{{number + 1 + number % 2}}}"  # right where the number is even
    yield server
    server.stop()


@pytest.fixture
def argv(server, byte_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))

    def make(output, *more):
        return argv_of(server, byte_model_dir, "p.jsonl", output, *more)

    return make


FUNCTIONS = ("--reward_funcs", "./rewards.py:near", "./rewards.py:easy", "auto", "--reward_weights", "1", "0.5", "0.25")
TURNS = ("--turn_reward_funcs", "./rewards.py:brief", "execution_feedback", "--turn_reward_weights", "0.1", "1")


def test_rewards_weights_threshold_and_turn_rewards_by_hand(argv):
    assert main(["eval", *argv("r.json", *FUNCTIONS, *TURNS, "--success_threshold", "1.25")]) == 0
    found = load_result("r.json")
    near, easy, verified = [1, 0.25, 1, 0.25], [0, 1, 2, None], [1, 0, 1, 0]
    wanted = [n + 0.5 * (e or 0) + 0.25 * v for n, e, v in zip(near, easy, verified, strict=True)]
    assert [sample["reward"] for sample in found["samples"]] == wanted
    assert [sample["passed"] for sample in found["samples"]] == [True, False, True, False]
    assert found["samples"][3]["rewards"] == {"near": 0.25, "easy": None, "verified": 0.0}
    assert found["samples"][2]["turn_rewards"] == {"brief": [-0.2], "execution_feedback": [0.0]}
    assert {name: mean["value"] for name, mean in found["rewards"].items()} == pytest.approx(
        {
            "reward": sum(wanted) / 4,
            "reward/near": 0.625,
            "reward/easy": 1.0,
            "reward/verified": 0.5,
            "turn_reward/brief": -0.15,
            "turn_reward/execution_feedback": 0.0,
        }
    )
    assert found["pass_rate"] == 0.5
    assert found["protocol"]["rewards"]["success_threshold"] == 1.25
    assert found["unscored"] == 0


def test_the_verdict_alone_leaves_no_rewards_and_the_reward_is_whether_it_passed(argv):
    assert main(["eval", *argv("r.json")]) == 0
    found = load_result("r.json")
    assert found["rewards"] == {} == found["protocol"]["rewards"]
    assert [sample["reward"] for sample in found["samples"]] == [1.0, 0.0, 1.0, 0.0]
    assert main(["eval", *argv("s.json", "--reward_funcs", "auto")]) == 0
    assert [s["passed"] for s in load_result("s.json")["samples"]] == [s["passed"] for s in found["samples"]]


@pytest.mark.parametrize(("more", "passed", "reward"), [((), 0.0, None), (("--graded", "true"), 1.0, 0.5)])
def test_a_graded_verifier_passes_by_the_threshold(argv, more, passed, reward):
    options = ("--verifier", "./rewards.py:half", "--success_threshold", "0.5", *more)
    assert main(["eval", *argv("r.json", *options)]) == 0
    found = load_result("r.json")
    assert found["pass_rate"] == passed
    assert found["scores"]["score"]["value"] == 0.5
    assert (found["rewards"].get("reward") or {"value": None})["value"] == reward


def test_rollouts_that_no_function_applies_to_are_counted_and_do_not_pass(argv):
    assert main(["eval", *argv("r.json", "--reward_funcs", "./rewards.py:never")]) == 0
    found = load_result("r.json")
    assert (found["unscored"], found["pass_rate"], found["rewards"]) == (4, 0.0, {})


def test_rows_without_an_answer_are_fine_where_functions_score(argv, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "3+1?", "level": 2}) + "\n")
    assert main(["eval", *argv("r.json", "--reward_funcs", "./rewards.py:easy")]) == 0
    (sample,) = load_result("r.json")["samples"]
    assert (sample["reward"], sample["passed"], sample["answer"]) == (2.0, True, "")


def test_a_comparison_has_the_reward_and_refuses_other_rewards(argv, server, capsys):
    assert main(["eval", *argv("a.json", *FUNCTIONS)]) == 0
    server.says = lambda number: f"\\boxed{{{number + 1}}}"
    assert main(["eval", *argv("b.json", *FUNCTIONS)]) == 0
    assert main(["eval", *argv("c.json")]) == 0
    capsys.readouterr()
    assert main(["compare", "a.json", "b.json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["reward"]["value"] == pytest.approx((0.75 + 0.25) / 2)
    assert "reward  +0.5000 " in shown.err
    assert main(["compare", "b.json", "c.json"]) == 2
    assert "different protocols: rewards.reward_funcs" in capsys.readouterr().err


def test_a_resumed_evaluation_is_scored_as_it_was_begun(argv, server, tmp_path, capsys):
    assert main(["eval", *argv("whole.json", *FUNCTIONS)]) == 0
    whole = load_result("whole.json")
    header = {name: whole[name] for name in ("protocol", "model", "tool_format", "backend", "problems_asked")}
    journal = tmp_path / "r.json.samples.jsonl"
    lines = [header, *({"number": i, **sample} for i, sample in enumerate(whole["samples"][:2]))]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["eval", *argv("r.json", "--reward_funcs", "./rewards.py:near")]) == 2
    assert "protocol.rewards.reward_funcs" in capsys.readouterr().err
    server.bodies.clear()
    assert main(["eval", *argv("r.json", *FUNCTIONS)]) == 0
    assert len(server.bodies) == 2
    resumed = load_result("r.json")
    assert (resumed["samples"], resumed["rewards"]) == (whole["samples"], whole["rewards"])


def test_traces_are_collected_by_the_threshold(argv, tmp_path):
    assert main(["collect-traces", *argv("t.jsonl", *FUNCTIONS, "--success_threshold", "0.75")]) == 0
    ids = [json.loads(line)["id"] for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert ids == ["p0", "p1", "p2"]


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (("--reward_funcs", "./rewards.py:bad"), "reward function bad: rollout 0 got nan"),
        (("--reward_funcs", "owner/model"), "'owner/model' is a reward model, which only training can use"),
        (
            ("--turn_reward_funcs", "information_gain"),
            "information_gain needs a policy in training that scores the gold answer",
        ),
        (("--reward_funcs", "./rewards.py:none"), "can't be imported: there is no 'none' in it"),
        ((*FUNCTIONS[:4], "--reward_weights", "1"), "1 reward_weights for 3 reward_funcs"),
        (("--turn_reward_funcs", "nothing"), "there is no 'nothing'"),
        (("--turn_reward_funcs", *["repeated_calls"] * 2), "two of them are named 'repeated_calls'"),
        (("--success_threshold", "nan"), "success_threshold must be finite"),
        (("--reward_weights", "inf"), "reward_weights must be finite"),
    ],
)
def test_what_is_no_reward_is_refused_by_name(argv, capsys, more, fault):
    assert main(["eval", *argv("r.json", *more)]) == 2
    assert fault in capsys.readouterr().err


def test_an_interval_of_numbers_of_any_size():
    """By hand: mean 2, deviation 1, Student's quantile 4.3027 for two degrees of freedom."""
    found = mean_of([1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == pytest.approx(
        (2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4
    )
    assert mean_of([7.0]).low is None


def test_two_functions_of_one_name_are_told_apart():
    scorer = Scorer(None, reward_funcs=[lambda **_: [0.25], lambda **_: [0.5]])
    rollout = Trajectory((1,), (Turn("text", (1,)),), StopReason.ANSWER)
    (scored,) = scorer.score([rollout], [Problem("p", "?", "")])
    assert (scored.parts, scored.reward) == ({"<lambda>": 0.25, "<lambda>_2": 0.5}, 0.75)
