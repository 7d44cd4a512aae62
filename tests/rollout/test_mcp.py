"""MCP servers as tools: real ones on stdio and HTTP, written with the SDK, and a tiny one with bad habits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("mcp", reason="needs the extra: pip install 'gtpo[mcp]'")

from gtpo.errors import ConfigError
from gtpo.rollout import ChatEncoder, MCPTools, RolloutEngine, RolloutLimits, get_format
from gtpo.rollout.mcp import connection
from gtpo.testing import ScriptedBackend
from gtpo.types import InvalidCall, StopReason, ToolCall

TESTS = Path(__file__).resolve().parents[1]
SDK = f"{sys.executable} {TESTS / 'mcp_server.py'}"
TINY = f"{sys.executable} -I -S {Path(__file__).with_name('tiny_mcp_server.py')}"


def call(_tool, **arguments):
    return ToolCall("", _tool, arguments)


async def used(tools, key, *calls):
    """What comes of calls in one rollout, one after the other."""
    uses = {tool.spec.name: tool.open(key) for tool in tools}
    try:
        return [await uses[one.name].run(one) for one in calls]
    finally:
        for use in uses.values():
            await use.aclose()
            await use.aclose()


def texts(tools, *calls, key=0):
    return [(result.status, result.text) for result in asyncio.run(used(tools, key, *calls))]


def alive(number):
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(numbers, within_s=20.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end and any(map(alive, numbers)):
        time.sleep(0.05)
    return not any(map(alive, numbers))


def noted(path, count=1, within_s=20.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end and not (path.exists() and len(path.read_text().split()) >= count):
        time.sleep(0.02)
    return [int(number) for number in path.read_text().split()]


@pytest.fixture(scope="module")
def http_url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*SDK.split(), "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait()


@pytest.fixture(scope="module", params=["stdio", "http"])
def real(request):
    """The tools of a server that was written with the SDK."""
    address = SDK if request.param == "stdio" else request.getfixturevalue("http_url")
    tools = MCPTools(address, session="shared", connect_s=60, env={"GIVEN": "yes"})
    yield tools
    tools.close()


class Test_a_server_written_with_the_sdk:
    def test_its_tools_come_by_name_with_their_schemas(self, real):
        specs = {tool.spec.name: tool.spec for tool in real}
        assert list(specs) == ["add", "count", "weather", "boom", "wait", "big", "environment"]
        assert specs["add"].required == ("a",)
        assert specs["count"].required == ()
        assert specs["count"].parameters == {}
        place = specs["weather"].parameters["place"]
        assert place["properties"]["city"]["type"] == "string", "the definition stands where it was referred to"
        assert "$ref" not in json.dumps(specs["weather"].schema)
        assert specs["weather"].call({"place": {"city": "Rome"}, "days": None}).arguments["days"] is None
        assert specs["weather"].call({"place": {}, "days": "2"}) == InvalidCall(
            'the argument "days" must be an integer or null'
        )

    def test_results_and_errors_are_observations(self, real):
        found = texts(
            real,
            call("add", a=2, b=3),
            call("weather", place={"city": "Rome"}, tags=["a"]),
            call("boom"),
            call("weather", place={"town": "Rome"}),
            call("big", length=200_000),
        )
        assert found[0] == ("ok", "5")
        assert found[1] == ("ok", "rain in Rome for None days ['a']")
        assert found[2][0] == "error"
        assert "boom" in found[2][1]
        assert found[3][0] == "error"
        assert "place.city" in found[3][1], "the server checks what is within an argument, and says what is wrong"
        assert found[4] == ("ok", "x" * 200_000)

    def test_calls_of_many_rollouts_are_answered_at_the_same_time(self, real):
        async def all_of_them():
            return await asyncio.gather(*(used(real, i, call("wait", seconds=0.3 * (i == 0))) for i in range(8)))

        assert [found[0].text for found in asyncio.run(all_of_them())] == ["waited 0.3", *["waited 0.0"] * 7]

    def test_a_server_on_stdio_gets_the_variables_that_it_was_given(self, real, monkeypatch):
        if real.server.is_url:
            pytest.skip("a server on HTTP has an environment of its own")
        ((_, given), (_, home), (_, secret)) = texts(
            real, *(call("environment", name=name) for name in ("GIVEN", "HOME", "HF_HUB_OFFLINE"))
        )
        assert (given, home, secret) == ("yes", os.environ.get("HOME", "not set"), "not set")


def test_each_rollout_has_a_session_of_its_own_on_http(http_url):
    tools = MCPTools(http_url, only=["count", "add"])
    assert [tool.spec.name for tool in tools] == ["count", "add"]

    async def two():
        return await asyncio.gather(
            *(used(tools, key, call("count"), call("add", a=1), call("count")) for key in (0, 0))
        )

    first, second = ([result.text for result in results] for results in asyncio.run(two()))
    assert [text.split()[0] for text in (*first, *second)] == ["1", "2", "2", "1", "2", "2"]
    assert first[0].split()[-1] != second[0].split()[-1], "two rollouts, also of one number"
    shared = MCPTools(http_url, only=["count"], session="shared")
    assert [texts(shared, call("count"), key=key)[0][1].split()[0] for key in range(3)] == ["1", "2", "3"]


@pytest.fixture
def tiny():
    made = []

    def make(options="", **more):
        made.append(MCPTools(f"{TINY} {options}", **{"connect_s": 60, **more}))
        return made[-1]

    yield make
    for tools in made:
        tools.close()


def test_each_rollout_has_a_process_of_its_own_or_all_share_one(tiny, tmp_path):
    own, shared = tiny(f"--note {tmp_path / 'own'}"), tiny(f"--note {tmp_path / 'shared'}", session="shared")
    twice = [call("count"), call("count")]
    assert [text.split()[0] for key in (0, 1) for _, text in texts(own, *twice, key=key)] == ["1", "2", "1", "2"]
    assert [text.split()[0] for key in (0, 1) for _, text in texts(shared, *twice, key=key)] == ["1", "2", "3", "4"]
    started = noted(tmp_path / "own", 3)
    assert len(started) == 3, "one to learn of the tools, and one per rollout"
    assert gone(started)
    (one,) = noted(tmp_path / "shared")
    assert alive(one)
    shared.close()
    assert gone([one])


def test_a_rollout_without_a_call_starts_nothing(tiny, tmp_path):
    tools = tiny(f"--note {tmp_path / 'started'}")
    assert texts(tools) == []
    assert len(noted(tmp_path / "started")) == 1


def test_what_is_not_text_is_named_and_tools_are_listed_once_per_session(tiny):
    tools = tiny()
    assert texts(tools, call("picture"), call("echo", text="ä"), call("nothing")) == [
        ("ok", "[image: image/png]\n[resource file:///x]\na note"),
        ("ok", "ä"),
        ("ok", '{"listings": 2}'),  # two pages; the SDK would list them again with each call
    ]


def roll(tokenizer, tools, scripts, **limits):
    encoder = ChatEncoder(tokenizer, get_format("tool_call", [tool.spec for tool in tools]))
    prompts = [[{"role": "user", "content": question}] for question in scripts]
    said = {tuple(encoder.prompt_ids(p)): turns for p, turns in zip(prompts, scripts.values(), strict=True)}
    engine = RolloutEngine(encoder, list(tools), RolloutLimits(**{"max_completion_length": 2**20, **limits}))
    return engine.run(prompts, ScriptedBackend(tokenizer, said)).trajectories


def said(_tool, **arguments):
    return f"<tool_call>{json.dumps({'name': _tool, 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize("session", ["rollout", "shared"])
def test_a_server_that_dies_masks_its_rollout_and_is_started_again(qwen_tokenizer, tiny, session):
    tools = tiny(session=session)
    lost, done = roll(qwen_tokenizer, tools, {"a": [said("die"), "2"], "b": ["3"]})
    assert lost.stop_reason is StopReason.TOOL_FAILURE
    assert "so long" in lost.note, "the last that it wrote"
    assert done.stop_reason is StopReason.ANSWER
    (after,) = roll(qwen_tokenizer, tools, {"c": [said("count"), "2"]})
    assert after.turns[0].observation.text.startswith("1 in ")
    assert after.stop_reason is StopReason.ANSWER


def test_a_server_that_answers_nothing_any_more_is_ended(tiny, monkeypatch):
    monkeypatch.setattr(connection, "_PING_S", 0.3)
    found = texts(tiny(call_s=0.3), call("count"), call("hang"), call("count"))
    assert found[1][0] == "timeout"
    assert "no result within 0.3 s; the session was started anew" in found[1][1]
    assert found[0][1].startswith("1 in ")
    assert found[2][1].startswith("1 in ")
    assert found[0][1] != found[2][1]


def test_a_call_past_its_time_is_told_and_the_session_goes_on(http_url):
    tools = MCPTools(http_url, call_s=0.5)
    found = texts(tools, call("count"), call("wait", seconds=30), call("count"))
    assert found[1] == ("timeout", "TimeoutError: no result within 0.5 s")
    assert found[2][1].split() == ["2", "in", found[0][1].split()[-1]]


def test_no_rollout_waits_for_the_session_of_another_one(tiny, tmp_path):
    (tmp_path / "gate").touch()
    tools = tiny(f"--wait-for {tmp_path / 'gate'}")
    (tmp_path / "gate").unlink()
    quick = tiny()
    order = []

    async def rollout(name, tools):
        await used(tools, name, call("count"))
        order.append(name)
        (tmp_path / "gate").touch()

    async def both():
        await asyncio.gather(rollout("slow", tools), rollout("quick", quick))

    asyncio.run(both())
    assert order == ["quick", "slow"]


def test_large_results_are_shortened_as_others_are(qwen_tokenizer, tiny):
    (rollout,) = roll(qwen_tokenizer, tiny(), {"a": [said("long"), "2"]}, max_observation_tokens=100)
    shown = rollout.turns[0].observation.text
    assert len(shown) <= 100
    assert shown.startswith("0 1 2 3")
    assert shown.endswith("19998 19999")
    assert "characters" in shown


OWNER = """
import os, sys, time
from gtpo.rollout import MCPTools
server, to_end, to_kill = sys.argv[1:]
ends = os.fork() == 0
tools = MCPTools(f"{server} --stubborn yes --note {to_end if ends else to_kill}", session="shared", connect_s=60)
if not ends:
    os.wait()
    print("ready", flush=True)
    time.sleep(600)
"""
"""A process that ends, and another one that goes on, each with a server and its child that would not end."""


def test_processes_end_with_the_run_and_when_the_trainer_is_killed(tmp_path):
    paths = [tmp_path / "to_end", tmp_path / "to_kill"]
    process = subprocess.Popen([sys.executable, "-c", OWNER, TINY, *map(str, paths)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    ended, killed = (noted(path, 2) for path in paths)
    assert gone(ended)
    assert all(map(alive, killed))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(killed)


def test_the_tiny_server_would_go_on_without_its_guard(tmp_path):
    """Else the test above would show nothing."""
    options = ["--stubborn", "yes", "--note", str(tmp_path / "numbers")]
    process = subprocess.Popen([*TINY.split(), *options], stdin=subprocess.PIPE, start_new_session=True)
    numbers = noted(tmp_path / "numbers", 2)
    process.stdin.close()
    process.terminate()
    assert not gone(numbers, within_s=1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "names no server: give a command or a URL"),
        ("no-such-program --x", "there is no program 'no-such-program': install it, or give its path"),
        ("sh -c 'open", "can't be read as a command .*fix its quotes"),
        ("http://", "give a URL such as"),
        ("http://127.0.0.1:9/mcp", "no MCP server answers: mcp:http://127.0.0.1:9/mcp: .*Start it, or correct the URL"),
        (f"{sys.executable} -c 1/0", "ZeroDivisionError.* Run the command by hand"),
        (f"{sys.executable} -c 'input();input()'", "no answer within 0.5 s. Run the command by hand"),
    ],
)
def test_a_server_that_is_not_there_is_refused_with_the_remedy(address, message):
    with pytest.raises(ConfigError, match=message):
        MCPTools(address, connect_s=0.5 if "input" in address else 60)


def test_tools_that_it_does_not_have_are_named(tiny):
    with pytest.raises(
        ConfigError, match="there is no tool 'paint'; there are: count, die, hang, picture, nothing, long, echo"
    ):
        tiny(only=["paint"])
    with pytest.raises(ConfigError, match="mcp_session must be rollout or shared"):
        tiny(session="one")


def test_without_the_sdk_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigError, match=r"pip install 'gtpo\[mcp\]'"):
        MCPTools(TINY)
