"""The network: nothing is reached, not even on this machine; whatever does arrive is counted by the listener."""

from __future__ import annotations

from collections.abc import Sequence

from behaviours.checks import ATTEMPTS, NR, SYSTEM_CALL, denied, described, each_denied, prints
from behaviours.entry import Behaviour, Facts, Outcome

AREA = "network"
UNREACHABLE = ("EAFNOSUPPORT", "ENETUNREACH")


def unresolved(results: Sequence[Outcome], facts: Facts) -> str:
    """No address came out of the name."""
    (outcome,) = results
    failed = outcome.status == "error" and "DONE" not in outcome.stdout
    return "" if failed else f"the name was resolved: {described(outcome)}"


BEHAVIOURS = (
    Behaviour(
        name="tcp localhost",
        area=AREA,
        code="""\
import socket
with socket.create_connection(('127.0.0.1', LISTENER_PORT), timeout=2) as line:
    line.sendall(b'hello')
print('DONE')
""",
        holds=denied(*UNREACHABLE),
    ),
    Behaviour(
        name="udp send",
        area=AREA,
        code="""\
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    line.sendto(b'hello', ('127.0.0.1', LISTENER_PORT))
print('DONE')
""",
        holds=denied(*UNREACHABLE),
    ),
    Behaviour(
        name="dns",
        area=AREA,
        code="import socket\nprint('DONE', socket.getaddrinfo('localhost', 80))",
        holds=unresolved,
    ),
    Behaviour(
        name="unix socket",
        area=AREA,
        code=ATTEMPTS
        + """\
import socket
def knock(kind, address):
    with socket.socket(socket.AF_UNIX, kind) as line:
        line.connect(address)
attempt('file', knock, socket.SOCK_STREAM, SOCKET_FILE)
attempt('abstract', knock, socket.SOCK_STREAM, chr(0) + SOCKET_ABSTRACT)
""",
        holds=each_denied(*UNREACHABLE),
    ),
    Behaviour(
        name="ctypes socket",
        area=AREA,
        code=f"{SYSTEM_CALL}fd = system_call({NR['socket']}, 2, 1, 0)\n"
        + """\
address = (2).to_bytes(2, 'little') + (LISTENER_PORT).to_bytes(2, 'big') + bytes([127, 0, 0, 1]) + bytes(8)
if libc.connect(fd, address, len(address)) == -1:
    raise OSError(ctypes.get_errno(), 'connect')
print('DONE')
""",
        holds=denied(*UNREACHABLE),
    ),
    Behaviour(
        name="asyncio still works",
        area=AREA,
        code="""\
import asyncio
async def square(number):
    await asyncio.sleep(0.01)
    return await asyncio.to_thread(pow, number, 2)
async def main():
    print(await asyncio.gather(*map(square, range(4))))
asyncio.run(main())
""",
        holds=prints("[0, 1, 4, 9]"),
    ),
)
