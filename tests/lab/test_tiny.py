"""The embedded default, in small: problems, mixed traces, tokenizer, and the whole pipeline in seconds."""

from __future__ import annotations

import itertools
import json
from contextlib import closing

import pytest

from gtpo._async import run_async
from gtpo.cli import main
from gtpo.lab.tiny.desks import ASK, DESKS, DeskLookupTool, ask
from gtpo.lab.tiny.families import FAMILIES, get_family
from gtpo.lab.tiny.flaky import BUSY, FAILURE_RATE, FlakyLookupTool
from gtpo.lab.tiny.hops import FACTS, look_up
from gtpo.lab.tiny.model import PHRASES, make_model, make_tokenizer
from gtpo.lab.tiny.pipeline import MAX_LENGTH
from gtpo.lab.tiny.steps import OPERATORS, Calculator, computed
from gtpo.rollout import ChatEncoder, PromptConfig, get_format
from gtpo.sandbox import LocalSandbox
from gtpo.tasks.verifiers import get_verifier
from gtpo.traces.mixed import Behaviour, mixed_traces
from gtpo.training.config import GTPOConfig
from gtpo.types import InvalidCall, ToolCall


def solve(question):
    first, *steps = question.split(";")
    value = int(first)
    for step in steps:
        value = OPERATORS[step[0]](value, int(step[1:]))
    return str(value)


@pytest.mark.parametrize("name", FAMILIES)
def test_problems_are_distinct_and_apart_from_the_held_out_ones(name):
    family = get_family(name)
    held_out = family.make_problems(200, seed=3)
    problems = family.make_problems(500, seed=2, avoid=held_out)
    questions = [problem.question for problem in problems]
    assert len(set(questions)) == 500
    assert not set(questions) & {problem.question for problem in held_out}
    assert family.make_problems(500, seed=2, avoid=held_out) == problems


def test_computations_are_right():
    problems = get_family("steps").make_problems(500, seed=2)
    assert all(solve(problem.question) == problem.answer for problem in problems)
    assert {problem.question.count(";") for problem in problems} == {3, 4}


def test_functions_fit_their_examples_and_are_tested_elsewhere():
    for problem in get_family("programs").make_problems(200, seed=2):
        (x1, y1), (x2, y2), (x3, y3) = [tuple(map(int, pair.split(":"))) for pair in problem.question.split(";")]
        slope = (y2 - y1) // (x2 - x1)
        f = lambda x, a=slope, b=y1 - slope * x1: a * x + b  # noqa: E731
        assert f(x3) == y3
        tests = json.loads(problem.answer)["tests"]
        assert [f(*test["input"]) for test in tests] == [test["output"] for test in tests]
        assert not {x1, x2, x3} & {test["input"][0] for test in tests}


@pytest.mark.parametrize("name", ["hops", "flaky", "desks"])
def test_hops_lead_to_the_answer(name):
    for problem in get_family(name).make_problems(200, seed=2):
        name, *path = problem.question.split(";")
        for relation in path:
            name = FACTS[name, relation]
        assert name == problem.answer
    assert look_up("nobody boss") is None


def test_a_model_has_fewer_than_a_million_parameters(tiny_tokenizer):
    assert make_model(tiny_tokenizer, seed=0).num_parameters() < 1_000_000


@pytest.mark.parametrize("text", ["37;*52;+418", "```python\n1+1\n```", "\\boxed{-12}", 'Trace "x" {a: [b]}\n\tend'])
def test_the_tokenizer_gives_back_what_it_was_given(tiny_tokenizer, text):
    ids = tiny_tokenizer.encode(text.replace("\t", " "), add_special_tokens=False)
    assert tiny_tokenizer.decode(ids) == text.replace("\t", " ")


def test_phrases_are_one_token_each(tiny_tokenizer):
    assert all(len(tiny_tokenizer.encode(phrase, add_special_tokens=False)) == 1 for phrase in PHRASES)


@pytest.fixture(scope="module")
def verifier():
    with closing(get_verifier("auto")) as verifier:
        yield verifier


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return get_family(request.param)


@pytest.fixture(scope="module")
def tool_format(family):
    return get_format("fenced", PromptConfig(tools=family.tools).specs())


@pytest.fixture(scope="module")
def problems(family):
    return family.make_problems(400, seed=1)


@pytest.fixture(scope="module")
def traces(family, problems, tool_format):
    sandbox = LocalSandbox(max_workers=2)
    yield mixed_traces(family, problems, sandbox, tool_format, Behaviour(), seed=1)
    sandbox.close()


@pytest.fixture(scope="module")
def encoder(family, tool_format):
    return ChatEncoder(make_tokenizer(family.phrases), tool_format)


def test_nearly_all_traces_are_short_enough_to_be_learnt_from(traces, encoder):
    lengths = [len(t.prompt_ids) + len(t.completion_ids) for t in map(encoder.trace, traces)]
    assert sum(length <= MAX_LENGTH for length in lengths) >= 0.9 * len(lengths)


def test_traces_mix_good_malformed_wrong_and_guessed_steps(traces, problems, encoder, verifier):
    rollouts = [encoder.trace(trace) for trace in traces]
    calls = [call for rollout in rollouts for turn in rollout.turns for call in turn.calls]
    malformed = sum(isinstance(call, InvalidCall) for call in calls) / len(calls)
    verdicts = verifier.verify_many([rollout.turns[-1].text for rollout in rollouts], problems)
    right = sum(verdict.passed for verdict in verdicts) / len(verdicts)
    assert 0.1 < malformed < 0.25
    assert 0.3 < right < 0.6
    assert any(rollout.num_calls == 0 for rollout in rollouts)


def test_every_observation_of_a_trace_is_what_the_call_really_gives(traces, tool_format, family):
    checked, busy = 0, 0
    for trace in traces[:100]:
        for said, seen in itertools.pairwise(trace):
            if seen["role"] == "tool":
                (call,) = tool_format.parse(said["content"])
                if isinstance(call, InvalidCall):
                    expected = call.observation
                elif call.name == "python":
                    expected = str(eval(call.code))
                elif seen["content"] == BUSY and family.name == "flaky":
                    busy += 1
                    continue
                else:
                    expected = (
                        ask(call.arguments["query"])[0] if family.name == "desks" else look_up(call.arguments["query"])
                    )
                assert seen["content"] == expected
                checked += 1
    assert checked > 100
    assert (busy > 50) == (family.name == "flaky")


def test_behaviour_without_faults_solves_every_problem(family, problems, tool_format, verifier):
    with closing(LocalSandbox(max_workers=2)) as sandbox:
        good = mixed_traces(family, problems, sandbox, tool_format, Behaviour(0, 0, 0), seed=1)
    verdicts = verifier.verify_many([trace[-1]["content"] for trace in good], problems)
    assert all(verdict.passed for verdict in verdicts)


@pytest.mark.parametrize("failing", ["1/0", "(2", "007", "1;2"])
def test_computations_in_one_program_give_what_each_gives_alone(failing, monkeypatch):
    monkeypatch.setattr("gtpo.lab.tiny.steps._TOGETHER", 4)
    calls = [f"{i}*-{i}" for i in range(10)] + [failing, "- -7//2"]
    with closing(LocalSandbox(max_workers=2)) as sandbox:
        alone = [result.render() for result in run_async(sandbox.run_many(calls))]
        assert computed(calls, sandbox) == alone
        assert computed(calls[:10], sandbox) == alone[:10]


def test_the_calculator_runs_a_computation_once_and_any_other_program_each_time():
    calculator = Calculator()

    async def results(*codes):
        use = calculator.open(key=0)
        return [(await use.run(ToolCall(code))).text for code in codes]

    product, same, failed = run_async(results("6*7", "6*7", "1/0"))
    assert product == same == "42"
    assert failed.endswith("ZeroDivisionError: division by zero")
    assert set(calculator.known) == {"6*7", "1/0"}
    first, second = run_async(results("__import__('time').perf_counter()", "__import__('time').perf_counter()"))
    assert first != second


def answers(tool, key, *queries):
    async def ask_all():
        use = tool.open(key=key)
        return [await use.run(ToolCall("", name="lookup", arguments={"query": query})) for query in queries]

    return run_async(ask_all())


def test_a_flaky_tool_fails_alike_in_every_run_and_answers_when_asked_again():
    (name, relation), found = next(iter(FACTS.items()))
    query = f"{name} {relation}"
    said = [answers(FlakyLookupTool(), key, *[query] * 8) for key in range(50)]
    assert said == [answers(FlakyLookupTool(), key, *[query] * 8) for key in range(50)]
    assert all({result.text for result in results} <= {BUSY, found} for results in said)
    assert all(found in {result.text for result in results} for results in said)
    failed = [result.status == "busy" for results in said for result in results]
    assert abs(sum(failed) / len(failed) - FAILURE_RATE) < 0.1
    assert len({tuple(result.text for result in results) for results in said}) > 10  # rollouts differ


def test_a_call_to_the_wrong_desk_is_told_the_right_one():
    (name, relation), desk = next(iter(DESKS.items()))
    front = next(fact for fact in FACTS if fact not in DESKS)
    wrong = "1" if desk != "1" else "2"
    queries = (
        f"{name} {relation}",
        f"{name} {relation} {wrong}",
        f"{name} {relation} {desk}",
        " ".join(front),
        "nobody boss",
    )
    results = answers(DeskLookupTool(), 0, *queries)
    assert [result.text for result in results] == [
        f"{ASK}{desk}",
        f"{ASK}{desk}",
        FACTS[name, relation],
        FACTS[front],
        "nothing found",
    ]
    assert [result.status for result in results] == ["elsewhere", "elsewhere", "ok", "ok", "nothing_found"]


@pytest.mark.parametrize("family_name", ["programs", "hops", "flaky"])
def test_prepare_only_leaves_a_model_and_files_that_train_takes(tmp_path, family_name):
    run_dir = tmp_path / "start"
    small = "--cold_start_traces 64 --cold_start_steps 2 --train_problems 32 --eval_problems 8 --prepare_only true"
    assert main(["demo", "--family", family_name, "--run_dir", str(run_dir), *small.split()]) == 0
    model, train_file = run_dir / "cold-start" / "model", run_dir / "problems" / "train.jsonl"
    tools = get_family(family_name).tools
    argv = f"train --model {model} --train_file {train_file} --tools {tools} --tool_format fenced --max_steps 1"
    batch = "--num_generations 2 --per_device_train_batch_size 4 --max_turn_tokens 8 --max_completion_length 32"
    others = f"--run_dir {tmp_path / 'run'} --bf16 false --gradient_checkpointing false --report_to none"
    assert main([*argv.split(), "--system_prompt", "", *batch.split(), *others.split(), "--disable_tqdm", "true"]) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("algorithm", ["gtpo", "grpo"])
def test_the_pipeline_runs_and_leaves_its_summary(tmp_path, algorithm):
    run_dir = tmp_path / "tiny"
    small = "--cold_start_traces 64 --cold_start_steps 2 --train_problems 32 --eval_problems 8 --max_steps 2"
    batch = "--num_generations 2 --per_device_train_batch_size 8 --save_steps 1 --disable_tqdm true"
    argv = ["demo", "--run_dir", str(run_dir), "--algorithm", algorithm, *small.split(), *batch.split()]
    assert main(argv) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["algorithm"] == algorithm
    for when in ("before", "after"):
        figures = summary[when]
        assert figures["problems"] == 8
        assert {"pass_rate", "invalid_calls_per_rollout", "turns_per_rollout"} <= set(figures)
    assert {"wall_s", "peak_rss_gib", "seed"} <= set(summary)
    assert (run_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    before = summary["before"]
    argv[argv.index("--max_steps") + 1] = "3"
    assert main([*argv, "--resume", "true"]) == 0
    resumed = json.loads((run_dir / "summary.json").read_text())
    assert (resumed["steps"], resumed["before"]) == (3, before)


def test_several_processes_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(GTPOConfig, "world_size", 2)
    assert main(["demo", "--run_dir", str(tmp_path)]) == 2
    assert "runs in one process" in capsys.readouterr().err
