"""One description of a rollout: every field of it reaches the engine of every command."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import yaml

from gtpo.cli import main
from gtpo.errors import ConfigError
from gtpo.lab.study.plan import read_study
from gtpo.rollout import PromptConfig, RolloutConfig, ToolSpec, build_encoder, build_engine
from gtpo.sandbox import Limits


class StubSandbox:
    """Stands for either kind of sandbox; remembers how it was made."""

    def __init__(self, *args, limits=None, require=None, headers=None):
        self.made = (args, limits, require)

    def ping(self):
        pass

    def session(self, fresh=False):
        return self

    def close(self):
        pass

    def level(self):
        return self

    sentence = "a stub."


class StubServer:
    """Stands for the tools of an MCP server; remembers how it was to be reached."""

    spec = ToolSpec("serve", "Serve.", {"dish": {"type": "string"}}, ("dish",), ability="be served")

    def __init__(self, *args, **options):
        self.made = (args, options)
        self.tools = [self]

    def __iter__(self):
        return iter(self.tools)

    def open(self, key):
        return self


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    for name in ("LocalSandbox", "SandboxFusionSandbox"):
        monkeypatch.setattr(f"gtpo.rollout.config.{name}", StubSandbox)
    monkeypatch.setattr("gtpo.rollout.mcp.tools.MCPTools", StubServer)
    monkeypatch.setenv("GTPO_TEST_KEY", "a key")


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """Another value than the default for every field."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "passages.jsonl").write_text('{"text": "alpha beta"}\n')
    (folder / "instructions.yaml").write_text("math: Write the number in \\boxed{}\n")
    (folder / "caves.py").write_text(
        "class Cave:\n    def reset(self, **columns):\n        pass\n\n"
        '    def look(self) -> str:\n        """Look around."""\n        return "dark"\n'
    )
    return {
        "tools": "search,python,mcp:https://localhost/mcp",
        "mcp_session": "shared",
        "mcp_connect_s": 7.0,
        "mcp_call_s": 5.0,
        "mcp_env": ["GTPO_TEST_KEY"],
        "mcp_key_variable": "GTPO_TEST_KEY",
        "environment": f"{folder}/caves.py:Cave",
        "environment_timeout_s": 7.0,
        "tool_state": "session",
        "search_results": 1,
        "tool_format": "fenced",
        "system_prompt": "Be brief.",
        "chat_template_kwargs": {"enable_thinking": False},
        "sandbox": "http://127.0.0.1:1",
        "sandbox_require": "seccomp",
        "tool_wall_s": 3.0,
        "tool_cpu_s": 2.0,
        "tool_memory_mb": 300,
        "instructions": str(folder / "instructions.yaml"),
        "verifier": "choice",
        "passages": str(folder / "passages.jsonl"),
        "max_turns": 3,
        "max_turn_tokens": 30,
        "max_completion_length": 90,
        "max_context": 300,
        "max_observation_tokens": 40,
        "max_repeated_tokens": 20,
        "max_rollout_s": 60.0,
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "max_concurrency": 5,
        "deterministic": True,
    }


def state(engine):
    """Everything about an engine that a field may decide."""
    python = engine.tools.get("python")
    return {
        "specs": engine.encoder.format.specs,
        "format": engine.encoder.format.name,
        "template_kwargs": engine.encoder.template_kwargs,
        "prompts": (engine.prompts.setting, dict(engine.prompts.instructions), engine.prompts.verifier),
        "python": (python.state, python.sandbox.made) if python else None,
        "mcp": engine.tools["serve"].made if "serve" in engine.tools else None,
        "passages": [p.text for p in engine.tools["search"]._passages] if "search" in engine.tools else None,
        "limits": engine.limits,
        "sampling": engine.sampling,
        "max_concurrency": engine.max_concurrency,
        "environments": (engine.environments.name, engine.environments.timeout_s) if engine.environments else None,
    }


def test_there_is_a_value_for_every_field(values):
    assert set(values) == {item.name for item in fields(RolloutConfig)}


@pytest.mark.parametrize("name", [item.name for item in fields(RolloutConfig)])
def test_every_field_makes_a_difference_to_the_engine(qwen_tokenizer, values, name):
    with_tools = {"tools": values["tools"], "passages": values["passages"]} if name == "search_results" else {}
    if name == "passages":
        with_tools = {"tools": "search"}
    if name.startswith("mcp_"):
        with_tools = {"tools": "mcp:https://localhost/mcp"}
    if name == "environment_timeout_s":
        with_tools = {"environment": values["environment"]}
    base = {**with_tools, "passages": values["passages"]} if name in ("search_results", "tools") else dict(with_tools)
    changed = RolloutConfig(**{**base, name: values[name]})
    if name == "passages":  # without them there is no search at all
        with pytest.raises(ConfigError, match="needs --passages"):
            RolloutConfig(**base)
        assert state(build_engine(changed, qwen_tokenizer))["passages"] == ["alpha beta"]
        return
    assert state(build_engine(changed, qwen_tokenizer)) != state(build_engine(RolloutConfig(**base), qwen_tokenizer))


class Captured(Exception):
    """The engine was built; what comes after it is not what is tested."""


@pytest.fixture
def captured(monkeypatch):
    """Let the engine of a command be built, and stop there."""
    engines = []

    def capture(place):
        def build(config, tokenizer, **options):
            engines.append(build_engine(config, tokenizer, **options))
            raise Captured

        monkeypatch.setattr(f"{place}.build_engine", build)
        return engines

    return capture


def as_text(value):
    return json.dumps(value) if isinstance(value, dict) else str(value)


def as_flags(options):
    return [
        part
        for name, value in options.items()
        for part in (f"--{name}", *(value if isinstance(value, list) else [as_text(value)]))
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory, qwen_tokenizer):
    """A folder of a model and a file of problems."""
    from gtpo.lab.tiny.model import make_model

    folder = tmp_path_factory.mktemp("model")
    make_model(qwen_tokenizer, seed=0, hidden_size=32, layers=1).save_pretrained(folder / "model")
    qwen_tokenizer.save_pretrained(folder / "model")
    problem = {"question": "Which?\n(A) 1\n(B) 2", "answer": "B"}
    (folder / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    return folder


TRAIN = ["--use_cpu", "true", "--bf16", "false", "--num_generations", "2", "--per_device_train_batch_size", "2"]


@pytest.mark.parametrize("how", ["flags", "file"])
@pytest.mark.parametrize("command", ["train", "eval", "collect-traces"])
def test_every_field_reaches_the_engine_of_every_command(captured, files, values, tmp_path, command, how):
    engines = captured("gtpo.commands.train" if command == "train" else "gtpo.commands.rolling")
    problems = "--train_file" if command == "train" else "--problems"
    argv = [command, "--model", str(files / "model"), problems, str(files / "problems.jsonl")]
    argv += [*TRAIN, "--run_dir", str(tmp_path / "run")] if command == "train" else ["--output", str(tmp_path / "out")]
    if how == "flags":
        argv += as_flags(values)
    else:
        (tmp_path / "options.yaml").write_text(yaml.safe_dump(values))
        argv += ["--config", str(tmp_path / "options.yaml")]
    with pytest.raises(Captured):
        main(argv)
    assert state(engines[0]) == state(build_engine(RolloutConfig(**values), engines[0].encoder.tokenizer))


def test_every_field_reaches_the_engine_of_the_demo(captured, values, tmp_path):
    """The family of problems decides on the tools, and the model's length on the context."""
    engines = captured("gtpo.lab.tiny.pipeline")
    own = {name: value for name, value in values.items() if name not in ("tools", "passages", "tool_state")}
    with pytest.raises(Captured):
        main(["demo", "--run_dir", str(tmp_path / "run"), *as_flags(own)])
    found = state(engines[0])
    wanted = state(build_engine(RolloutConfig(**own), engines[0].encoder.tokenizer))
    assert {**found, "python": None, "specs": None} == {**wanted, "python": None, "specs": None}
    assert (engines[0].tools["python"].state, found["specs"][0].name) == ("stateless", "python")


def test_a_study_evaluates_every_cell_with_the_rollouts_that_it_was_trained_with(values, tmp_path):
    study = {"train": {"train_file": "p.jsonl", **values}, "evaluate": {"problems": ["h.jsonl"]}, "seeds": [1]}
    study["variants"] = {"plain": {}, "short": {"max_turns": 2}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    for cell in read_study(tmp_path / "study.yaml").cells:
        used = {name: cell.train[name] for name in values}
        assert {name: cell.evaluate[name] for name in values} == used


def test_the_cold_start_has_the_fields_that_concern_a_conversation(
    qwen_tokenizer, values, tmp_path, monkeypatch, files
):
    found = []

    def build(config, tokenizer, specs):
        found.append(build_encoder(config, tokenizer, specs))
        raise Captured

    monkeypatch.setattr("gtpo.commands.sft.build_encoder", build)
    (tmp_path / "traces.jsonl").write_text('{"messages": [{"role": "assistant", "content": "x"}]}\n')
    own = {item.name: values[item.name] for item in fields(PromptConfig)}
    argv = ["sft", "--model", str(files / "model"), "--traces", str(tmp_path / "traces.jsonl"), "--use_cpu", "true"]
    with pytest.raises(Captured):
        main([*argv, "--bf16", "false", "--run_dir", str(tmp_path / "run"), *as_flags(own)])
    wanted = build_encoder(PromptConfig(**own), qwen_tokenizer, PromptConfig(**own).specs())
    assert (found[0].format, found[0].template_kwargs) == (wanted.format, wanted.template_kwargs)


def test_what_is_recorded_of_a_rollout_leaves_out_where_and_how_fast_it_is_made(values):
    recorded = RolloutConfig(**values).recorded()
    left_out = {"sandbox", "sandbox_require", "passages", "instructions", "max_concurrency", "mcp_connect_s"}
    assert set(recorded) == set(values) - left_out - {"deterministic"}
    without = RolloutConfig(tools="none").recorded()
    assert "tool_wall_s" not in without, "without Python its limits decide nothing"
    assert not any(name.startswith("mcp_") for name in without), "nor do those of servers without one"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"chat_template_kwargs": "{enable"}, "chat_template_kwargs: not JSON"),
        ({"chat_template_kwargs": "[1]"}, "chat_template_kwargs: must be a mapping"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"tool_wall_s": -1.0}, "wall_s"),
        ({"instructions": "nowhere.yaml"}, "instructions: nowhere.yaml: can't be read"),
    ],
)
def test_wrong_values_are_refused_by_name(options, fault):
    with pytest.raises(ConfigError, match=fault):
        RolloutConfig(**options)


def test_limits_are_those_of_one_call():
    assert RolloutConfig(tool_wall_s=3.0, tool_cpu_s=1.0, tool_memory_mb=99).tool_limits() == Limits(
        cpu_s=1.0, wall_s=3.0, memory_mb=99
    )


OWN_TOOL = """
from gtpo.rollout import ToolSpec
BUILT = []
class Tool:
    spec = ToolSpec("clock", "Tell the time.", {"zone": {"type": "string"}}, ("zone",), ability="tell the time")
    def __init__(self):
        BUILT.append(self)
    def open(self, key):
        return self
"""


def test_a_tool_of_the_users_own_is_built_once_per_run(files, tmp_path, monkeypatch):
    """From the options to the first step of a run."""
    (tmp_path / "own_clock.py").write_text(OWN_TOOL)
    monkeypatch.syspath_prepend(str(tmp_path))

    def first_step(self, *args, **kwargs):
        raise Captured

    monkeypatch.setattr("gtpo.training.trainer.GTPOTrainer.train", first_step)
    argv = ["train", "--model", str(files / "model"), "--train_file", str(files / "problems.jsonl"), *TRAIN]
    argv += ["--tools", "own_clock:Tool", "--run_dir", str(tmp_path / "run"), "--report_to", "none"]
    argv += ["--tool_format", "fenced", "--system_prompt", "", "--verifier", "choice"]
    with pytest.raises(Captured):
        main(argv)
    import own_clock

    assert len(own_clock.BUILT) == 1
