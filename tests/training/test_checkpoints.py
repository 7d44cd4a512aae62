"""Checkpoints that are whole, or are not taken; and the lock on a run's directory."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from gtpo import _lock
from gtpo._files import partial_folder
from gtpo._lock import file_system_of
from gtpo.errors import ConfigError, RecordError
from gtpo.training.checkpoints import MANIFEST, flaw_of, is_write_failure, last_checkpoint, newest_whole, rotate, seal
from gtpo.training.lock import LOCK, RunLock

PARTS = ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json")


def checkpoint(folder, step, parts=PARTS, sealed=True, **options):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for part in parts:
        (path / part).parent.mkdir(exist_ok=True)
        (path / part).write_bytes(f"{part} of {step}".encode())
    if sealed:
        seal(path, **options)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path):
    path.write_bytes(path.read_bytes()[:-1] + b"#")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("damage", "said"),
    [(cut, "has 1?[0-9]+ bytes instead of"), (flipped, "has changed since"), (os.unlink, "is missing")],
)
def test_damage_to_any_part_is_found_and_named(tmp_path, part, damage, said):
    path = checkpoint(tmp_path, 4)
    assert flaw_of(path) is None
    damage(path / part)
    flaw = flaw_of(path)
    assert flaw
    assert flaw.startswith(f"{part} has" if "has" in said else f"{part} is missing")


@pytest.mark.parametrize("manifest", [None, "", "{", "[]", '{"files": 3}', '{"files": {"a": {}}}'])
def test_a_manifest_that_is_missing_or_broken_is_no_seal(tmp_path, manifest):
    path = checkpoint(tmp_path, 4, sealed=False)
    if manifest is not None:
        (path / MANIFEST).write_text(manifest)
    flaw = flaw_of(path)
    assert flaw
    assert MANIFEST in flaw


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_that_lacks_a_part_is_not_gone_on_from(tmp_path, part):
    path = checkpoint(tmp_path, 4, [name for name in PARTS if name != part])
    assert "it has no " in str(flaw_of(path))


@pytest.mark.parametrize(
    "parts",
    [
        ("pytorch_model_fsdp_0/a.distcp", "optimizer_0/b.distcp", "rng_state_0.pth", "trainer_state.json"),
        ("global_step4/zero_pp_rank_0.pt", "latest", "rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"),
        ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"),
    ],
)
def test_sharded_and_adapter_checkpoints_are_whole(tmp_path, parts):
    assert flaw_of(checkpoint(tmp_path, 4, parts)) is None


def test_the_newest_whole_one_is_taken_and_what_is_wrong_with_newer_ones_is_said(tmp_path):
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 10)
    cut(checkpoint(tmp_path, 20) / "optimizer.pt")
    checkpoint(tmp_path, 30, sealed=False)
    said = []
    assert newest_whole(tmp_path, said.append) == tmp_path / "checkpoint-10"
    assert len(said) == 2
    assert "checkpoint-30 is skipped: it is unfinished" in said[0]
    assert "checkpoint-20 is skipped: optimizer.pt has" in said[1]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-10", "damaged-checkpoint-20"}


def test_without_a_whole_one_there_is_nothing_to_go_on_from(tmp_path):
    checkpoint(tmp_path, 30, sealed=False)
    with pytest.raises(ConfigError, match=r"no whole checkpoint in .*--resume auto"):
        last_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        last_checkpoint(tmp_path / "nowhere")


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_older_ones_go_by_the_limit_and_rolling_ones_when_two_newer_ones_are_there(tmp_path):
    for step, rolling in ((1, False), (2, True), (3, True), (4, False), (5, True)):
        checkpoint(tmp_path, step, rolling=rolling)
    checkpoint(tmp_path, 0, sealed=False)
    (tmp_path / "checkpoint-best").mkdir()
    rotate(tmp_path, None)
    kept = ["checkpoint-0", "checkpoint-1", "checkpoint-4", "checkpoint-5", "checkpoint-best"]
    assert left(tmp_path) == kept, "whoever asked for checkpoints by steps keeps them all"
    rotate(tmp_path, 1, best=str(tmp_path / "checkpoint-1"))
    assert left(tmp_path) == ["checkpoint-0", "checkpoint-1", "checkpoint-5", "checkpoint-best"]


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (OSError(28, "No space left on device"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (ValueError("shapes differ"), False),
    ],
)
def test_failed_writes_are_told_from_other_errors_whoever_raises_them(error, is_one):
    assert is_write_failure(error) == is_one


def hold_in_a_child(folder):
    """A process that holds the directory; its id."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        RunLock(folder)
        os.write(write, b"1")
        time.sleep(60)
        os._exit(0)
    assert os.read(read, 1) == b"1"
    os.close(read)
    os.close(write)
    return pid


def test_a_second_trainer_is_kept_out_until_the_first_one_dies(tmp_path):
    pid = hold_in_a_child(tmp_path)
    with pytest.raises(ConfigError, match=rf"in use by another process \(process {pid} on .*--run_dir"):
        RunLock(tmp_path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    RunLock(tmp_path).release()


def test_a_forked_child_does_not_keep_the_lock_of_a_parent_that_is_gone(tmp_path):
    held = RunLock(tmp_path)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"1")
        time.sleep(60)
        os._exit(0)
    assert os.read(read, 1) == b"1"
    os.close(read)
    os.close(write)
    held.release()
    other = hold_in_a_child(tmp_path)
    for child in (pid, other):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_stages_of_one_command_share_the_lock(tmp_path):
    outer, inner = RunLock(tmp_path), RunLock(tmp_path)
    inner.release()
    pid = os.fork()
    if pid == 0:
        try:
            RunLock(tmp_path)
        except ConfigError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    outer.release()


@pytest.mark.parametrize("replace", [False, True])
def test_a_directory_that_is_moved_away_is_noticed(tmp_path, replace):
    folder = tmp_path / "run"
    folder.mkdir()
    held = RunLock(folder)
    held.check()
    folder.rename(tmp_path / "elsewhere")
    if replace:
        folder.mkdir()
        (folder / LOCK).write_text("")
    with pytest.raises(RecordError, match=r"was deleted, moved or replaced.*--resume true"):
        held.check()
    (tmp_path / "elsewhere").rename(tmp_path / "back")
    held.release()


def test_network_file_systems_and_those_without_locks_are_announced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(_lock, "file_system_of", lambda path: "nfs4")
    RunLock(tmp_path).release()
    assert "on a network file system (nfs4), so other machines may not see the lock" in caplog.text

    def no_locks(fd, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(_lock.fcntl, "flock", no_locks)
    RunLock(tmp_path).release()
    assert "this file system has no locks; make sure that no other process writes to the run directory" in caplog.text


def test_the_file_system_of_a_path_is_that_of_the_nearest_mount():
    from pathlib import Path

    assert file_system_of(Path("/proc/self")) == "proc"
    assert file_system_of(Path("/proc-not")) != "proc"


def test_a_manifest_names_every_file_with_its_size_and_hash(tmp_path):
    path = checkpoint(tmp_path, 4, ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"))
    files = json.loads((path / MANIFEST).read_text())["files"]
    assert set(files) == set(PARTS)
    assert files["optimizer.pt"]["bytes"] == len("optimizer.pt of 4")
    assert len(files["optimizer.pt"]["sha256"]) == 64


def test_a_process_that_comes_late_deletes_nothing_that_another_writes(tmp_path):
    folder = partial_folder(tmp_path / "model")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"being written")
    assert partial_folder(tmp_path / "model") == folder
    assert (folder / "model.safetensors").exists()
