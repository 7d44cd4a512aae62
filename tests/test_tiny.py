"""The embedded default, in small: problems, mixed traces, tokenizer, and the whole pipeline in seconds."""

from __future__ import annotations

import itertools
import json

import pytest

from gtpo.cli import main
from gtpo.rollout import ChatEncoder, get_format
from gtpo.sandbox import LocalSandbox
from gtpo.tiny.model import PHRASES, make_model
from gtpo.tiny.pipeline import MAX_LENGTH
from gtpo.tiny.problems import OPERATORS, Behaviour, make_problems, mixed_traces
from gtpo.types import InvalidCall


def solve(question):
    first, *steps = question.split(";")
    value = int(first)
    for step in steps:
        value = OPERATORS[step[0]](value, int(step[1:]))
    return str(value)


def test_problems_are_right_distinct_and_apart_from_the_held_out_ones():
    held_out = make_problems(200, seed=3)
    problems = make_problems(500, seed=2, avoid=held_out)
    questions = [problem.question for problem in problems]
    assert len(set(questions)) == 500
    assert not set(questions) & {problem.question for problem in held_out}
    assert all(solve(problem.question) == problem.answer for problem in problems)
    assert {question.count(";") for question in questions} == {3, 4}
    assert make_problems(500, seed=2, avoid=held_out) == problems


def test_a_model_has_fewer_than_a_million_parameters(tiny_tokenizer):
    assert make_model(tiny_tokenizer, seed=0).num_parameters() < 1_000_000


@pytest.mark.parametrize("text", ["37;*52;+418", "```python\n1+1\n```", "\\boxed{-12}", 'Trace "x" {a: [b]}\n\tend'])
def test_the_tokenizer_gives_back_what_it_was_given(tiny_tokenizer, text):
    ids = tiny_tokenizer.encode(text.replace("\t", " "), add_special_tokens=False)
    assert tiny_tokenizer.decode(ids) == text.replace("\t", " ")


def test_phrases_are_one_token_each(tiny_tokenizer):
    assert all(len(tiny_tokenizer.encode(phrase, add_special_tokens=False)) == 1 for phrase in PHRASES)


@pytest.fixture(scope="module")
def traces():
    sandbox = LocalSandbox(slots=2)
    yield mixed_traces(400, sandbox, get_format("fenced"), Behaviour(), seed=1)
    sandbox.close()


def test_nearly_all_traces_are_short_enough_to_be_learnt_from(traces, tiny_tokenizer):
    encoder = ChatEncoder(tiny_tokenizer, get_format("fenced"))
    lengths = [len(t.prompt_ids) + len(t.completion_ids) for t in map(encoder.trace, traces)]
    assert sum(length <= MAX_LENGTH for length in lengths) > 0.9 * len(lengths)


def test_traces_mix_good_malformed_wrong_and_guessed_steps(traces, tiny_tokenizer):
    encoder = ChatEncoder(tiny_tokenizer, get_format("fenced"))
    rollouts = [encoder.trace(trace) for trace in traces]
    calls = [call for rollout in rollouts for turn in rollout.turns for call in turn.calls]
    malformed = sum(isinstance(call, InvalidCall) for call in calls) / len(calls)
    right = sum(
        rollout.turns[-1].text == f"\\boxed{{{solve(trace[0]['content'])}}}"
        for rollout, trace in zip(rollouts, traces, strict=True)
    ) / len(traces)
    assert 0.1 < malformed < 0.25
    assert 0.3 < right < 0.5
    assert any(rollout.num_calls == 0 for rollout in rollouts)


def test_every_observation_of_a_trace_is_what_the_call_really_gives(traces):
    checked = 0
    for trace in traces[:100]:
        for said, seen in itertools.pairwise(trace):
            if seen["role"] == "tool":
                (call,) = get_format("fenced").parse(said["content"])
                expected = call.observation if isinstance(call, InvalidCall) else str(eval(call.code))
                assert seen["content"] == expected
                checked += 1
    assert checked > 100


@pytest.mark.parametrize("algorithm", ["gtpo", "grpo"])
def test_the_pipeline_runs_and_leaves_its_summary(tmp_path, algorithm):
    run_dir = tmp_path / "tiny"
    small = "--cold_start_traces 64 --cold_start_steps 2 --train_problems 32 --eval_problems 8 --max_steps 2"
    batch = "--num_generations 2 --per_device_train_batch_size 8 --save_steps 1 --disable_tqdm true"
    argv = ["tiny", "--run_dir", str(run_dir), "--algorithm", algorithm, *small.split(), *batch.split()]
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
