"""How a program ended, reported in memory that only its process shares with the server.

Each program has its own report, created before its process and freed after it, so that no other process ever has it:
its content comes from that program's process. The content is a hint, since the program shares the process.
"""

from __future__ import annotations

import contextlib
import mmap

BYTES = 256


def encoded(status: str, detail: str) -> bytes:
    """ "status NUL detail", cut to `BYTES`."""
    return f"{status}\0{detail}".encode("utf-8", "replace")[: BYTES - 1]


def decoded(data: bytes) -> tuple[str, str]:
    """Status and detail, whatever the bytes are."""
    status, _, detail = data.decode("utf-8", "replace").partition("\0")
    return status, detail.rstrip("\0")


class Report:
    """Created by the server before it forks the program's process."""

    def __init__(self) -> None:
        self._board, self._begun = mmap.mmap(-1, BYTES), mmap.mmap(-1, 1)

    def begin(self) -> None:
        """In the child: records that the program begins, in memory that the program will not have.

        So no program can pretend that the sandbox failed.
        """
        self._begun[0] = 1
        self._begun.close()

    def say(self, status: str, detail: str) -> None:
        """In the child: writes status and detail."""
        with contextlib.suppress(BaseException):
            text = encoded(status, detail)
            self._board[: len(text)] = text

    def read(self) -> tuple[str, str]:
        """In the server: returns status and detail; after the program has begun, a sandbox failure counts as error."""
        status, detail = decoded(bytes(self._board))
        return ("error", "") if status == "tool_failure" and self._begun[0] else (status, detail)

    def close(self) -> None:
        """In the server: frees the memory."""
        self._board.close()
        self._begun.close()
