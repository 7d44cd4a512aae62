"""Traces: from worked solutions, from files, and into TRL's labels."""

from __future__ import annotations

import json

import pytest

from gtpo.errors import DataError
from gtpo.rollout import ChatEncoder, get_format
from gtpo.tasks.problems import Problem, load_problems
from gtpo.tasks.worked_solutions import parse_solutions
from gtpo.traces.from_solutions import traces_from_solutions
from gtpo.training.data import load_traces, trace_dataset

SOLUTION = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nTogether she sold 48+24 = <<48+24=72>>72.\n#### 72"


def solved(solution=SOLUTION, answer="72"):
    problem = Problem("p", "48 in April, half as many in May. Altogether?", answer, extras={"solution": solution})
    return parse_solutions([problem]).solutions


@pytest.mark.parametrize("name", ["tool_call", "fenced"])
def test_one_call_computes_with_variables_what_was_computed_before(sandbox, name):
    fmt = get_format(name)
    (trace,) = traces_from_solutions(solved(), sandbox, fmt, turns_share=0.0).traces
    roles = [message["role"] for message in trace.messages]
    assert roles == ["user", "assistant", "tool", "assistant"]
    (call,) = fmt.parse(trace.messages[1]["content"])
    assert "s1 = 48/2" in call.code
    assert "s2 = 48+s1" in call.code, "24 is not known before it was computed"
    assert trace.messages[2]["content"] == "72.0"
    assert trace.messages[3]["content"] == "The answer is \\boxed{72}."


def test_turns_make_one_call_a_step_and_say_nothing_of_its_value(sandbox):
    (trace,) = traces_from_solutions(solved(), sandbox, get_format("fenced"), turns_share=1.0).traces
    contents = [message["content"] for message in trace.messages[1:]]
    assert contents == [
        "Natalia sold\n```python\n48/2\n```",
        "24.0",
        "Together she sold\n```python\n48+24\n```",
        "72",
        "The answer is \\boxed{72}.",
    ]


def test_a_solution_with_more_steps_than_turns_makes_one_call(sandbox):
    (trace,) = traces_from_solutions(solved(), sandbox, get_format("fenced"), turns_share=1.0, max_turns=2).traces
    assert trace.style == "one_call"


def test_a_trace_that_does_not_reach_the_answer_is_dropped_and_counted(sandbox):
    solutions = solved("So 48/2 = <<48/2=24>>24, three times that.\n#### 72")
    made = traces_from_solutions(solutions, sandbox, get_format("fenced"))
    assert made.traces == ()
    assert dict(made.dropped) == {"the last result is not the answer": 1}


def test_saved_traces_are_read_back(sandbox, tmp_path):
    made = traces_from_solutions(solved(), sandbox, get_format("fenced"))
    made.save(tmp_path / "deep" / "traces.jsonl")
    assert load_traces(tmp_path / "deep" / "traces.jsonl") == [made.traces[0].messages]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"messages": [', "2.*broken JSON"),
        ('{"text": "x"}', "2.*'messages'"),
        ('{"messages": []}', "2.*list of objects"),
        ('{"messages": [{"role": "user"}]}', "2.*list of objects"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, fault):
    good = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    path = tmp_path / "traces.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match=f"traces.jsonl:{fault}"):
        load_traces(path)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(DataError, match="gtpo make-traces"):
        load_traces(tmp_path / "none.jsonl")


def messages(answer):
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]


def test_labels_cover_the_models_own_tokens_and_nothing_else(tiny_tokenizer):
    encoder = ChatEncoder(tiny_tokenizer, get_format("fenced"))
    trace = [
        *messages("```python\n1\n```"),
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "\\boxed{1}"},
    ]
    dataset, _ = trace_dataset([trace], encoder, max_length=100, system_prompt="Be brief.")
    ids, labels = dataset[0]["input_ids"], dataset[0]["labels"]
    assert tiny_tokenizer.decode(ids).startswith("<system>Be brief.<end><user>q<end><assistant>")
    assert tiny_tokenizer.decode([i for i in labels if i != -100]) == "```python\n1\n```<end>\\boxed{1}<end>"
    assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))


def test_long_traces_are_left_out_whole_and_counted(tiny_tokenizer):
    encoder = ChatEncoder(tiny_tokenizer, get_format("fenced"))
    dataset, too_long = trace_dataset([messages("a"), messages("a" * 100)], encoder, max_length=50)
    assert (len(dataset), too_long) == (1, 1)
    with pytest.raises(DataError, match="longer than max_length 3"):
        trace_dataset([messages("a")], encoder, max_length=3)


def test_real_solutions_become_traces(shared_data, sandbox):
    solutions = parse_solutions(load_problems(shared_data / "gsm8k_train.jsonl", limit=100)).solutions
    made = traces_from_solutions(solutions, sandbox, get_format("fenced"), turns_share=0.5)
    assert len(made.traces) > 80
    assert {trace.style for trace in made.traces} == {"one_call", "turns"}
