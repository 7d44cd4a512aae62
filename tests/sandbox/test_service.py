"""`gtpo sandbox serve`, and several servers as one sandbox."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress

import pytest
from fusion_server import FusionServer
from sandbox_support import children_of
from serving import serving

from gtpo.cli import main
from gtpo.errors import ConfigError, SandboxError
from gtpo.rollout import SandboxConfig
from gtpo.sandbox import Limits, LocalSandbox, SandboxFusionSandbox, Status, _connections, _endpoints, _http
from gtpo.sandbox.service import SandboxService


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def service():
    with closing(LocalSandbox(max_workers=2)) as local, serving(SandboxService(local)) as service:
        yield service


@pytest.fixture
def box(service):
    sandbox = SandboxFusionSandbox(service.url)
    yield sandbox
    sandbox.close()


def post(service, body, headers=None):
    host, port = service.server_address
    connection = http.client.HTTPConnection(host, port, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", "/run_code", data, headers or {})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read()), answer.headers


@pytest.mark.parametrize(
    ("code", "status", "shown"),
    [
        ("1 + 1", Status.OK, "2"),
        ("print('a')\n1 / 0", Status.ERROR, "ZeroDivisionError"),
        ("import numpy as np\nint(np.linalg.det(np.eye(3)))", Status.OK, "1"),
        ("open('m.py', 'w').write('x = 5')\nimport m\nm.x", Status.OK, "5"),
        ("import sys\nsys.exit(3)", Status.ERROR, "SystemExit: 3"),
        ("bytearray(10**10)", Status.MEMORY, "MemoryError"),
        ("import os\nos.kill(os.getpid(), 11)", Status.CRASHED, "SIGSEGV"),
        ("while True: pass", Status.TIMEOUT, "timed out"),
        ("print('x' * 3_000_000)", Status.OUTPUT_LIMIT, "more than"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", Status.ERROR, "Error"),
        ("print('é 漢 😀')", Status.OK, "é 漢 😀"),
    ],
)
def test_programs_end_there_as_they_do_here(box, code, status, shown):
    result = box.run_sync(code, limits=Limits(wall_s=2.0, cpu_s=1.0))
    assert result.status is status
    assert shown in result.render()


def test_a_plain_client_is_answered_in_the_form_of_sandbox_fusion(service):
    status, answer, _ = post(
        service, {"code": "import sys\nprint(sys.stdin.read())\n7", "language": "python", "stdin": "hé"}
    )
    assert (status, answer["status"]) == (200, "Success")
    assert answer["run_result"]["stdout"] == "hé\n"  # a script: the value of the last line is not shown
    assert (answer["run_result"]["status"], answer["run_result"]["return_code"]) == ("Finished", 0)
    _, answer, _ = post(service, {"code": "1/0", "language": "python"})
    assert (answer["status"], answer["run_result"]["return_code"]) == ("Failed", 1)
    assert "ZeroDivisionError" in answer["run_result"]["stderr"]
    _, answer, _ = post(service, {"code": "while True: pass", "language": "python", "run_timeout": 0.5})
    assert (answer["run_result"]["status"], answer["run_result"]["return_code"]) == ("TimeLimitExceeded", None)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "Expecting"),
        ([1], "JSON object"),
        ({"language": "python"}, "code"),
        ({"code": "1", "language": "bash"}, "language must be 'python'"),
        ({"code": "1", "language": "python", "run_timeout": -1}, "at least 0.01"),
    ],
)
def test_a_request_that_cannot_be_used_is_refused_with_a_reason(service, body, said):
    status, answer, _ = post(service, body)
    assert status == 422
    assert said in answer["detail"]


def test_no_request_gets_more_than_the_service_gives(service):
    limits = service._limits({"run_timeout": 10_000, "memory_limit_MB": 10**9})
    assert (limits.wall_s, limits.cpu_s, limits.memory_mb) == (120.0, 60.0, 4096)


def test_a_key_is_asked_for(monkeypatch):
    with closing(LocalSandbox(max_workers=1)) as local, serving(SandboxService(local, key="secret")) as service:
        assert post(service, {"code": "1", "language": "python"})[0] == 401
        with pytest.raises(SandboxError, match="401"):
            SandboxFusionSandbox(service.url, retries=0).run_sync("1")
        monkeypatch.setenv("GTPO_SANDBOX_KEY", "secret")
        box = SandboxConfig(sandbox=service.url).make_sandbox()
        assert box.run_sync("1 + 1").stdout == "2\n"
        box.close()


class UntilOneIsTurnedAway(LocalSandbox):
    """Runs no program before the service has turned a request away."""

    service: SandboxService

    async def run(self, code, **options):
        while not self.service.turned_away:
            await asyncio.sleep(0.01)
        return await super().run(code, **options)


def test_more_than_can_wait_are_turned_away_and_come_back(monkeypatch):
    monkeypatch.setattr("gtpo.sandbox.service._RETRY_AFTER_S", 0.05)
    with closing(UntilOneIsTurnedAway(max_workers=1)) as local, serving(SandboxService(local, waiting=1)) as service:
        local.service = service
        with closing(SandboxFusionSandbox(service.url, concurrency=6, retries=400)) as box:
            results = asyncio.run(box.run_many(["'done'"] * 6))
        assert [result.status for result in results] == [Status.OK] * 6
        assert service.turned_away > 0
        assert service.load() == {"max_workers": 1, "under_way": 0, "served": 6, "turned_away": service.turned_away}


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(_endpoints, "BACKOFF_S", 0.01)
    with serving(FusionServer()) as one, serving(FusionServer()) as other:
        yield [one, other]


def test_several_servers_share_the_work_and_no_one_gets_more_than_its_share(two):
    box = SandboxFusionSandbox([server.url for server in two], concurrency=3)
    results = asyncio.run(box.run_many(["import time\ntime.sleep(0.1)\n1"] * 24))
    box.close()
    assert all(result.status is Status.OK for result in results)
    counts = [len(server.requests) for server in two]
    assert sum(counts) == 24
    assert min(counts) >= 8
    assert max(server.most_active for server in two) <= 3


def test_losing_one_of_two_servers_in_the_middle_loses_no_program(two):
    box = SandboxFusionSandbox([server.url for server in two], concurrency=2)

    async def run():
        runs = [asyncio.ensure_future(box.run(f"import time\ntime.sleep(0.1)\n{i}")) for i in range(20)]
        await asyncio.sleep(0.25)
        two[0].spoilers = ["hang-up"] * 10_000
        return await asyncio.gather(*runs)

    results = asyncio.run(run())
    box.close()
    assert [(result.status, result.stdout) for result in results] == [(Status.OK, f"{i}\n") for i in range(20)]
    lost = len(two[0].requests) + len(two[1].requests) - 20
    assert 1 <= lost < 12  # it was left alone, and not asked by every program anew


def test_a_server_that_comes_back_is_used_again(two):
    box = SandboxFusionSandbox([server.url for server in two], concurrency=2)
    two[0].spoilers = ["hang-up"] * 4
    for _ in range(4):
        assert box.run_sync("1").status is Status.OK
    before = len(two[0].requests)
    time.sleep(0.3)
    asyncio.run(box.run_many(["1"] * 8))
    box.close()
    assert len(two[0].requests) > before


def test_every_server_must_be_there_at_the_start(two):
    box = SandboxFusionSandbox([two[0].url, "http://127.0.0.1:9"])
    with pytest.raises(SandboxError, match=r"127\.0\.0\.1:9"):
        box.ping()
    box.close()
    with pytest.raises(ConfigError, match="give a URL"):
        SandboxFusionSandbox([])


def test_the_command_refuses_other_machines_without_a_key(capsys, monkeypatch):
    monkeypatch.delenv("GTPO_SANDBOX_KEY", raising=False)
    assert main(["sandbox", "serve", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "GTPO_SANDBOX_KEY" in capsys.readouterr().err
    assert main(["sandbox"]) == 2
    assert "gtpo sandbox serve" in capsys.readouterr().err


def test_the_command_serves():
    process = subprocess.Popen(
        [sys.executable, "-m", "gtpo.cli", "sandbox", "serve", "--port", "0", "--max_workers", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GTPO_SANDBOX_KEY": ""},
    )
    try:
        url = process.stderr.readline().split(": ")[0]
        box = SandboxFusionSandbox(url)
        box.ping()
        assert box.run_sync("6 * 7").stdout == "42\n"
        box.close()
    finally:
        process.terminate()
        process.wait(20)


def raw(service, data):
    """What a server says to these bytes, and whether it hangs up."""
    with socket.create_connection(service.server_address, timeout=10) as connection:
        connection.sendall(data)
        connection.settimeout(5)
        said = b""
        while chunk := connection.recv(65536):
            said += chunk
        return said


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /run_code HTTP/1.1\r\nContent-Length: -1", 411),
        ("POST /run_code HTTP/1.1\r\nContent-Length: abc", 411),
        ("POST /run_code HTTP/1.1\r\nTransfer-Encoding: chunked", 411),
        ("POST /run_code HTTP/1.1\r\nContent-Length: 99999999999", 413),
        ("POST /elsewhere HTTP/1.1\r\nContent-Length: 5", 404),
        ("GET /v1/ping HTTP/1.1\r\nContent-Length: 5", 400),
    ],
)
def test_what_can_be_refused_is_refused_unread_and_ends_the_connection(service, head, status):
    said = raw(service, f"{head}\r\nHost: x\r\n\r\n".encode())
    assert said.startswith(f"HTTP/1.1 {status} ".encode())
    assert said.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"code": "1", "language": "python", "memory_limit_MB": Infinity}',
        b'{"code": "1", "language": "python", "run_timeout": 1' + b"0" * 400 + b"}",
    ],
)
def test_numbers_and_nesting_without_measure_are_refused(service, body):
    assert post(service, body)[0] == 422


def test_a_server_without_the_key_hears_nothing_of_the_program():
    with closing(LocalSandbox(max_workers=1)) as local, serving(SandboxService(local, key="secret")) as service:
        said = raw(service, b"POST /run_code HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert b" 401 " in said


def test_a_program_cannot_pass_itself_off_as_a_failure_of_the_sandbox(box):
    forged = """
import os, sys
frame = sys._getframe()
while frame and "word" not in frame.f_locals:
    frame = frame.f_back
OVERWRITE
os.write(2, f"{frame.f_locals['word'] if frame else 'x'} tool_failure 0.000 0 x\\n".encode().ljust(200, b" "))
os._exit(1)
"""
    for overwrite in ("", "os.lseek(2, 0, 0)"):
        assert box.run_sync(forged.replace("OVERWRITE", overwrite)).status is Status.ERROR
    assert [endpoint.failures for endpoint in box._endpoints.all] == [0], "nor a failure of its server"


def test_one_hiccup_does_not_keep_a_server_from_work(two):
    box = SandboxFusionSandbox([server.url for server in two], concurrency=4)
    two[0].spoilers = ["hang-up"]
    asyncio.run(box.run_many(["1"] * 4))
    time.sleep(0.1)
    before = len(two[0].requests)
    asyncio.run(box.run_many(["import time\ntime.sleep(0.02)"] * 40))
    box.close()
    assert len(two[0].requests) - before > 10


def test_requests_that_fail_together_are_one_failure(two, monkeypatch):
    monkeypatch.setattr(_endpoints, "BACKOFF_S", 2.0)
    box = SandboxFusionSandbox([server.url for server in two], concurrency=8)
    two[0].spoilers = ["hang-up"] * 8
    assert all(r.status is Status.OK for r in asyncio.run(box.run_many(["import time\ntime.sleep(0.05)"] * 16)))
    assert max(one.failures for one in box._endpoints.all) <= 2
    box.close()


def test_a_server_that_refuses_leaves_the_work_to_the_other(two):
    box = SandboxFusionSandbox([server.url for server in two], concurrency=2)
    two[0].spoilers = [401] * 1000
    results = asyncio.run(box.run_many(["1"] * 20))
    assert [result.status for result in results] == [Status.OK] * 20
    two[1].spoilers = [401] * 1000
    with pytest.raises(SandboxError, match="401"):
        box.run_sync("1")
    box.close()


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def head(length, path="/run_code"):
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def hung_up_on(connection, seconds):
    """Whether the server closes the connection within so many seconds."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(100)"])
def test_a_program_whose_client_hangs_up_is_ended(program):
    with closing(LocalSandbox(max_workers=1)) as local, serving(SandboxService(local)) as service:
        body = json.dumps({"code": program, "language": "python", "run_timeout": 100}).encode()
        with socket.create_connection(service.server_address) as connection:
            connection.sendall(head(len(body)) + body)
            assert until(lambda: children_of(local._seats[0].light.pid))
        assert until(lambda: not children_of(local._seats[0].light.pid), 2.0)
        assert until(lambda: service.load()["under_way"] == 0, 2.0)
        assert post(service, {"code": "print(1)", "language": "python"})[1]["run_result"]["stdout"] == "1\n"


def test_what_waits_for_a_client_that_hung_up_never_runs():
    with closing(LocalSandbox(max_workers=1)) as local, serving(SandboxService(local)) as service:
        body = json.dumps({"code": "import time\ntime.sleep(0.3)", "language": "python"}).encode()
        for _ in range(20):
            with socket.create_connection(service.server_address) as connection:
                connection.sendall(head(len(body)) + body)
                assert until(lambda: service.load()["under_way"] > 0)
        assert until(lambda: service.load()["under_way"] == 0, 2.0)


def test_a_slow_body_is_bounded_in_time_and_holds_nobody_up(service, monkeypatch):
    monkeypatch.setattr(_http, "BODY_S", 0.5)
    with socket.create_connection(service.server_address) as connection:
        connection.sendall(head(1000) + b"{")
        connection.settimeout(5)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert hung_up_on(connection, 2.0)
    assert service.load()["under_way"] == 0


@pytest.mark.parametrize("begun", [b"", b"POST /run_code HTTP/1.1\r\nHost: "])
def test_an_unfinished_head_is_bounded_in_time(service, monkeypatch, begun):
    monkeypatch.setattr(_connections, "HEAD_S", 0.5)
    with socket.create_connection(service.server_address) as connection:
        connection.sendall(begun)
        for _ in range(3):
            time.sleep(0.1)
            connection.sendall(b"x" if begun else b"")
        assert hung_up_on(connection, 2.0)


def test_an_answer_that_is_not_read_is_bounded_in_time(monkeypatch):
    monkeypatch.setattr(_connections, "READ_S", 0.5)
    with closing(LocalSandbox(max_workers=1)) as local, serving(SandboxService(local)) as service:
        body = json.dumps({"code": "print('x' * 1_000_000)", "language": "python"}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(service.server_address)
            assert until(lambda: service.connections(), 2.0)
            for number in range(8):  # each once the one before is answered, but none of the answers is read
                with suppress(OSError):
                    connection.sendall(head(len(body)) + body)
                until(lambda number=number: service.served > number or not service.connections())
            assert service.served
            assert until(lambda: not service.connections(), 10.0)


def test_a_client_has_so_many_connections_and_no_more(monkeypatch):
    monkeypatch.setattr("gtpo.sandbox.service.CONNECTIONS", 3)
    with closing(LocalSandbox(max_workers=1)) as local, serving(SandboxService(local)) as service:
        kept = [socket.create_connection(service.server_address) for _ in range(3)]
        assert until(lambda: service.connections() == 3)
        with socket.create_connection(service.server_address) as one_more:
            assert hung_up_on(one_more, 2.0)
        for connection in kept:
            connection.close()
        assert until(lambda: service.connections() == 0)
        assert post(service, {"code": "print(1)", "language": "python"})[0] == 200


@pytest.mark.parametrize("more", [b"P", head(5)])
def test_a_further_request_does_not_hide_that_the_client_hung_up(more):
    with closing(LocalSandbox(max_workers=1)) as local, serving(SandboxService(local)) as service:
        body = json.dumps({"code": "import time\ntime.sleep(100)", "language": "python", "run_timeout": 100}).encode()
        with socket.create_connection(service.server_address) as connection:
            connection.sendall(head(len(body)) + body)
            assert until(lambda: children_of(local._seats[0].light.pid))
            connection.sendall(more)
        assert until(lambda: not children_of(local._seats[0].light.pid), 2.0)
        assert until(lambda: service.load()["under_way"] == 0, 2.0)


def test_slow_bodies_hold_no_place_and_all_bodies_together_have_a_bound(monkeypatch):
    monkeypatch.setattr(_http, "BODIES_BYTES", 1 << 20)
    with closing(LocalSandbox(max_workers=1)) as local, serving(SandboxService(local, waiting=2)) as service:
        program = {"code": "print(1)", "language": "python"}
        slow = [socket.create_connection(service.server_address) for _ in range(20)]
        for connection in slow:
            connection.sendall(head(1000) + b"{")
        assert until(lambda: service.bodies.total() == 20)
        assert post(service, program)[0] == 200
        slow += [socket.create_connection(service.server_address) for _ in range(20)]
        for connection in slow[20:]:
            connection.sendall(head(100_000) + b"{" * 90_000)
        assert until(lambda: service.bodies.total() > 400_000)
        time.sleep(0.2)
        assert service.bodies.total() <= 700_000
        assert post(service, program)[0] in (200, 429)
        for connection in slow:
            connection.close()
        assert until(lambda: not service.bodies)
        assert post(service, program)[0] == 200


def connected(service, address):
    """A connection from an address of this machine."""
    connection = socket.socket()
    connection.bind((address, 0))
    connection.connect(service.server_address)
    return connection


def test_connections_that_are_refused_take_no_place_from_other_clients(monkeypatch):
    """All are there before the server is, which then accepts them in one go."""
    monkeypatch.setattr(_connections, "room", lambda workers: 40)
    with closing(LocalSandbox(max_workers=1)) as local:
        service = SandboxService(local)
        greedy = [connected(service, "127.0.0.2") for _ in range(60)]
        other = connected(service, "127.0.0.1")
        other.sendall(b"GET /v1/ping HTTP/1.1\r\nHost: here\r\n\r\n")
        other.settimeout(30)
        with serving(service):
            assert other.recv(12).startswith(b"HTTP/1.1 ")
        for connection in [*greedy, other]:
            connection.close()


def test_descriptors_are_left_for_the_programs(monkeypatch):
    """One client takes all the connections that it can have; the programs of another run all the same."""
    monkeypatch.setattr(_connections, "room", lambda workers: 40)
    with closing(LocalSandbox(max_workers=1)) as local, serving(SandboxService(local)) as service:
        greedy = [connected(service, "127.0.0.2") for _ in range(60)]
        assert until(lambda: service.connections() == 30)
        assert post(service, {"code": "print(1)", "language": "python"})[0] == 200
        for connection in greedy:
            connection.close()


def test_room_is_what_the_limit_of_descriptors_leaves(monkeypatch):
    asked = []
    monkeypatch.setattr(_connections.resource, "getrlimit", lambda what: (1024, 4096))
    monkeypatch.setattr(_connections.resource, "setrlimit", lambda what, limits: asked.append(limits))
    assert _connections.room(4) == 4096 - 512 - 4 * 32
    assert asked == [(4096, 4096)]
    monkeypatch.setattr(_connections.resource, "getrlimit", lambda what: (256, 256))
    assert _connections.room(4) == 16


def test_a_page_in_a_browser_runs_nothing(service):
    program = {"code": "print(1)", "language": "python"}
    assert post(service, program, {"Origin": "http://elsewhere.example", "Content-Type": "text/plain"})[0] == 403


def test_programs_of_two_clients_run_in_turn():
    """What one client has queued does not make another wait to its end."""
    with closing(LocalSandbox(max_workers=1)) as local, serving(SandboxService(local)) as service:
        body = json.dumps({"code": "import time\ntime.sleep(0.2)", "language": "python"}).encode()
        queued = []
        for _ in range(30):
            connection = socket.socket()
            connection.bind(("127.0.0.2", 0))
            connection.connect(service.server_address)
            connection.sendall(head(len(body)) + body)
            queued.append(connection)
        assert until(lambda: service.load()["under_way"] == 30)
        assert post(service, {"code": "print(1)", "language": "python"})[0] == 200
        assert service.load()["under_way"] > 15
        for connection in queued:
            connection.close()
