"""The hundred behaviours in every situation, each situation once, with the same list outside any sandbox as control.

`drive.py` is the trainer of a trial and can be run by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from behaviours import ALL, BEHAVIOURS, Facts
from behaviours.introspection import FORGE, LEAVE_MARKER, SCAN_HEAP, SEARCH_OBJECTS
from drive import ALL_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the situations are made with Linux's means")

LEVELS = {"root": "namespaces", "user": "namespaces", "container_root": "landlock", "container_user": "landlock"}

# Landlock has no say over `stat`; hiding what exists takes a root of one's own.
NOT_HELD = {
    "root": set(),
    "user": set(),
    "container_root": {"stat secret file"},
    "container_user": {"stat secret file"},
}

# What an ordinary `python -c` does on any Linux machine, whoever runs it.
DONE_WITHOUT_SANDBOX = {
    "memory memfd", "memory sysv shm", "sparse file", "read etc passwd", "read secret file", "stat secret file",
    "write outside", "append secret file", "chmod secret file", "utime secret file", "symlink escape",
    "hardlink secret", "tmp is private and wiped", "tcp localhost", "udp send", "dns", "unix socket",
    "ctypes socket", "subprocess", "os system", "exec replace", "daemonise double fork", "leave process group",
    "kill victim", "exotic syscalls", "multiprocessing pool", "environment", "proc environ", "atexit bomb", "del bomb",
    "one giant print", "partial kept on timeout", "lone surrogate", "nul byte", "surrogate in source",
    "last expression", "last is multiline", "bad repr", "big integers",
}  # fmt: skip

FACTS = Facts("", "/secret", 0, "/outside", 0, 0, 1, "/socket", "abstract", "mark4711", "1174kram")


@pytest.fixture(scope="session")
def report_of(tmp_path_factory):
    """The driver's report of a situation, made when it is first asked for; skips where it is unavailable."""
    folder, made = tmp_path_factory.mktemp("behaviours"), {}

    def report(situation: str) -> dict:
        if situation not in made:
            output = folder / f"{situation}.json"
            driver = str(Path(__file__).with_name("drive.py"))
            command = [sys.executable, driver, "--situation", situation, "--output", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=ALL_S + 30, check=False)
            made[situation] = {"failed": done.stderr[-3000:]} if done.returncode else json.loads(output.read_text())
        found = made[situation]
        if "failed" in found:
            pytest.fail(found["failed"], pytrace=False)
        if "impossible" in found:
            pytest.skip(f"{situation}: {found['impossible']}")
        return found

    return report


@pytest.mark.parametrize("name", [behaviour.name for behaviour in ALL])
@pytest.mark.parametrize("situation", LEVELS)
def test_behaviour(report_of, situation, name):
    sentence = report_of(situation)["behaviours"][name]
    if name in NOT_HELD[situation]:
        assert sentence, "it holds, against what is known of this situation"
    elif sentence:
        pytest.fail(sentence, pytrace=False)


@pytest.mark.parametrize("situation", LEVELS)
def test_level_says_what_holds(report_of, situation):
    level = report_of(situation)["level"]
    assert level["name"] == LEVELS[situation]
    assert level["paths_hidden"] == ("stat secret file" not in NOT_HELD[situation])
    for promise in ("network_denied", "processes_denied", "signals_denied"):
        assert level[promise]
    assert level["filesystem_reads_confined"]
    assert level["filesystem_writes_confined"]


@pytest.mark.parametrize("situation", LEVELS)
def test_situation_is_what_it_says(report_of, situation):
    present = report_of(situation)["present"]
    assert (present["uid"] == 0) == situation.endswith("root")
    assert present["namespaces"] == (not situation.startswith("container"))
    assert (present["seccomp"] == 2) == situation.startswith("container") or os.geteuid() != 0
    if situation.endswith("user"):
        assert present["capabilities"] == 0
    if situation == "container_root":
        assert present["capabilities"] & ~0xA80425FB == 0


def test_control_most_deeds_are_done_without_a_sandbox(report_of):
    done = {name for name, sentence in report_of("plain")["behaviours"].items() if sentence}
    assert len(DONE_WITHOUT_SANDBOX) >= 30
    assert done >= DONE_WITHOUT_SANDBOX, sorted(DONE_WITHOUT_SANDBOX - done)


def test_there_are_a_hundred():
    assert len(BEHAVIOURS) == 100
    assert len({behaviour.name for behaviour in ALL}) == len(ALL)


def test_programs_are_python_where_they_are_meant_to_be():
    for behaviour in ALL:
        for code in behaviour.programs if behaviour.area != "syntax" else ():
            compile(FACTS.fill(code), behaviour.name, "exec")


def test_placeholders_become_literals():
    assert (
        FACTS.fill("open(SECRET_FILE + SOCKET_FILE), MY_SECRET_FILE") == "open('/secret' + '/socket'), MY_SECRET_FILE"
    )


@pytest.mark.parametrize("search", [SEARCH_OBJECTS, SCAN_HEAP], ids=["objects", "heap"])
def test_control_a_search_finds_what_is_in_its_own_memory(search):
    """In one process with the program that leaves the marker, both searches find it; without it, neither does."""
    for leave, expected in ((LEAVE_MARKER, True), ("", False)):
        scanned, found = plain(FACTS.fill(f"{leave}\n{search}")).stdout.split()[-2:]
        assert scanned == "True"
        assert (int(found) > 0) is expected


def test_control_the_forger_finds_a_channel_that_is_open():
    read, write = os.pipe()
    try:
        assert plain(FORGE, pass_fds=[write]).stdout == f"reached [{write}]\n"
        assert os.read(read, 100).startswith(b'{"id": 1, "status": "ok"')
    finally:
        os.close(read)
        os.close(write)


def plain(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)
