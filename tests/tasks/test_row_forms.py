"""Rows of published data sets, read as they are from files, the Hub and Python."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from gtpo.errors import ConfigError, DataError
from gtpo.tasks.answer_types import verifier_name
from gtpo.tasks.problems import Problem, load_problems
from gtpo.tasks.row_forms import FORMS, parse_columns
from gtpo.tasks.sources import problems_from, verifiable
from gtpo.tasks.verifiers import get_verifier
from gtpo.tasks.worked_solutions import parse_solutions

ASKED = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is 1+1?\n\nRemember to put your "
    'answer on its own line after "Answer:".'
)
ROWS = {
    "openai/gsm8k": (
        {"question": "What is 1+1?", "answer": "It is 1+1=<<1+1=2>>2.\n#### 2"},
        ("What is 1+1?", "2", "math"),
    ),
    "MATH": (
        {"problem": "What is 1+1?", "level": "Level 1", "type": "Algebra", "solution": "So $1+1=\\boxed{2}$."},
        ("What is 1+1?", "2", "math"),
    ),
    "MATH, an old box": (
        {"problem": "What is 1+1?", "solution": "$\\boxed 2$."},
        ("What is 1+1?", "2", "math"),
    ),
    "NuminaMath-CoT": (
        {
            "source": "cn_k12",
            "problem": "What is 1+1?",
            "solution": "It is \\boxed{2}",
            "messages": [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "2"}],
        },
        ("What is 1+1?", "2", "math"),
    ),
    "NuminaMath-1.5": (
        {"problem": "What is 1+1?", "solution": "It is two.", "answer": "2", "problem_type": "Algebra"},
        ("What is 1+1?", "2", "math"),
    ),
    "DeepScaleR": (
        {"problem": "What is 1+1?", "answer": "2", "solution": "It is \\boxed{3} or \\boxed{2}"},
        ("What is 1+1?", "2", "math"),
    ),
    "OpenMathReasoning": (
        {"problem": "What is 1+1?", "expected_answer": "2", "generated_solution": "Well, \\boxed{7}"},
        ("What is 1+1?", "2", "math"),
    ),
    "Omni-MATH": (
        {"domain": ["Algebra"], "problem": "What is 1+1?", "solution": "2", "answer": "2"},
        ("What is 1+1?", "2", "math"),
    ),
    "DAPO-Math-17k": (
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": ASKED}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a"},
        },
        ("What is 1+1?", "2", "math"),
    ),
    "verl's GSM8K": (
        {
            "prompt": [
                {
                    "role": "user",
                    "content": 'What is 1+1? Let\'s think step by step and output the final answer after "####".',
                }
            ],
            "reward_model": {"ground_truth": "2", "style": "rule"},
        },
        ("What is 1+1?", "2", "math"),
    ),
    "TRL's": ({"prompt": "What is 1+1?", "answer": 2}, ("What is 1+1?", "2", "math")),
    "hotpotqa/hotpot_qa": (
        {"id": "5a7a", "question": "Who?", "answer": "Ada", "type": "bridge", "supporting_facts": {"title": ["Ada"]}},
        ("Who?", "Ada", "qa"),
    ),
    "mandarjoshi/trivia_qa": (
        {"question": "Who?", "answer": {"value": "Ada", "aliases": ["Ada L.", "Ada"], "type": "WikipediaEntity"}},
        ("Who?", "Ada", "qa"),
    ),
    "google-research-datasets/nq_open": ({"question": "Who?", "answer": ["Ada", "Ada L."]}, ("Who?", "Ada", "qa")),
    "RUC-NLPIR/FlashRAG_datasets": ({"question": "Who?", "golden_answers": ["Ada"]}, ("Who?", "Ada", "qa")),
    "cais/mmlu": (
        {"question": "Which?", "subject": "anatomy", "choices": ["a", "b"], "answer": 1},
        ("Which?\n(A) a\n(B) b", "B", "choice"),
    ),
    "tau/commonsense_qa": (
        {"id": "1", "question": "Which?", "choices": {"label": ["A", "B"], "text": ["a", "b"]}, "answerKey": "B"},
        ("Which?\n(A) a\n(B) b", "B", "choice"),
    ),
    "google-research-datasets/mbpp, sanitized": (
        {
            "task_id": 2,
            "prompt": "Add.",
            "code": "def add(a, b):\n    return a + b",
            "test_imports": ["import math"],
            "test_list": ["assert add(1, 2) == 3"],
        },
        (
            "Add.\nYour code should pass these tests:\n\nassert add(1, 2) == 3",
            "import math\nassert add(1, 2) == 3\n",
            "code",
        ),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_published_row_is_a_problem_as_it_is(name):
    row, wanted = ROWS[name]
    (problem,) = problems_from([row])
    assert (problem.question, problem.answer, verifier_name(problem)) == wanted


@pytest.mark.parametrize("name", ["openai/gsm8k", "DAPO-Math-17k", "hotpotqa/hotpot_qa"])
def test_files_the_hub_and_python_read_the_same(name, tmp_path, monkeypatch):
    row, _ = ROWS[name]
    (tmp_path / "problems.jsonl").write_text(json.dumps(row) + "\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "problems.parquet")
    data = Dataset.from_list([row])
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: data)
    wanted = problems_from([row])
    assert problems_from(str(tmp_path / "problems.jsonl")) == wanted
    assert problems_from(tmp_path / "problems.parquet") == wanted
    assert problems_from("hub:owner/problems") == wanted
    assert problems_from(data) == wanted
    assert problems_from(data.to_iterable_dataset(), limit=1) == wanted
    assert problems_from(wanted) == wanted


def test_every_form_is_the_first_that_fits_its_own_row():
    from test_benchmarks import SAMPLES

    for name, (raw, expected, _) in SAMPLES.items():
        (problem,) = problems_from([raw])
        if name in ("aime24", "aime25", "amc23"):  # their plainer spelling is the benchmark's business
            assert float(problem.answer) == float(expected["answer"]), name
        else:
            assert problem.answer == str(expected["answer"]), name
        assert problem.question == expected["question"], name
    assert len({form.name for form in FORMS}) == len(FORMS)


def test_worked_solutions_of_the_public_form_are_those_of_ours(shared_data):
    ours = load_problems(shared_data / "gsm8k_train.jsonl")
    rows = [{"question": p.question, "answer": p.extras["solution"]} for p in ours]
    theirs = problems_from(rows)
    assert [p.answer for p in theirs] == [p.answer.replace(",", "") for p in ours]
    assert len(parse_solutions(theirs).solutions) == len(parse_solutions(ours).solutions)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (
            [{"question": "1+1?", "answer": "2", "final_answer": "3"}],
            r"rows:1: field 'answer': ambiguous: the answer may be answer or final_answer \(the row has: answer, "
            r"final_answer, question\); choose one with --columns answer=COLUMN",
        ),
        ([{"question": "1+1?", "problem": "2+2?", "answer": "2"}], "the question may be question or problem"),
        (
            [{"instruction": "1+1?", "output": "2"}],
            r"field 'question': missing or null \(the row has: instruction, output\)",
        ),
        ([{"question": "1+1?", "label": "2"}], r"field 'answer': missing or null .*--columns answer=COLUMN"),
        ([{"question": "1+1?", "answer": {"x": 1}}], "a JSON object"),
        (
            [{"question": "1+1?", "answer": "#### 2"}, {"question": "1+1?", "answer": "It is two."}],
            "rows:2: has the form of no known data set, but the rows before it have that of openai/gsm8k",
        ),
        (
            [{"question": "1+1?", "answer": "2"}, {"question": "1+1?", "answer": "Well.\n#### 2"}],
            "rows:2: has the form of openai/gsm8k, but the rows before it have their answer in 'answer'",
        ),
        (
            [{"question": "1+1?", "answer": "2"}, {"question": "1+1?", "solution": "\\boxed{2}"}],
            "rows:2: field 'answer'",
        ),
    ],
)
def test_what_can_not_be_told_is_refused_with_the_columns_and_the_remedy(tmp_path, rows, fault):
    path = tmp_path / "rows"
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=fault.replace("rows:", r"rows\.jsonl:")):
        problems_from(path.with_suffix(".jsonl"))
    with pytest.raises(DataError, match=fault.replace("rows:", "problems:")):
        problems_from(rows)


def test_two_columns_of_equal_value_are_not_ambiguous():
    (problem,) = problems_from([{"question": "1+1?", "answer": "2", "ground_truth": 2}])
    assert problem.answer == "2"


def test_columns_settle_what_is_ambiguous(tmp_path, monkeypatch):
    row = {"question": "1+1?", "problem": "2+2?", "answer": "long", "meta": {"gold": 4}}
    columns = {"question": "problem", "answer": "meta.gold"}
    (problem,) = problems_from([row], columns=columns)
    assert (problem.question, problem.answer) == ("2+2?", "4")
    assert parse_columns("question=problem, answer=meta.gold") == columns
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    (problem,) = problems_from(f"{tmp_path}/r.jsonl?question=problem&answer=meta.gold", columns={"answer": "nope"})
    assert problem.answer == "4", "what stands behind the source wins"
    worked = {"task": "1+1?", "worked": "Two.\n#### 2"}
    (problem,) = problems_from([worked], columns={"question": "task", "solution": "worked"})
    assert (problem.answer, problem.extras["solution"]) == ("2", "Two.\n#### 2"), "the answer is that of the solution"
    with pytest.raises(DataError, match=r"problems:1: field 'gold': no such column \(there are: answer, meta"):
        problems_from([row], columns={"answer": "gold"})
    with pytest.raises(ConfigError, match="unknown field 'label'; known: id, question"):
        problems_from([row], columns={"label": "gold"})
    with pytest.raises(ConfigError, match="gsm8k: its columns are known"):
        problems_from("gsm8k", columns=columns)
    for text in ("problem", "answer="):
        with pytest.raises(ConfigError, match="columns"):
            parse_columns(text)


def test_a_function_makes_rows_or_leaves_them_out(tmp_path):
    (tmp_path / "rows.py").write_text(
        "def read(row):\n    n = row['n']\n"
        "    return None if n == 1 else {'question': f'{n}+1?', 'answer': n + 1}\n"
        "def bad(row):\n    return 3\n"
    )
    columns = parse_columns(f"{tmp_path}/rows.py:read")
    problems = problems_from([{"n": n} for n in range(3)], columns=columns)
    assert [(p.question, p.answer) for p in problems] == [("0+1?", "1"), ("2+1?", "3")]
    with pytest.raises(DataError, match="problems:1: the function of --columns returned a int"):
        problems_from([{"n": 1}], columns=parse_columns(f"{tmp_path}/rows.py:bad"))


def test_a_solution_without_an_answer_is_left_out_and_said():
    rows = [{"problem": f"{i}+1?", "solution": "Proved." if i else "\\boxed{1}"} for i in range(8)]
    problems = problems_from(rows)
    said: list[str] = []
    verifier = get_verifier("math")
    try:
        assert verifiable(problems, verifier, said.append) == problems[:1]
    finally:
        verifier.close()
    assert "left out: problem problems/1: its solution has no \\boxed{}" in said[0]
    assert said[-1] == "left out: 2 more problems without an answer that can be verified"
    assert verifiable(problems, None, said.append) == problems, "reward functions need no answers"


def test_rows_without_an_answer_are_for_reward_functions():
    rows = [{"prompt": "Write a poem."}]
    with pytest.raises(DataError, match="field 'answer': missing"):
        problems_from(rows)
    (problem,) = problems_from(rows, answers=False)
    assert (problem.question, problem.answer) == ("Write a poem.", "")


def test_a_list_of_aliases_is_for_qa_unless_the_row_says_otherwise():
    rows = [{"question": "Half?", "answer": ["1/2", "0.5"]}, {"question": "Half?", "answer": ["1/2"], "domain": "math"}]
    first, second = problems_from(rows)
    assert (first.answer, first.extras["aliases"], verifier_name(first)) == ("1/2", ["1/2", "0.5"], "qa")
    assert verifier_name(second) == "math"


def test_what_is_no_list_of_rows_is_refused():
    with pytest.raises(ConfigError, match="got a data set with splits; pass one of them: train"):
        problems_from(DatasetDict(train=Dataset.from_list([{"question": "?", "answer": 1}])))
    with pytest.raises(ConfigError, match="problems: got int; give a source"):
        problems_from(3)
    with pytest.raises(DataError, match="problems: got str; give dictionaries"):
        problems_from(["1+1?"])
    with pytest.raises(DataError, match="contains no problems"):
        problems_from([])


def test_a_stream_is_read_no_further_than_the_limit():
    def rows():
        yield from ({"question": f"{i}?", "answer": i} for i in range(3))
        raise AssertionError("read too far")

    assert len(problems_from(IterableDataset.from_generator(rows), limit=3)) == 3
    assert isinstance(problems_from(rows(), limit=2)[0], Problem)
