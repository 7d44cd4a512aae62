"""The calls of a notebook: evaluate, show, credit, train, functional."""

from __future__ import annotations

import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from quiet import QUIET

import gtpo
from gtpo.credit_assignment import CreditSettings
from gtpo.errors import ConfigError, DataError
from gtpo.lab.tiny.model import make_model
from gtpo.report import load
from gtpo.rollout.backends import Generation
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn

ROWS = [
    {"question": f"What is {i}+1?", "answer": f"It is {i}+1=<<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"} for i in range(4)
]
SMALL = {"tool_format": "fenced", "progress": False}


class Says:
    """A backend whose turns a function makes of the context's text."""

    max_context = 4096

    def __init__(self, tokenizer, says):
        self.tokenizer, self.says = tokenizer, says

    @asynccontextmanager
    async def serve(self, rollouts, *, sampling, end_ids, seed):
        yield self

    async def generate(self, request):
        said = self.says(self.tokenizer.decode(request.context))
        return Generation((*self.tokenizer.encode(said), self.tokenizer.eos_token_id)[: request.max_new_tokens])

    def finish(self, rollout):
        pass


def adds(context):
    """Calls Python, then boxes what it printed; wrong where the number is odd."""
    number = int(context.partition("What is ")[2].partition("+")[0])
    if "```output" not in context:
        return f"```python\nprint({number}+1)\n```"
    return f"\\boxed{{{number + 1 + number % 2}}}"


@pytest.fixture
def backend(byte_tokenizer):
    return Says(byte_tokenizer, adds)


@pytest.fixture
def run(backend, byte_tokenizer, sandbox):
    def evaluate(problems=ROWS, *, model=backend, **options):
        return gtpo.evaluate(
            model, problems, **{"processing_class": byte_tokenizer, "sandbox": sandbox, **SMALL, **options}
        )

    return evaluate


def test_evaluate_rolls_out_rows_of_the_public_form_and_keeps_the_rollouts(run):
    result = run(samples=2)
    assert result.pass_rate == 0.5
    assert result.passed == [True, True, False, False] * 2
    assert result.groups == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [len(t.turns) for t in result.trajectories] == [2] * 8
    assert result.trajectories[0].turns[0].observation.results == ("1",)
    assert result.figures.calls_per_rollout == 1.0


@pytest.mark.parametrize("form", ["dataset", "stream", "file", "problems"])
def test_problems_come_in_any_form(run, tmp_path, form):
    data = Dataset.from_list(ROWS)
    forms = {"dataset": data, "stream": data.to_iterable_dataset(), "problems": gtpo_problems(ROWS)}
    if form == "file":
        data.to_json(tmp_path / "p.jsonl")
        forms["file"] = str(tmp_path / "p.jsonl")
    assert run(forms[form], limit=2).passed == [True, False]


def gtpo_problems(rows):
    from gtpo.tasks.sources import problems_from

    return problems_from(rows)


def test_a_loaded_model_and_a_folder_answer_the_same(byte_model_dir, byte_tokenizer):
    from gtpo.models import load_model

    options = {**SMALL, "tools": "none", "max_turn_tokens": 6, "limit": 2}
    by_name = gtpo.evaluate(str(byte_model_dir), ROWS, **options)
    loaded = load_model(str(byte_model_dir))
    assert gtpo.evaluate(loaded, ROWS, **options).trajectories == by_name.trajectories
    loaded.config._name_or_path = ""
    with pytest.raises(ConfigError, match="give it as processing_class="):
        gtpo.evaluate(loaded, ROWS, **options)


def test_tools_rewards_and_options_are_those_of_the_command(run, byte_tokenizer):
    def double(number: str) -> str:
        """Double a number.

        Args:
            number: the number.
        """
        return str(2 * int(number))

    def length(completions, **columns):
        return [len(turns) / 10 for turns in completions]

    def says(context):
        return "\\boxed{1}" if "```output" in context else "```double\n21\n```"

    result = run(
        model=Says(byte_tokenizer, says),
        tools=[double],
        reward_funcs=[length, "auto"],
        reward_weights=[1.0, 0.5],
        turn_reward_funcs=["execution_feedback"],
        success_threshold=0.5,
    )
    assert result.trajectories[0].turns[0].observation.results == ("42",)
    assert [sample["reward"] for sample in result.samples] == pytest.approx([0.8, 0.3, 0.3, 0.3])
    assert result.passed == [True, False, False, False]
    assert result.protocol.rollout["tools"] == "double"
    assert result.protocol.rewards["reward_funcs"] == ["length", "auto"]
    frame = gtpo.credit(result).to_frame()
    assert frame["turn_reward/execution_feedback"].tolist() == [1.0, 0.0] * 4
    with pytest.raises(ConfigError, match="no option 'max_turn'; did you mean 'max_turns'"):
        run(max_turn=3)
    with pytest.raises(ConfigError, match="turn_reward_funcs: there is no 'nothing'"):
        run(turn_reward_funcs=["nothing"])
    with pytest.raises(DataError, match=r"problems:1: field 'answer': missing .*label"):
        run([{"question": "1+1?", "label": "2"}])


EVIL = "<script>alert(1)</script>\x1b[31m"
ROLLOUT = Trajectory(
    (1,),
    (
        Turn(f"Let me see {EVIL}", (1, 2), (ToolCall("1+1"),), Observation(EVIL, ("error",), (3,), 0.5)),
        Turn("then", (4,), (InvalidCall(f"no {EVIL}"),), Observation("Invalid", ("invalid",), (5,))),
        Turn("\\boxed{2}", (6,)),
    ),
    StopReason.TOOL_FAILURE,
    EVIL,
)


def test_a_rollout_is_shown_as_text_that_no_terminal_obeys(capsys):
    ROLLOUT.show()
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    for text in ("turn 1, 2 tokens, calls: python", "invalid call: no", "observation (error; 0.50 s)", "\\boxed{2}"):
        assert text in shown
    assert shown.rstrip().splitlines()[-1].startswith("ended by: tool_failure (<script>")


def test_a_rollout_is_shown_as_html_with_everything_escaped():
    html = ROLLOUT._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 4
    assert html.count("<pre") == 5


def test_in_a_notebook_show_displays(monkeypatch):
    shown = []
    shell = SimpleNamespace(kernel=1)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    ROLLOUT.show()
    assert shown == [ROLLOUT]
    del shell.kernel  # IPython on a terminal
    ROLLOUT.show()
    assert len(shown) == 1


class Alike:
    """Every two codes are alike by 0.6."""

    def matrix(self, codes):
        return torch.full((len(codes), len(codes)), 0.6)


def turn(invalid=False, call=True):
    calls = (InvalidCall("open"),) if invalid else (ToolCall("1+1"),) if call else ()
    return Turn("text", (1,), calls)


FIRST = Trajectory((1,), (turn(), turn(invalid=True), turn(call=False)), StopReason.ANSWER)
SECOND = Trajectory((1,), (turn(), turn(call=False)), StopReason.ANSWER)


def test_credit_of_the_worked_example():
    """docs/algorithm.md: the group of two rollouts."""
    table = gtpo.credit(
        [FIRST, SECOND],
        passed=[True, False],
        similarity=Alike(),
        normalize_over="all_turns",
        zero_uniform_groups=False,
        advantage_clip=0,
    )
    frame = table.to_frame()
    assert frame[["rollout", "turn"]].values.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    assert frame["reward"].tolist() == pytest.approx([0, -0.1, 1, 0, 0.3])
    assert frame["r_format"].tolist() == pytest.approx([0, -0.1, 0, 0, 0])
    assert frame["r_shaped"].tolist() == pytest.approx([0, 0, 0, 0, 0.3])
    assert frame["return"].tolist() == pytest.approx([0.72, 0.8, 1, 0.27, 0.3])
    wanted = [0.3179, 0.5673, 1.1907, -1.0847, -0.9912]
    assert frame["advantage"].tolist() == pytest.approx(wanted, abs=1e-3)
    assert table.settings == CreditSettings(normalize_over="all_turns", zero_uniform_groups=False, advantage_clip=0)
    assert "advantage" in str(table)
    assert "<table" in table._repr_html_()


def test_groups_keep_rollouts_apart_and_a_reward_of_none_leaves_one_out():
    rollouts = [FIRST, SECOND, FIRST, SECOND]
    apart = gtpo.credit(rollouts, passed=[True, False, True, True], groups=[0, 0, 1, 1]).to_frame()
    assert not apart[apart.group == 1].advantage.any(), "all of that group passed"
    assert apart[apart.group == 0].advantage.all()
    graded = gtpo.credit(rollouts, passed=[True] + [False] * 3, rewards=[1.0, 0.5, None, 0.0]).to_frame()
    assert graded[graded.turn == 1].r_acc.tolist() == [0.0, 0.5, 0.0, 0.0]
    assert not graded[graded.rollout == 2].advantage.any()


def test_turn_rewards_of_ones_own_stand_in_their_own_column():
    def first(trajectories, level, **columns):
        return [[one, *[0.0] * (len(t.turns) - 1)] for t, one in zip(trajectories, level, strict=True)]

    frame = gtpo.credit(
        [FIRST, SECOND],
        passed=[True, False],
        turn_reward_funcs=[first],
        turn_reward_weights=[0.5],
        columns={"level": [1.0, 2.0]},
    ).to_frame()
    assert frame["turn_reward/first"].tolist() == [0.5, 0, 0, 1.0, 0]
    assert frame["r_own"].tolist() == [0.5, 0, 0, 1.0, 0]


@pytest.mark.parametrize(
    ("given", "options", "fault"),
    [
        ([FIRST], {}, "passed is missing"),
        ([FIRST], {"passed": [True, False]}, "passed has 2 entries for 1 rollouts"),
        ([FIRST], {"passed": [True], "groups": []}, "groups has 0 entries"),
        ([], {"passed": []}, "credit needs rollouts"),
        (["text"], {"passed": [True]}, "credit needs trajectories, got a str"),
        ([FIRST], {"passed": [True], "gama": 1}, "no setting 'gama'; there are: gamma"),
        ([FIRST], {"passed": [True], "algorithm": "ppo"}, "algorithm must be one of"),
        ([FIRST], {"passed": [True], "turn_reward_weights": [1.0]}, "1 turn_reward_weights for 0"),
    ],
)
def test_credit_says_what_is_wrong(given, options, fault):
    with pytest.raises(ConfigError, match=fault):
        gtpo.credit(given, **options)


def test_the_credit_of_an_evaluation_is_that_of_its_rollouts_passing_and_groups(run):
    result = run(samples=2)
    by_result = gtpo.credit(result).to_frame()
    by_hand = gtpo.credit(result.trajectories, passed=result.passed, groups=result.groups).to_frame()
    assert by_result.equals(by_hand)
    lost = type(result)(**{**vars(result), "rollouts": (None, *result.rollouts[1:])})
    with pytest.raises(ConfigError, match="1 of 8 rollouts are not in memory"):
        gtpo.credit(lost)


def test_train_records_a_run_of_rows_of_the_public_form(tmp_path, tiny_tokenizer, sandbox):
    model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=1)
    seen = []

    def length(completions, completion_ids, **columns):
        seen.append(columns["question"])
        return [float(len(ids) % 2) for ids in completion_ids]

    options = {
        "run_dir": str(tmp_path / "run"),
        "tool_format": "fenced",
        "max_steps": 1,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_turn_tokens": 6,
        "processing_class": tiny_tokenizer,
        "sandbox": sandbox,
        **QUIET,
    }
    result = gtpo.train(model, ROWS, reward_funcs=length, **options)
    assert result.steps == 1
    run = load(result.run_dir)
    assert set(run.rollouts.answer) <= {"1", "2", "3", "4"}
    assert {question for questions in seen for question in questions} <= {row["question"] for row in ROWS}
    assert (result.model_dir / "config.json").exists()
    with pytest.raises(ConfigError, match="holds a run already"):
        gtpo.train(model, ROWS, **options)
    with pytest.raises(ConfigError, match="did you mean 'max_steps'"):
        gtpo.train(model, ROWS, **{**options, "max_step": 3})


def test_the_page_for_notebooks_runs(byte_model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = "tool_format='fenced', max_turn_tokens=6, " + ", ".join(f"{name}={QUIET[name]!r}" for name in QUIET)
    page = (Path(__file__).resolve().parents[1] / "docs" / "notebook.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", page, flags=re.S)).replace('"MODEL"', repr(str(byte_model_dir)))
    code = code.replace("max_turns=4", "max_turns=4, tool_format='fenced', max_turn_tokens=6, progress=False")
    code = code.replace("max_steps=2,", f"max_steps=1, {small},")
    found: dict = {}
    exec(compile(code, "docs/notebook.md", "exec"), found)
    shown = capsys.readouterr().out
    assert "turn 1" in shown
    assert "advantage" in shown
    assert len(found["table"].to_frame()) == sum(len(t.turns) for t in found["result"].trajectories)
    assert found["trained"].steps == 1
    assert found["after"].figures.rollouts == 8


class Knocking:
    """Lets in who knocks twice."""

    def reset(self, question, **columns):
        self.knocks = 0
        return f" ({question})"

    def knock(self) -> str:
        """Knock at the door."""
        self.knocks += 1
        return "Who is there?"

    def get_reward(self):
        return float(self.knocks == 2)


def knocks(context):
    return "```knock\n```" if context.count("Who is there?") < 1 + ("0+1" in context) else "I wait."


def test_a_class_of_ones_own_is_the_environment_of_an_evaluation(run, byte_tokenizer):
    result = run(ROWS[:2], model=Says(byte_tokenizer, knocks), environment_factory=Knocking)
    assert result.passed == [True, False]
    assert [t.reward for t in result.trajectories] == [1.0, 0.0]
    assert result.trajectories[0].prompt_suffix == " (What is 0+1?)"
    assert result.protocol.rollout["tools"] == "none"
    assert result.protocol.rollout["environment"] == "Knocking"


def test_a_reply_is_shown_as_the_users(capsys):
    reply = Observation("Are you sure?", (), (4,), 0.5, ("Are you sure?",), "user")
    rollout = Trajectory((1,), (Turn("2", (2,), (), reply), Turn("Yes.", (3,))), StopReason.ANSWER)
    rollout.show()
    shown = capsys.readouterr().out
    assert "user (0.50 s)" in shown
    assert "observation" not in shown
