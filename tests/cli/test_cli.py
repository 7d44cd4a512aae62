"""The command line as a user meets it: help, and one clear line for each kind of bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig

from gtpo import __version__
from gtpo.cli import COMMANDS, main
from gtpo.commands.model_options import adapter_config, unlike_training
from gtpo.lab.tiny.model import make_model
from gtpo.rollout.config import PromptConfig

CPU = ["--use_cpu", "true", "--bf16", "false", "--num_generations", "2", "--per_device_train_batch_size", "2"]
GOOD = '{"question": "1+1?", "answer": "2"}\n'


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("model")
    make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=1).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def problem_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(8)))
    return path


def fails(capsys, *argv):
    assert main([str(arg) for arg in argv]) == 2
    return capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"gtpo {__version__}\n"


def test_an_unknown_command_is_refused(capsys):
    assert "no command 'trian'; did you mean 'train'?" in fails(capsys, "trian")


def test_an_unknown_flag_or_key_names_the_nearest_known_one(capsys, tmp_path):
    assert "unknown option --gama; did you mean 'gamma'?" in fails(capsys, "train", "--gama", "1")
    config = tmp_path / "c.yaml"
    config.write_text("learning_rat: 1.0e-5\n")
    error = fails(capsys, "train", "--config", config)
    assert "c.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'?" in error


def test_a_wrong_value_is_named_with_its_file_and_without_a_page_of_usage(capsys, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("max_turns: many\ngamma: 0.5\n")
    assert fails(capsys, "train", "--config", config) == (
        f"gtpo train: {config}: max_turns: invalid int value: 'many'\n"
    )
    assert fails(capsys, "train", "--gamma", "x") == "gtpo train: --gamma: invalid float value: 'x'\n"
    assert "no problems" in fails(capsys, "train", "--config", config, "--max_turns", "3"), "the flag wins"


def test_variables_of_the_environment_in_a_config_file_are_set(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("GTPO_TEST_VARIABLE", raising=False)
    config = tmp_path / "c.yaml"
    config.write_text("env: {GTPO_TEST_VARIABLE: 7}\n")
    fails(capsys, "train", "--config", config)
    assert os.environ.pop("GTPO_TEST_VARIABLE") == "7"


def test_a_run_that_can_not_start_is_refused_before_its_weights_are_loaded(capsys, tmp_path, problem_file, model_dir):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    empty = tmp_path / "no-weights"
    shutil.copytree(model_dir, empty, ignore=shutil.ignore_patterns("*.safetensors"))
    argv = ["train", "--model", empty, "--train_file", problem_file, "--tool_format", "fenced", *CPU]
    assert "holds a run already" in fails(capsys, *argv, "--run_dir", tmp_path / "run")
    assert "no whole checkpoint" in fails(capsys, *argv, "--run_dir", tmp_path / "run", "--resume", "true")
    assert "can't be loaded" in fails(capsys, *argv, "--run_dir", tmp_path / "other"), (
        "the control: weights are missing"
    )


@pytest.mark.parametrize(
    ("text", "fault"), [("a: [", "not valid YAML"), ("- 1", "must hold a mapping"), (None, "can't be read")]
)
def test_a_broken_config_file_is_named(capsys, tmp_path, text, fault):
    config = tmp_path / "c.yaml"
    if text is not None:
        config.write_text(text)
    assert fault in fails(capsys, "train", "--config", config)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD + '{"question": ', "problems.jsonl:2"),
        (GOOD + '{"question": "1+1?"}', "'answer'"),
        (GOOD + '{"question": " ", "answer": "2"}', "'question'"),
        ("", "problems.jsonl"),
    ],
)
def test_a_broken_problem_file_is_named_before_the_model_loads(capsys, tmp_path, text, fault):
    path = tmp_path / "problems.jsonl"
    path.write_text(text)
    error = fails(capsys, "train", "--model", tmp_path / "no-model", "--train_file", path, "--run_dir", tmp_path / "r")
    assert fault in error
    assert "no such folder" not in error


def test_a_model_that_is_not_there_is_named(capsys, tmp_path, problem_file):
    argv = ("train", "--train_file", problem_file, "--run_dir", tmp_path / "r")
    assert "no model: give --model" in fails(capsys, *argv)
    assert "no such folder" in fails(capsys, *argv, "--model", tmp_path / "none")


def test_a_model_without_chat_template_is_refused(capsys, tmp_path, problem_file, model_dir):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(model_dir, bare)
    (bare / "chat_template.jinja").unlink()
    error = fails(capsys, "train", "--model", bare, "--train_file", problem_file, "--run_dir", tmp_path / "r")
    assert "has no chat template" in error


def test_a_template_without_tools_is_refused_for_the_format_that_needs_them(capsys, tmp_path, problem_file, model_dir):
    argv = ("--model", model_dir, "--train_file", problem_file, "--run_dir", tmp_path / "r")
    assert "--tool_format fenced" in fails(capsys, "train", *argv, "--tool_format", "tool_call")


def test_doctor_says_which_tool_format_a_model_gets_and_why(capsys, model_dir):
    assert main(["doctor", "--model", str(model_dir)]) == 0
    said = capsys.readouterr().out
    assert "tool format   fenced: no native format is known for this chat template" in said
    assert "```python" in said
    assert "'<end>'" in said
    assert main(["doctor", "--model", str(model_dir), "--tool_format", "fenced"]) == 0
    assert "tool format   fenced: as asked for" in capsys.readouterr().out


def test_traces_are_written_in_the_format_of_the_model_that_will_learn(capsys, tmp_path, model_dir):
    (tmp_path / "solutions.jsonl").write_text(
        json.dumps({"question": "6 x 7?", "answer": "42", "solution": "It is 6*7=<<6*7=42>>42.\n#### 42"}) + "\n"
    )
    argv = ("--solutions", tmp_path / "solutions.jsonl", "--output", tmp_path / "traces.jsonl")
    assert "give --model" in fails(capsys, "make-traces", *argv)
    assert main(list(map(str, ["make-traces", *argv, "--model", model_dir]))) == 0
    assert "tool format: fenced" in capsys.readouterr().err
    assert "```python" in (tmp_path / "traces.jsonl").read_text()


def test_a_group_size_that_does_not_divide_the_batch_is_refused(capsys, tmp_path):
    argv = ("--num_generations", "3", "--per_device_train_batch_size", "8", "--run_dir", tmp_path / "r")
    assert "divisible by num_generations" in fails(capsys, "train", *argv)


def test_a_value_out_of_range_is_refused_by_name(capsys, tmp_path):
    assert "gamma must be in [0, 1]" in fails(capsys, "train", "--gamma", "2", "--run_dir", tmp_path / "r")


def test_train_and_eval_run_from_a_config_file(capsys, tmp_path, problem_file, model_dir):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {model_dir}\ntrain_file: {problem_file}\nrun_dir: {tmp_path / 'run'}\ntool_format: fenced\n"
        "max_steps: 5\nnum_generations: 2\nper_device_train_batch_size: 4\nmax_turns: 2\nmax_turn_tokens: 8\n"
        "max_completion_length: 64\nbf16: false\nsave_strategy: 'no'\nreport_to: none\ndisable_tqdm: true\n"
        "learning_rate: 1e-4\n"
    )
    assert main(["train", "--config", str(config), "--max_steps", "1", "--gamma=0.5"]) == 0
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert "gamma: 0.5" in written
    assert "max_steps: 1" in written
    assert "learning_rate: 0.0001" in written
    capsys.readouterr()
    output = tmp_path / "eval.json"
    argv = ["--tool_format", "fenced", "--max_turns", "2", "--max_turn_tokens", "8", "--samples", "2"]
    model = str(tmp_path / "run" / "model")
    assert main(["eval", "--model", model, "--problems", str(problem_file), "--output", str(output), *argv]) == 0
    summary = json.loads(capsys.readouterr().out)
    saved = json.loads(output.read_text())
    assert summary["problems"] == 8
    assert len(saved["samples"]) == 16
    assert saved["protocol"]["rollout"]["max_turns"] == 2
    assert saved["pass_rate"] == sum(sample["passed"] for sample in saved["samples"]) / 16


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--backend", "server"], "needs --base_url"),
        (["--backend", "server", "--base_url", "localhost:1"], "give a URL"),
        (["--backend", "vllm", "--vllm_options", "{"], "not JSON"),
    ],
)
def test_backend_options_that_can_not_work_are_refused(capsys, problem_file, model_dir, options, fault):
    argv = ["--model", model_dir, "--problems", problem_file, "--tool_format", "fenced", *options]
    assert fault in fails(capsys, "eval", *argv)


def test_cold_start_runs_and_leaves_a_model(tmp_path, model_dir):
    traces = tmp_path / "traces.jsonl"
    conversation = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "\\boxed{2}"}]
    traces.write_text((json.dumps({"messages": conversation}) + "\n") * 4)
    argv = ["--traces", str(traces), "--model", str(model_dir), "--run_dir", str(tmp_path / "cold")]
    options = ["--tool_format", "fenced", "--max_steps", "1", "--bf16", "false", "--report_to", "none"]
    assert main(["sft", *argv, *options, "--disable_tqdm", "true"]) == 0
    assert (tmp_path / "cold" / "model" / "model.safetensors").exists()


def test_an_adapter_is_saved_and_merged(tmp_path, model_dir):
    import torch
    from transformers import AutoModelForCausalLM

    traces = tmp_path / "traces.jsonl"
    conversation = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "\\boxed{2}"}]
    traces.write_text((json.dumps({"messages": conversation}) + "\n") * 4)
    argv = ["--traces", str(traces), "--model", str(model_dir), "--run_dir", str(tmp_path / "cold")]
    options = ["--tool_format", "fenced", "--max_steps", "2", "--bf16", "false", "--report_to", "none"]
    lora = ["--use_peft", "true", "--lora_target_modules", "all-linear", "--learning_rate", "0.01"]
    assert main(["sft", *argv, *options, *lora, "--disable_tqdm", "true", "--logging_steps", "1"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "cold" / "model")
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "cold" / "adapter")
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (merged, adapted, base)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits[0], logits[2], atol=1e-4)


def test_doctor_reports_the_sandbox(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "sandbox   works" in shown
    assert "torch" in shown


def test_the_installed_command_answers():
    done = subprocess.run([sys.executable, "-m", "gtpo.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Group Turn Policy Optimization" in done.stdout


def test_problems_whose_answers_can_not_be_read_are_left_out_and_named():
    from gtpo.errors import DataError
    from gtpo.tasks.problems import Problem
    from gtpo.tasks.sources import verifiable
    from gtpo.tasks.verifiers import get_verifier

    said: list[str] = []
    good, bad = Problem("good", "q", "3"), Problem("bad", "q", "\\qquad")
    verifier = get_verifier("math")
    try:
        assert verifiable([good, bad], verifier, said.append) == [good]
        assert "left out: problem bad" in said[0]
        with pytest.raises(DataError, match="can be verified"):
            verifiable([bad], verifier, said.append)
    finally:
        verifier.close()


def test_recipes_call_commands_that_there_are():
    scripts = list((Path(__file__).parents[2] / "recipes").rglob("*.sh"))
    called = {name for path in scripts for name in re.findall(r'"\$gtpo" ([a-z-]+)', path.read_text())}
    assert {"eval", "make-traces"} <= called <= set(COMMANDS)


@pytest.mark.parametrize("command", ["train", "sft"])
def test_lora_modules_that_the_model_has_not_are_named(capsys, tmp_path, problem_file, model_dir, command):
    traces = tmp_path / "traces.jsonl"
    messages = [{"role": "user", "content": "6*7?"}, {"role": "assistant", "content": "42"}]
    traces.write_text(json.dumps({"messages": messages}) + "\n")
    data = ["--train_file", str(problem_file)] if command == "train" else ["--traces", str(traces)]
    shared = [
        "--model",
        str(model_dir),
        "--run_dir",
        str(tmp_path / "run"),
        "--tool_format",
        "fenced",
        "--bf16",
        "false",
    ]
    targets = ["--use_peft", "true", "--lora_target_modules", "q_proj", "w_proj"]
    said = fails(capsys, command, *data, *shared, *targets)
    assert "lora_target_modules: the model has no module w_proj; give all-linear, or some of: " in said
    assert "o_proj, q_proj, up_proj" in said


@pytest.mark.parametrize(("given", "taken"), [(["q_proj"], {"q_proj"}), ([".*[qk]_proj"], ".*[qk]_proj")])
def test_one_lora_module_is_a_name_unless_it_is_a_pattern(tiny_tokenizer, given, taken):
    model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=1)
    options = ModelConfig(use_peft=True, lora_target_modules=given)
    assert adapter_config(options, model).target_modules == taken


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"system_prompt": ""}, []),
        ({"system_prompt": "", "tools": "python", "tool_format": "fenced"}, []),
        ({}, ["trained with system_prompt ''; now it has the default system_prompt."]),
        (
            {"system_prompt": "", "tools": "./calc.py:calc", "tool_format": "tool_call"},
            ["with tools 'python', tool_format 'fenced'; now it has tools './calc.py:calc', tool_format 'tool_call'."],
        ),
    ],
)
def test_a_model_that_is_told_other_things_than_in_its_training_is_named(tmp_path, now, said):
    trained = PromptConfig(system_prompt="", tool_format="fenced")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"config": asdict(trained)}))
    found = unlike_training(str(tmp_path / "model"), PromptConfig(**now))
    assert [text for text in said if text in (found or "")] == said
    assert bool(found) == bool(said)


def test_of_a_model_of_no_run_nothing_is_said(tmp_path):
    (tmp_path / "config.yaml").write_text("config: {learning_rate: 1}\n")
    for model in (str(tmp_path / "model"), str(tmp_path / "other"), "owner/model", None):
        assert unlike_training(model, PromptConfig()) is None
    (tmp_path / "config.yaml").write_text("config: {")
    assert unlike_training(str(tmp_path / "model"), PromptConfig()) is None
