"""The lock on what one process at a time may write."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from gtpo._lock import locked
from gtpo.errors import ConfigError, RecordError

SAID = {"what": "the output x.json", "mend": "give another --output"}


def _hold(path, taken):
    with locked(path, **SAID):
        taken.set()
        signal.pause()


def test_a_second_process_is_told_who_has_it_and_gets_it_after_a_kill(tmp_path):
    path, context = tmp_path / "new" / ".lock", multiprocessing.get_context("fork")
    taken = context.Event()
    holder = context.Process(target=_hold, args=(path, taken))
    holder.start()
    assert taken.wait(20)
    sentence = rf"x\.json is in use by another process \(process {holder.pid} on .*\): give another --output"
    with pytest.raises(ConfigError, match=sentence), locked(path, **SAID):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert path.exists(), "a kill leaves the file, which must keep nobody out"
    with locked(path, **SAID):
        pass
    assert not path.exists()


def test_the_same_process_has_it_once_and_again_after_the_end(tmp_path):
    path = tmp_path / ".lock"
    for _ in range(2):
        with locked(path, **SAID), pytest.raises(ConfigError), locked(path, **SAID):
            pass


def test_a_lock_on_a_file_that_was_removed_is_no_lock(tmp_path):
    path = tmp_path / ".lock"
    with locked(path, **SAID):
        path.unlink()
        with locked(path, **SAID):
            assert path.exists()
        with locked(path, **SAID):
            assert path.exists()


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="it is the lock on the output"), locked(tmp_path / "file" / "lock", **SAID):
        pass
