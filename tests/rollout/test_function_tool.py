"""Functions of the user's own that block, in every way that a function can: nothing else waits for them."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from pathlib import Path

import pytest
from tool_functions import COUNT, counts

from gtpo.errors import ConfigError
from gtpo.rollout import FunctionTool, ToolResult
from gtpo.rollout.tool_process import ToolProcessError
from gtpo.rollout.tool_threads import ToolStuckError
from gtpo.types import ToolCall

RELEASE = threading.Event()
CANCELLED = []


def blocks(word: str) -> str:
    """Block in a thread.

    Args:
        word: any.
    """
    RELEASE.wait(60)
    return word


async def blocks_its_loop(word: str) -> str:
    """Block the event loop.

    Args:
        word: "block" to do so.
    """
    if word == "block":
        RELEASE.wait(60)
    return word


async def waits(word: str) -> str:
    """Wait as a coroutine should.

    Args:
        word: any.
    """
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        CANCELLED.append(word)
        raise
    return word


def raises(word: str) -> str:
    """Raise.

    Args:
        word: what.
    """
    if word == "exit":
        raise SystemExit(3)
    if word == "timeout":
        raise TimeoutError("of its own")
    raise Unprintable


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.fixture(autouse=True)
def release():
    RELEASE.clear()
    yield
    RELEASE.set()


def call(tool, *words):
    async def main():
        return await asyncio.gather(
            *(tool.open(i).run(ToolCall("", tool.spec.name, {"word": word})) for i, word in enumerate(words))
        )

    return asyncio.run(main())


@pytest.mark.parametrize("function", [blocks, blocks_its_loop, waits])
def test_a_call_past_its_limit_is_over_for_its_rollout(function):
    tool = FunctionTool(function, timeout_s=0.1)
    late = ToolResult("TimeoutError: no result within 0.1 s", "timeout")
    began = time.monotonic()
    assert call(tool, "block", "block") == [late] * 2
    assert time.monotonic() - began < 30
    assert function is not waits or len(CANCELLED) == 2


def test_a_loop_that_is_blocked_is_left_and_later_calls_get_a_new_one(monkeypatch):
    monkeypatch.setattr("gtpo.rollout.tool_threads._ANSWER_S", 0.1)
    tool = FunctionTool(blocks_its_loop, timeout_s=0.2)
    assert [result.status for result in call(tool, "block")] == ["timeout"]
    assert [result.text for result in call(tool, "a", "b")] == ["a", "b"]


def test_calls_that_never_end_are_bounded_in_number_and_fail_as_a_tool(monkeypatch):
    monkeypatch.setattr("gtpo.rollout.tool_threads.MOST_STUCK", 2)
    tool = FunctionTool(blocks, timeout_s=0.05)
    assert {result.status for result in call(tool, "a", "b")} == {"timeout"}
    with pytest.raises(
        ToolStuckError, match=r"2 calls are still running after their time limit of 0.05 s, .*process=True"
    ):
        call(tool, "c")
    RELEASE.set()
    deadline = time.monotonic() + 20
    while tool._calls._stuck and time.monotonic() < deadline:
        time.sleep(0.01)
    assert call(tool, "d") == [ToolResult("d")]


def test_what_a_function_raises_is_an_observation_and_not_a_time_out():
    found = call(FunctionTool(raises), "exit", "timeout", "x")
    assert [result.status for result in found] == ["error"] * 3
    assert [result.text for result in found] == [
        "RuntimeError: SystemExit(3)",
        "TimeoutError: of its own",
        "Unprintable: (without text)",
    ]


def test_the_program_does_not_wait_for_calls_that_go_on():
    for function in (blocks, blocks_its_loop):
        call(FunctionTool(function, timeout_s=0.05), "block")
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("gtpo-tool")]
    assert len(threads) >= 2
    assert all(thread.daemon for thread in threads)


def test_a_process_of_its_own_is_killed_even_in_c_code_that_holds_the_interpreter_lock():
    tool = FunctionTool(counts, timeout_s=0.3, process=True)
    assert call(tool, "count") == [ToolResult('{"count": 1}')]
    assert call(tool, "count") == [ToolResult('{"count": 2}')], "one process for call after call"
    assert call(tool, "hold the lock") == [ToolResult("TimeoutError: no result within 0.3 s", "timeout")]
    assert call(tool, "count") == [ToolResult('{"count": 1}')], "a new one"
    assert call(tool, "raise") == [ToolResult("ValueError: no \ud800", "error")]
    assert call(tool, "end") == [ToolResult("the end", "found", final=True)]
    with pytest.raises(ToolProcessError, match=r"ended in the middle of a call \(exit status 7\)"):
        call(tool, "die")
    assert COUNT == [0]


def test_a_call_that_is_cancelled_ends_its_process():
    tool = FunctionTool(counts, timeout_s=60, process=True)

    async def main():
        running = asyncio.ensure_future(tool.run(ToolCall("", "counts", {"word": "hold the lock"})))
        while not (threads := [t for t in threading.enumerate() if t.name == "gtpo-tool"]):
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return threads

    for thread in asyncio.run(main()):
        thread.join(20)
        assert not thread.is_alive()


def _trainer(pids):
    tool = FunctionTool(counts, timeout_s=60, process=True)
    call(tool, "count")
    pids.put(tool._calls._idle[0]._process.pid)
    call(tool, "hold the lock")


def test_no_process_is_left_when_the_trainer_is_killed():
    context = multiprocessing.get_context("fork")
    pids = context.Queue()
    trainer = context.Process(target=_trainer, args=(pids,))
    trainer.start()
    pid = pids.get(timeout=30)
    time.sleep(0.3)
    trainer.kill()
    trainer.join()
    deadline = time.monotonic() + 20
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _lives(pid)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_can_not_be_loaded_in_a_process_is_said():
    def local(word: str) -> str:
        """No.

        Args:
            word: any.
        """
        return word

    with pytest.raises(ConfigError, match=r"local' can't run in a separate process: define it at the top"):
        FunctionTool(local, process=True)
    for limit in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="timeout_s must be finite and above 0"):
            FunctionTool(blocks, timeout_s=limit)
