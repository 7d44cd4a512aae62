"""Signals that ask a process to end: noted once, a second one ends it, and terminals that hang up do no harm."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

from gtpo._signals import STOPPED_STATUS, StopSignals, stop_signals

WAITS = """
import sys, time
from gtpo._signals import stop_signals
with stop_signals(lambda text: print(text, file=sys.stderr, flush=True)) as stop, stop.deferred():
    print("ready", flush=True)
    while stop.requested is None:
        time.sleep(0.01)
    time.sleep(float(sys.argv[1]))
    print("saved by", stop.requested.name, flush=True)
    sys.exit(75)
"""


def start(script, *options, prefix=(), **more):
    command = [*prefix, sys.executable, "-c", script, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_the_first_signal_is_noted_and_the_work_is_brought_to_its_end(number):
    process = start(WAITS, "0.1")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (STOPPED_STATUS, f"saved by {number.name}\n")
    assert err == f"{number.name}: ending after the work in progress; a second signal ends at once\n"


def test_a_second_one_ends_the_process_while_it_works_and_one_right_after_the_first_does_not():
    process = start(WAITS, "60")
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)  # the same stop, passed on by a launcher
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    process.communicate()


def test_a_second_one_ends_a_process_whose_main_thread_is_in_a_long_computation():
    script = """
import ctypes
from gtpo._signals import stop_signals
with stop_signals() as stop, stop.deferred():
    print("ready", flush=True)
    libc = ctypes.CDLL(None)
    while True:  # outside of Python, so no handler of its runs for as long
        libc.poll(None, 0, 100000)
"""
    process = start(script)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    process.communicate()


def test_what_is_ignored_stays_ignored_as_under_nohup():
    process = start(WAITS, "0", prefix=("nohup",), stdin=subprocess.DEVNULL)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out == "saved by SIGTERM\n"


INTERRUPTED = """
import asyncio, signal, sys
from gtpo._signals import stop_signals
if sys.argv[1] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)

async def work():
    try:
        print("ready", flush=True)
        await asyncio.sleep(60)
    finally:
        print("kept", flush=True)

with stop_signals() as stop:
    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        print("stopped by", stop.requested.name, flush=True)
"""


@pytest.mark.parametrize("interrupts", ["taken", "ignored"])
def test_outside_of_what_is_deferred_it_interrupts_and_coroutines_clean_up(interrupts):
    process = start(INTERRUPTED, interrupts)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert out == "kept\nstopped by SIGTERM\n", err


ON_TERMINAL = """
import os, sys, time
from gtpo._signals import stop_signals
with stop_signals() as stop, stop.deferred():
    print("ready", flush=True)
    while stop.requested is None:
        time.sleep(0.01)
    time.sleep(0.2)
    print("to a terminal that is gone", flush=True)
    open(sys.argv[1], "w").write(stop.requested.name)
"""


def test_a_closing_terminal_is_a_signal_and_writing_to_it_no_error(tmp_path):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", ON_TERMINAL, str(tmp_path / "done")])
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 100)
    os.close(terminal)
    _, ended = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended) == 0
    assert (tmp_path / "done").read_text() == "SIGHUP"


def test_a_forked_child_is_ended_by_its_signals_and_does_not_tell_its_parent():
    with stop_signals() as stop, stop.deferred():
        started, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(told, b".")  # CPython forgets signals that come while it forks
            time.sleep(60)
            os._exit(0)
        os.read(started, 1)
        os.close(started)
        os.close(told)
        os.kill(pid, signal.SIGTERM)
        _, ended = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(ended) == -signal.SIGTERM
        time.sleep(0.1)
        assert stop.requested is None


def test_handlers_are_as_before_afterwards_and_inner_ones_are_the_outer_one():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as outer:
        assert signal.getsignal(signal.SIGTERM) != before
        with stop_signals() as inner:
            assert inner is outer
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_elsewhere_than_in_the_main_thread_none_is_noted():
    found = []

    def work():
        with stop_signals() as stop:
            found.append((type(stop), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(StopSignals, None)]
