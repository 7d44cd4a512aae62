"""The files of an evaluation: locked while it goes on, repaired after a kill, refused with file and line otherwise."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading

import pytest
from openai_server import CompletionServer

from gtpo.cli import main
from gtpo.errors import ConfigError, DataError, RecordError
from gtpo.evaluation import compare, load_result
from gtpo.evaluation.journal import Journal

HEADER = {"protocol": {"samples": 2}}


def sample(place, **changes):
    return {
        "problem_id": f"p{place // 2}",
        "sample": place % 2,
        "domain": "math",
        "source": "",
        "prompt": [{"role": "user", "content": f"q{place // 2}"}],
        "answer": "1",
        "passed": place % 3 == 0,
        "score": 1.0,
        "verdict": "",
        "extracted": None,
        "stop_reason": "answer",
        "calls": 0,
        "invalid_calls": 0,
        "sampled_tokens": 3,
        "observed_tokens": 0,
        "turns": [{"text": "", "results": [], "statuses": []}],
        **changes,
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "r.json.samples.jsonl"


@pytest.fixture
def written(path):
    """A journal of three samples, as its lines."""
    journal = Journal(path, HEADER)
    for place in range(3):
        journal.add(place, sample(place))
    journal.close()
    return path.read_bytes().splitlines(keepends=True)


def test_a_second_process_of_an_output_is_refused_and_a_closed_journal_is_free(path, written):
    journal = Journal(path, HEADER)
    with pytest.raises(ConfigError, match=rf"the journal .*samples\.jsonl is in use by .*process {os.getpid()} "):
        Journal(path, HEADER)
    journal.close()
    Journal(path, HEADER).close()
    with pytest.raises(ConfigError, match="another evaluation"):
        Journal(path, {"protocol": {"samples": 1}})
    Journal(path, HEADER).close()  # a refusal gives the lock back
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_last_line_that_a_kill_cut_is_taken_off_and_its_sample_made_again(path, written, cut):
    path.write_bytes(b"".join(written[:3]) + written[3][:cut])
    journal = Journal(path, HEADER)
    assert sorted(journal.samples) == [0, 1]
    journal.add(2, sample(2))
    journal.close()
    assert path.read_bytes() == b"".join(written)


def test_a_header_that_a_kill_cut_is_written_anew(path, written):
    path.write_bytes(written[0][:5])
    Journal(path, HEADER).close()
    assert path.read_bytes() == written[0]


def changed(line, **changes):
    record = {**json.loads(line), **changes}
    return json.dumps({name: value for name, value in record.items() if value is not ...}).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda line: line[:40] + b"\n", "2: broken JSON at column"),
        (lambda line: b"[1]\n", "2: a JSON array, not an object"),
        (lambda line: b"\xff\n", "2: not UTF-8"),
        (lambda line: b"\n", "2: broken JSON"),
        (lambda line: b"\0" * 20 + b"\n", "2: broken JSON"),
        (lambda line: line + line, "3: field 'number': occurs twice; delete the line"),
        (lambda line: changed(line, number=...), "2: field 'number': is not a whole number"),
        (lambda line: changed(line, number=-1), "2: field 'number'"),
        (lambda line: changed(line, number="0"), "2: field 'number'"),
        (lambda line: changed(line, passed=...), "2: field 'passed': missing"),
        (lambda line: changed(line, passed=1), "2: field 'passed': 1 is not a valid value"),
        (lambda line: changed(line, score="1"), "2: field 'score'"),
        (lambda line: changed(line, score=float("nan")), "2: field 'score': NaN is not a finite number"),
        (lambda line: changed(line, calls=True), "2: field 'calls'"),
        (lambda line: changed(line, turns=[{}]), "2: field 'turns': a turn has no statuses"),
    ],
)
def test_a_line_that_is_no_sample_is_refused_by_file_and_line(path, written, change, says):
    path.write_bytes(written[0] + change(written[1]) + b"".join(written[2:]))
    before = path.read_bytes()
    with pytest.raises(DataError, match=rf"^{path}:{says}"):
        Journal(path, HEADER)
    assert path.read_bytes() == before, "what people may want to mend is left as it is"


def test_a_full_disk_leaves_whole_lines(path, written, monkeypatch):
    journal = Journal(path, HEADER)
    file = journal._file

    class Full:
        def __getattr__(self, name):
            return getattr(file, name)

        def write(self, data):
            file.write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    journal._file = Full()
    said = r"samples\.jsonl: can't be written \(No space left on device\); free disk space"
    with pytest.raises(RecordError, match=said):
        journal.add(3, sample(3))
    journal.close()
    assert path.read_bytes() == b"".join(written)


def result(path, places=range(4), **changes):
    document = {
        "schema": 3,
        "protocol": {"samples": 2, "seed": 0, "rollout": {"max_turns": 4}},
        "versions": {},
        "samples": [sample(place) for place in places],
        **changes,
    }
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not ...}, indent=1))
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": []}, "field 'samples': missing or empty"),
        ({"samples": {"a": 1}}, "field 'samples'"),
        ({"samples": [sample(0), 3]}, r"sample 1 \(from 0\): not a sample of gtpo eval"),
        ({"samples": [sample(0, passed="yes")]}, r"field 'passed': sample 0 \(from 0\): 'yes' is not a valid value"),
        ({"protocol": ...}, "field 'protocol': missing"),
        ({"versions": []}, "field 'versions'"),
        ({"schema": "3"}, r"not a result of `gtpo eval` of schema 3 \(it says '3'\)"),
    ],
)
def test_a_result_that_is_none_is_named(tmp_path, changes, says):
    path = result(tmp_path / "a.json", **changes)
    with pytest.raises(DataError, match=rf"a\.json: {says}"):
        load_result(path)


def test_a_result_that_is_no_json_is_named_by_line(tmp_path):
    path = result(tmp_path / "a.json")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:9]))
    with pytest.raises(DataError, match=r"a\.json:9: not a result of `gtpo eval`: broken JSON at column"):
        load_result(path)
    for content in (b"\xff\xfe", b"[" * 10**5):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.json: not a result"):
            load_result(path)


def test_sets_that_are_not_alike_are_not_compared(tmp_path):
    one = result(tmp_path / "one.json")
    assert compare(one, result(tmp_path / "same.json")).overall.value == 0
    with pytest.raises(ConfigError, match="1 are in the first only"):
        compare(one, result(tmp_path / "fewer.json", range(2)))
    with pytest.raises(DataError, match=r"part\.json: field 'samples': the problem 'p1' has the samples \[0\]"):
        compare(one, result(tmp_path / "part.json", range(3)))
    with pytest.raises(DataError, match="has the samples"):
        compare(result(tmp_path / "twice.json", [0, 0, 2, 3]), one)
    for name, value, says in (
        ("samples", 3, "samples: 2 and 3"),
        ("rollout", {"max_turns": 5}, r"rollout\.max_turns: 4 and 5"),
    ):
        protocol = {"samples": 2, "seed": 0, "rollout": {"max_turns": 4}, name: value}
        other = result(tmp_path / "o.json", protocol=protocol)
        with pytest.raises(ConfigError, match=f"different protocols: {says}"):
            compare(one, other)


def test_a_folder_that_is_deleted_while_evaluating_and_two_commands_with_one_output(byte_model_dir, tmp_path, capsys):
    """The first one holds the output until its file is written, and writes it although the folder was deleted."""
    problems, output = tmp_path / "p.jsonl", tmp_path / "out" / "r.json"
    problems.write_text('{"question": "q", "answer": "1"}\n')
    asked, go_on, statuses = threading.Event(), threading.Event(), []

    def script(body):
        asked.set()
        assert go_on.wait(60)
        return 200, {"choices": [{"message": {"content": "\\boxed{1}"}, "finish_reason": "stop"}]}

    server = CompletionServer(script)
    argv = ["eval", "--model", str(byte_model_dir), "--problems", str(problems), "--tool_format", "fenced", "--tools"]
    argv += ["none", "--backend", "server", "--dialect", "openai", "--api", "chat", "--base_url", server.url]
    argv += ["--output", str(output)]
    first = threading.Thread(target=lambda: statuses.append(main(argv)))
    first.start()
    assert asked.wait(60)
    assert main(argv) == 2
    assert "r.json is in use by another process" in capsys.readouterr().err
    shutil.rmtree(output.parent)
    go_on.set()
    first.join()
    server.stop()
    assert statuses == [0]
    assert load_result(output)["pass_rate"] == 1.0
    assert [file.name for file in output.parent.iterdir()] == ["r.json"]
