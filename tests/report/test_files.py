"""Reading runs, frames for notebooks, the limit on size, alarms, and the command."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml
from recorded import unpacked

from gtpo.cli import main
from gtpo.errors import DataError
from gtpo.report import load, write_page
from gtpo.report.alarms import alarms
from gtpo.report.data import run_document
from gtpo.report.glossary import glossary
from gtpo.run_directory import RunFiles
from gtpo.testing import made_up_run


def test_frames_are_tidy(run):
    frames = load(run)
    assert frames.settings["gamma"] == 0.9
    assert list(frames.metrics.index) == [1, 2, 3, 4]
    assert len(frames.rollouts) == 4 * 12
    assert not frames.rollouts.duplicated(["step", "rollout"]).any()
    assert not frames.turns.duplicated(["step", "rollout", "turn"]).any()
    counts = frames.turns.groupby(["step", "rollout"]).size().reset_index(drop=True)
    assert (counts == frames.rollouts["num_turns"]).all()
    sums = frames.turns.groupby(["step", "rollout"])["reward"].sum().reset_index(drop=True)
    pd.testing.assert_series_equal(sums, frames.rollouts["reward"], check_names=False)
    assert set(load(run, steps=[2]).rollouts["step"]) == {2}


def test_similarities_are_recorded_with_the_rollouts(run):
    rows = RunFiles(run).rollouts(1)
    shaped = [row for row in rows if row["similarities"]]
    assert shaped
    for row in shaped:
        passes = {r["rollout"] for r in rows if r["group"] == row["group"] and r["passed"]}
        assert {int(place) for place in row["similarities"]} == passes
        mean = sum(row["similarities"].values()) / len(passes)
        assert row["turns"][-1]["r_shaped"] == pytest.approx(0.5 * mean, abs=1e-5)


def test_a_run_of_the_first_schema_is_read(tmp_path):
    run = made_up_run(tmp_path / "old", steps=1)
    path = unpacked(run, 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["schema"] = 1
        for name in ("rollout", "similarities"):
            del row[name]
        for turn in row["turns"]:
            del turn["token_chars"], turn["logprobs"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["rollout"] for row in RunFiles(run).rollouts(1)] == list(range(8))
    assert write_page([run], tmp_path / "old.html") > 10_000


def test_a_run_of_the_second_schema_is_read_under_todays_names(tmp_path):
    run = made_up_run(tmp_path / "old", steps=1)
    path = unpacked(run, 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["schema"] = 2
        del row["score"], row["failure"]
    rows[0]["stop_reason"] = "infra"
    rows[0]["turns"][0]["statuses"] = ["infra"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("normalize_over", "zero_uniform_groups", "advantage_clip"):
        del config["config"][name]
    config["config"] |= {"scope": "turn", "on_uniform_outcome": "zero"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "stop/infra": 0.5, "tool/infra": 1.5}\n')
    files = RunFiles(run)
    settings = files.settings()
    assert settings["normalize_over"] == "same_turn"
    assert settings["zero_uniform_groups"] is True
    assert settings["advantage_clip"] == 0, "nothing was clipped then"
    assert files.rollouts(1)[0]["stop_reason"] == "tool_failure"
    assert files.rollouts(1)[0]["turns"][0]["statuses"] == ["tool_failure"]
    assert files.metrics()[-1] == {"step": 2, "stop/tool_failure": 0.5, "tool/tool_failure": 1.5}
    assert write_page([run], tmp_path / "old.html") > 10_000


def test_what_is_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"neither metrics\.jsonl nor rollouts"):
        load(tmp_path)
    run = made_up_run(tmp_path / "run", steps=1)
    (run / "rollouts" / "step_000001.jsonl").write_text('{"turns": 3}\n')
    with pytest.raises(DataError, match=r"step_000001\.jsonl:1: not a recorded rollout"):
        load(run)


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    run = made_up_run(tmp_path / "run", steps=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "pass_r')
    assert [row["step"] for row in RunFiles(run).metrics()] == [1, 2]


def test_a_page_that_would_be_too_large_leaves_out_tokens_first_and_then_steps(tmp_path):
    files = RunFiles(made_up_run(tmp_path / "run", steps=12, groups=2))
    whole = run_document(files)
    assert whole["left_out"] == {"steps": 0, "token_details_of_steps": 0}
    size = sum(map(len, whole["packed"].values()))
    bare = run_document(files, max_bytes=int(size * 0.9))
    assert bare["left_out"] == {"steps": 0, "token_details_of_steps": 7}
    small = run_document(files, max_bytes=size // 4)
    assert small["left_out"]["steps"] > 0
    assert sum(map(len, small["packed"].values())) <= size // 4
    assert len(small["packed"]) == 12 - small["left_out"]["steps"]
    assert small["index"] == whole["index"]


def test_the_page_says_what_was_left_out(opened, tmp_path):
    run = made_up_run(tmp_path / "run", steps=12, groups=2)
    path = tmp_path / "small.html"
    write_page([run], path, max_bytes=4_000)
    with opened(path, "#view=group&step=1") as page:
        assert "of 12 recorded steps" in page.locator("#omitted").inner_text()
        assert "were left out to keep the page small" in page.locator("main").inner_text()
        page.keyboard.press("4")
        page.wait_for_selector("#app[data-view=find]")
        page.locator("#find-q").fill("what")
        page.keyboard.press("Enter")
        page.wait_for_selector('#count:has-text("could not be searched")')


def test_every_figure_of_the_glossary_has_a_meaning():
    found = glossary()
    assert {"pass_rate", "turns", "stop/answer", "time/*_share"} <= set(found)
    assert all(entry["meaning"] for entry in found.values())
    assert not [name for name, entry in found.items() if "](" in entry["meaning"] or "`" in entry["meaning"]]


def series(**columns):
    length = len(next(iter(columns.values())))
    return [
        {"step": i + 1, **{name.replace("__", "/"): column[i] for name, column in columns.items()}}
        for i in range(length)
    ]


FLAT = [0.1] * 9
RISING = [0.1 * i for i in range(9)]
CALM = {"calls": [3.0] * 9, "pass_rate": RISING, "entropy": [0.5] * 9}


def jump(low, high):
    return [low] * 4 + [high] * 5


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        (None, CALM),
        ("fewer calls, more reward", {"calls": jump(3.0, 1.0), "pass_rate": FLAT, "reward__total": RISING}),
        (
            "similarity without success",
            {"reward__shaped": jump(0.1, 0.4), "pass_rate": FLAT, "groups__frac_all_failed": [0.0] * 9},
        ),
        ("successes are punished", {"advantage__frac_negative_on_success": jump(0.05, 0.4)}),
        ("most groups fail altogether", {"groups__frac_all_failed": [0.8] * 9}),
        ("entropy collapsed", {"entropy": jump(0.5, 0.01)}),
        ("turns repeat themselves", {"stop__repetition": jump(0.0, 0.1)}),
        ("a tool or the sandbox fails", {"failures__tool": jump(0.0, 0.05), "rollouts__frac_masked": jump(0.0, 0.05)}),
        ("the model server fails", {"failures__model_server": jump(0.0, 0.05), "failures__tool": [0.0] * 9}),
        (
            None,
            {"failures__stale": jump(0.0, 0.05), "rollouts__frac_masked": jump(0.0, 0.3), "failures__tool": [0.0] * 9},
        ),
    ],
)
def test_each_alarm_is_raised_by_what_it_is_for_and_by_nothing_else(name, columns):
    found = alarms(series(**columns), {"algorithm": "gtpo", "alpha": 0.5, "zero_uniform_groups": False}, 0.0)
    assert [alarm.name for alarm in found] == ([name] if name else [])


def test_void_turns_are_an_alarm():
    (alarm,) = alarms(series(**CALM), {}, 0.3)
    assert alarm.name == "turns without an answer"
    assert "30%" in alarm.sentence


@pytest.mark.parametrize(("answered", "found"), [(True, []), (False, ["turns without an answer"]), (None, [])])
def test_a_turn_without_an_answer_is_what_the_record_calls_so_whoever_scored_it(tmp_path, answered, found):
    """Reward functions read no answer out of the text (`extracted`), and older records do not say."""
    run = made_up_run(tmp_path / "run", steps=1)
    path = unpacked(run, 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {"extracted": None, "has_answer": answered}
        if answered is None:
            del row["has_answer"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [alarm["name"] for alarm in run_document(RunFiles(run))["alarms"]] == found


def test_the_command_writes_into_the_run_and_names_what_is_missing(run, tmp_path, capsys):
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").exists()
    assert "open it in a browser" in capsys.readouterr().err
    assert main(["report", str(run), str(run), "--output", str(tmp_path / "two.html")]) == 0
    assert main(["report"]) == 2
    assert "no run directory: run gtpo report RUN" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize("config", ["", "[1, 2]", "config: 3", "config: {gamma: .nan}"])
def test_an_odd_config_is_no_reason_to_fail(tmp_path, config):
    run = made_up_run(tmp_path / "run", steps=1)
    (run / "config.yaml").write_text(config)
    assert load(run).settings["alpha"] == 0.5
    text = (tmp_path / "page.html").read_text() if write_page([run], tmp_path / "page.html") else ""
    json.loads(text.split('id="data">')[1].split("</script>")[0], parse_constant=lambda name: pytest.fail(name))


def test_a_broken_config_and_a_stray_file_and_a_page_that_cannot_be_written(tmp_path, capsys):
    run = made_up_run(tmp_path / "run", steps=1)
    (run / "rollouts" / "step_000001 (copy).jsonl").write_text("x")
    assert RunFiles(run).steps() == [1]
    assert main(["report", str(run), "--output", str(tmp_path)]) == 2
    assert "can't be written" in capsys.readouterr().err
    (run / "config.yaml").write_text("{")
    assert main(["report", str(run)]) == 2
    assert "config.yaml" in capsys.readouterr().err


def test_numbers_that_json_lacks_become_null(tmp_path):
    run = made_up_run(tmp_path / "run", steps=1)
    path = unpacked(run, 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["turns"][0]["logprobs"] = [float("-inf"), float("nan"), -1.0]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert RunFiles(run).rollouts(1)[0]["turns"][0]["logprobs"] == [None, None, -1.0]
