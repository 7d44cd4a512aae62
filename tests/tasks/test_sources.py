"""Every kind of source: what it reads, and what it says about a mistake."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gtpo.errors import ConfigError, DataError
from gtpo.tasks import sources
from gtpo.tasks.answer_types import answer_type, verifier_name
from gtpo.tasks.problems import Problem
from gtpo.tasks.sources import Source, problems_from


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(path, count, **fields):
    return lines(path, *({"question": f"{i}+1?", "answer": i + 1, **fields} for i in range(count)))


@pytest.mark.parametrize(
    ("text", "kind", "name", "settings"),
    [
        ("a/b.jsonl", "file", "a/b.jsonl", {}),
        ("b.parquet?question=q&limit=3", "file", "b.parquet", {"question": "q", "limit": "3"}),
        ("hub:openai/gsm8k?config=main&split=test", "hub", "openai/gsm8k", {"config": "main", "split": "test"}),
        ("reasoning-gym:chain_sum?size=3", "reasoning-gym", "chain_sum", {"size": "3"}),
        ("mix.yaml", "mixture", "mix.yaml", {}),
        ("gsm8k", "benchmark", "gsm8k", {}),
    ],
)
def test_a_source_is_one_line_of_text(text, kind, name, settings):
    assert Source.parse(text) == Source(kind, name, settings)


def test_what_is_no_source_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"'gsm9k' is not a source.*hub:OWNER/NAME.*gsm8k"):
        problems_from("gsm9k")


def test_a_file_with_other_column_names(tmp_path):
    path = lines(tmp_path / "x.jsonl", {"q": "1+1?", "gold": 2, "level": 3})
    (problem,) = problems_from(f"{path}?question=q&answer=gold&domain=sums&verifier=math")
    assert problem == Problem("x/0", "1+1?", "2", "sums", {"level": 3, "verifier": "math"})
    with pytest.raises(DataError, match=r"x.jsonl:1: field 'nope': no such column \(there are: gold, level, q\)"):
        problems_from(f"{path}?question=nope")
    with pytest.raises(ConfigError, match=r"unknown settings colour; known: answer, domain"):
        problems_from(f"{path}?colour=red")
    with pytest.raises(ConfigError, match="limit must be a whole number"):
        problems_from(f"{path}?limit=few")


def test_a_parquet_file(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"question": ["1+1?", "2+2?"], "answer": [2, 4], "tags": [["a"], []]}), path)
    problems = problems_from(str(path))
    assert [(p.id, p.answer, p.extras) for p in problems] == [("p/0", "2", {"tags": ["a"]}), ("p/1", "4", {"tags": []})]
    assert problems_from(str(path), limit=1) == problems[:1]
    (tmp_path / "q.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"q\.parquet: not a Parquet file"):
        problems_from(str(tmp_path / "q.parquet"))
    with pytest.raises(DataError, match="no such file"):
        problems_from(str(tmp_path / "none.parquet"))


def test_a_hub_data_set_with_its_revision_and_columns(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append((name, config, split, revision))
        return [{"problem": "1+1?", "solution": "2"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    text = "hub:owner/name?config=main&split=test&revision=abc&question=problem&answer=solution"
    (problem,) = problems_from(text)
    assert (problem.id, problem.question, problem.answer) == ("name/0", "1+1?", "2")
    problems_from("hub:owner/name?question=problem&answer=solution")
    assert asked == [("owner/name", "main", "test", "abc"), ("owner/name", None, "train", None)]


def test_a_hub_that_can_not_be_reached_is_said_so(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"owner/name: can't load this data set from the Hub .*split test.*offline"):
        problems_from("hub:owner/name?split=test")


def test_a_benchmark_from_a_folder_and_from_the_hub(tmp_path, monkeypatch):
    lines(tmp_path / "gsm8k.jsonl", {"question": "1+1?", "answer": "2"})
    (problem,) = problems_from("gsm8k", data_dir=tmp_path)
    assert problem.extras == {"verifier": "math"}
    row = {"question": "1+1?", "answer": "Two: <<1+1=2>>\n#### 2"}
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: [row, row])
    first, second = problems_from("gsm8k")
    assert (first.question, first.answer, first.domain) == ("1+1?", "2", "math")
    assert (first.id, second.id) == ("gsm8k/0", "gsm8k/1")
    assert len(problems_from("gsm8k?limit=1")) == 1
    with pytest.raises(ConfigError, match="`limit` is its only setting"):
        problems_from("gsm8k?split=train")


def test_reasoning_gym_problems_carry_what_their_scorer_needs():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    first, second = problems_from("reasoning-gym:chain_sum?size=2&seed=7&min_terms=3&max_terms=3")
    assert first.id == "chain_sum/7/0"
    assert first.question != second.question
    assert first.extras["reasoning_gym"] == {
        "dataset": "chain_sum",
        "settings": {"size": 2, "seed": 7, "min_terms": 3, "max_terms": 3},
    }
    assert problems_from("reasoning-gym:chain_sum?size=2&seed=7&min_terms=3&max_terms=3")[0] == first
    with pytest.raises(ConfigError, match="reasoning-gym:chain_sum: can't be created"):
        problems_from("reasoning-gym:chain_sum?colour=red")
    with pytest.raises(ConfigError, match="reasoning-gym:no_such_thing: can't be created"):
        problems_from("reasoning-gym:no_such_thing")


def mixture(tmp_path, text):
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    return str(path)


def test_a_mixture_has_the_shares_of_its_weights_and_no_problem_twice(tmp_path):
    a, b = numbered(tmp_path / "a.jsonl", 40), numbered(tmp_path / "b.jsonl", 30)
    text = f"seed: 1\nsources:\n- {{source: {a}, weight: 1}}\n- {{source: {b}, weight: 3}}\n"
    problems = problems_from(mixture(tmp_path, text))
    assert Counter(p.id[0] for p in problems) == {"a": 10, "b": 30}
    assert len({p.id for p in problems}) == 40
    assert [p.id[0] for p in problems] != sorted(p.id[0] for p in problems), "shuffled"
    assert problems == problems_from(mixture(tmp_path, text))
    smaller = problems_from(mixture(tmp_path, f"size: 8\n{text}"))
    assert Counter(p.id[0] for p in smaller) == {"a": 2, "b": 6}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("sources: []", "a list `sources`"),
        ("sources: [{source: A, weight: 0}]", "weight of .* must be a finite number above 0"),
        ("sources: [{source: A, share: 1}]", "each source must be"),
        ("sources: [{source: other.yaml}]", "a mixture cannot contain a mixture"),
        ("sources: [{source: A}]\nsise: 3", "unknown keys: sise"),
        ("sources: [{source: A}]\nsize: 99", "it can be 1 to 5 without using a problem twice"),
        ("sources: [{source: A}, {source: A}]", "occurs in two sources"),
        ("sources: [", "not valid YAML"),
    ],
)
def test_a_mixture_says_what_is_wrong_with_it(tmp_path, text, fault):
    a = numbered(tmp_path / "a.jsonl", 5)
    with pytest.raises((DataError, ConfigError), match=fault) as caught:
        problems_from(mixture(tmp_path, text.replace("A", a)))
    assert "mix.yaml" in str(caught.value)


def test_a_problem_may_be_a_conversation(tmp_path):
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1+1?"}]
    (problem,) = problems_from(lines(tmp_path / "c.jsonl", {"messages": talk, "answer": "2"}))
    assert problem.question == "1+1?"
    assert problem.prompt("Another system prompt.") == talk
    plain = Problem("p", "1+1?", "2")
    assert plain.prompt("S") == [{"role": "system", "content": "S"}, {"role": "user", "content": "1+1?"}]
    for bad, fault in (
        ([], "give a list"),
        ("x", "a JSON string"),
        ([{"role": "user"}], "'role' and 'content'"),
        ([*talk, {"role": "assistant", "content": "2"}], "must be the user's"),
    ):
        with pytest.raises(DataError, match=f"field 'messages'.*{fault}"):
            problems_from(lines(tmp_path / "d.jsonl", {"messages": bad, "answer": "2"}))


@pytest.mark.parametrize(
    ("problem", "verifier", "kind"),
    [
        (Problem("", "?", "2"), "math", "math"),
        (Problem("", "?", "B", "commonsense", {"choices": ["x", "y"]}), "choice", "choice"),
        (Problem("", "?", "(F)", "commonsense"), "choice", "choice"),
        (Problem("", "?", "Yes", "commonsense"), "choice", "choice"),
        (Problem("", "?", "Paris", "commonsense", {"aliases": ["Paris"]}), "qa", "qa"),
        (Problem("", "?", "assert f()", "code"), "code", "tests"),
        (Problem("", "?", "[1]", "code", {"answer_kind": "literal"}), "code", "literal"),
        (Problem("", "?", "A", "law", {"verifier": "choice"}), "choice", "choice"),
    ],
)
def test_a_problem_implies_its_verifier_and_kind_of_answer(problem, verifier, kind):
    assert verifier_name(problem) == verifier
    assert answer_type(problem) == kind


def test_an_unknown_domain_is_no_guess():
    with pytest.raises(DataError, match=r"problem p: the domain 'law' has no default verifier.*--verifier"):
        verifier_name(Problem("p", "?", "A", "law"))


def test_sources_load_without_torch_or_datasets():
    import subprocess
    import sys

    code = "import sys, gtpo.tasks.sources; sys.exit(bool({'torch', 'datasets', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert sources.__doc__


def test_a_source_names_no_code(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text('{"question": "1+1?", "answer": "2"}\n')
    with pytest.raises(ConfigError, match="a row cannot name the verifier 'cProfile:run'"):
        problems_from(f"{path}?verifier=cProfile:run")
