"""Handling of the signals by which schedulers, launchers, closing terminals and Ctrl-C end a process, for a clean end.

The first signal is a request: outside `StopSignals.deferred` it raises KeyboardInterrupt in the main thread; inside, it
is only recorded. A second one ends the process at once. A separate thread reads the signals, so this works whatever the
main thread is doing: Python's own handlers would wait until a long computation returns.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STOPPED_STATUS = 75
"""Exit status of a command that a signal stopped and that can be resumed: EX_TEMPFAIL of sysexits.h."""
SAME_S = 0.5
"""Signals within this time, in seconds, count as one: launchers pass on signals that their workers already got."""
_POLL_S = 0.05

_active: StopSignals | None = None


class StopSignals:
    """Context manager that records the signals; at most one is active per process.

    Args:
        say: called once, in a separate thread, with a sentence on what the signal will do.
        signals: those to record. One that is already ignored, such as SIGHUP under nohup, stays ignored.

    Attributes:
        requested: the signal that asked this process to end; None if there was none.
        on_request: called with that signal, in a separate thread.
    """

    def __init__(self, say: Callable[[str], None] | None = None, signals: Sequence[signal.Signals] = STOPPING):
        self.requested: signal.Signals | None = None
        self.on_request: list[Callable[[signal.Signals], None]] = []
        self._say = say
        self._signals = signals
        self._deferred = 0
        self._handled = False
        self._since: float | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._former_fd = -1
        self._fds = (-1, -1)
        self._terminals: list[int] = []
        self._hung_up = False
        self._letting_go = threading.Lock()

    def __enter__(self) -> StopSignals:
        global _active
        self._fds = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._former_fd = signal.set_wakeup_fd(self._fds[1], warn_on_full_buffer=False)
        for number in self._signals:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._former[number] = signal.signal(number, self._in_main_thread)
        self._terminals = [fd for fd in (0, 1, 2) if _is_terminal(fd)]
        self._thread = threading.Thread(target=self._watch, name="gtpo-signals", daemon=True)
        self._thread.start()
        _active = self
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        _active = None
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_fd)
        os.close(self._fds[1])
        self._thread.join()
        os.close(self._fds[0])

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a request is only recorded; code that runs there checks `requested`."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        first, self._handled = not self._handled, True  # the thread may have noted it by now
        self.requested = self.requested or signal.Signals(number)
        if number == signal.SIGHUP:  # before this thread writes again, which may be sooner than the other one runs
            self._let_go_of_terminals()
        if first and not self._deferred:
            interrupt = self._former.get(signal.SIGINT, signal.getsignal(signal.SIGINT))
            if not callable(interrupt):  # ignored, as in the background of a script
                raise KeyboardInterrupt
            interrupt(signal.SIGINT, frame)  # Python's raises; asyncio's, inside of asyncio.run, cancels the main task

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([self._fds[0]], [], [], _POLL_S if self._hung_up else None)
            numbers = os.read(self._fds[0], 64) if ready else b""
            if ready and not numbers:
                return
            for number in numbers:
                if number in self._former:
                    self._note(signal.Signals(number))
            if self._former_fd != -1 and numbers:
                os.write(self._former_fd, numbers)
            if self._hung_up:
                self._let_go_of_terminals()

    def _note(self, number: signal.Signals) -> None:
        if self._since is not None:
            if time.monotonic() - self._since > SAME_S:
                os._exit(128 + number)  # as a shell reports a process that the signal ended
            return
        self._since = time.monotonic()
        self.requested = self.requested or number
        self._hung_up = number == signal.SIGHUP
        if self._hung_up:
            self._let_go_of_terminals()
        for tell in self.on_request:
            tell(number)
        if self._say and self._deferred:
            with contextlib.suppress(OSError):
                self._say(f"{number.name}: ending after the work in progress; a second signal ends at once")

    def _let_go_of_terminals(self) -> None:
        """Redirect terminals that have hung up to /dev/null: writing to them would raise an error."""
        if not self._letting_go.acquire(blocking=False):
            return  # the other thread is at it, or this handler interrupted it
        try:
            for fd in [fd for fd in self._terminals if not _is_terminal(fd)]:
                self._terminals.remove(fd)
                nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                os.dup2(nowhere, fd)
                os.close(nowhere)
        finally:
            self._letting_go.release()


@contextlib.contextmanager
def stop_signals(
    say: Callable[[str], None] | None = None, signals: Sequence[signal.Signals] = STOPPING
) -> Iterator[StopSignals]:
    """The active `StopSignals`, or a new one. Outside the main thread, where signals can't be handled, an inert one."""
    if _active is not None:
        yield _active
    elif threading.current_thread() is not threading.main_thread():
        yield StopSignals()
    else:
        with StopSignals(say, signals) as stop:
            yield stop


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _in_forked_child() -> None:
    """Detach a forked child, which would otherwise write its signals into its parent's pipe."""
    global _active
    if _active is None:
        return
    signal.set_wakeup_fd(-1)
    for number in _active._former:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _active = None


os.register_at_fork(after_in_child=_in_forked_child)
