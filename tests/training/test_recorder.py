"""The run's directory: whole files or none, clear errors, and a rewind on resume."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from gtpo.errors import RecordError
from gtpo.run_directory import SCHEMA_VERSION
from gtpo.training.recorder import RunRecorder

Usage = namedtuple("Usage", "total used free")


def row(rollout, group, **more):
    return {"rollout": rollout, "group": group, **more}


def read(file):
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def test_files_are_replaced_whole(tmp_path):
    recorder = RunRecorder(tmp_path)
    recorder.write_rollouts(2, [row(0, 0)])
    RunRecorder(tmp_path).write_rollouts(2, [row(0, 0, a=3)])
    (file,) = (tmp_path / "rollouts").iterdir()
    assert file.name == "step_000002.jsonl.gz"
    assert read(file) == [{"schema": SCHEMA_VERSION, "step": 2, **row(0, 0, a=3), "similarities": {}}]


def test_a_second_batch_of_a_step_is_added_to_the_first_and_numbered_on(tmp_path):
    recorder = RunRecorder(tmp_path)
    recorder.write_rollouts(1, [row(0, 0), row(1, 0, similarities={"0": 0.5}), row(2, 1)])
    recorder.write_rollouts(1, [row(0, 0), row(1, 0, similarities={"0": 0.25})])
    recorder.write_rollouts(2, [row(0, 0)])
    first, second = sorted((tmp_path / "rollouts").iterdir())
    assert [(r["rollout"], r["group"], r["similarities"]) for r in read(first)] == [
        (0, 0, {}),
        (1, 0, {"0": 0.5}),
        (2, 1, {}),
        (3, 2, {}),
        (4, 2, {"3": 0.25}),
    ]
    assert len(read(second)) == 1


def test_a_rewind_forgets_what_came_after_and_lines_that_a_kill_cut(tmp_path):
    recorder = RunRecorder(tmp_path)
    for step in (1, 2, 3):
        recorder.append_metrics({"step": step})
        recorder.write_rollouts(step, [])
    with recorder.metrics_path.open("a") as file:
        file.write('{"step": 4, "lo')
    recorder.rewind(2)
    assert [json.loads(line)["step"] for line in recorder.metrics_path.read_text().splitlines()] == [1, 2]
    assert len(list((tmp_path / "rollouts").iterdir())) == 2


def test_too_little_room_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 100, 2**20))
    with pytest.raises(RecordError, match=r"only 1 MB are free.*--run_dir"):
        RunRecorder(tmp_path)


def test_a_path_that_can_not_be_made_is_told_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="can't be written"):
        RunRecorder(tmp_path / "file" / "run")


FULL_DISK = """
import resource, signal, sys
from gtpo.training.recorder import RunRecorder
from gtpo.errors import RecordError
recorder = RunRecorder(sys.argv[1])
import random
text = "".join(random.Random(1).choices("abcdefgh0123456789", k=100_000))  # does not compress away
recorder.write_rollouts(1, [{"rollout": 0, "group": 0, "text": "a"}])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # writes past 4 KiB fail, as on a full disk
try:
    recorder.write_rollouts(2, [{"rollout": 0, "group": 0, "text": text}])
except RecordError as error:
    print(error)
"""


def test_a_disk_that_fills_up_says_how_to_go_on_and_leaves_what_was_there(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step_000002.jsonl.gz: can't be written" in done.stdout
    assert "--resume" in done.stdout
    assert [file.name for file in (tmp_path / "rollouts").iterdir()] == ["step_000001.jsonl.gz"]
