"""Who runs next: turns by key, and jobs that take long hold up nobody."""

from __future__ import annotations

import threading
import time

import pytest

from gtpo.sandbox._dispatch import PATIENCE_S, Dispatcher


@pytest.fixture
def gate():
    opened = threading.Event()
    yield opened
    opened.set()


def test_long_jobs_make_room_for_short_ones_and_only_then(gate):
    dispatcher = Dispatcher(range(4), max_fast_jobs=2)
    began = []

    def note(seat):
        began.append((time.monotonic(), seat))

    long = [dispatcher.submit(lambda seat: (note(seat), gate.wait())) for _ in range(3)]
    short = dispatcher.submit(lambda seat: note(seat) or seat, key="another")
    assert short.result(timeout=5) in (2, 3)
    assert sum(job.done() for job in long) == 0
    gate.set()
    dispatcher.shutdown()
    times = sorted(began)
    assert sorted(seat for _, seat in times[:2]) == [0, 1]
    assert times[2][0] - times[0][0] > 0.9 * PATIENCE_S, "until then the two long jobs held their places"
    assert len(began) == 4
    assert all(job.done() for job in long)


def test_without_a_limit_all_seats_are_used_at_once(gate):
    dispatcher = Dispatcher(range(3))
    began = []
    jobs = [dispatcher.submit(lambda seat: (began.append(seat), gate.wait())) for _ in range(4)]
    time.sleep(0.05)
    assert sorted(began) == [0, 1, 2]
    gate.set()
    dispatcher.shutdown()
    assert all(job.done() for job in jobs)


def test_keys_take_turns():
    dispatcher, order = Dispatcher(range(1)), []
    lock = threading.Event()
    dispatcher.submit(lambda seat: lock.wait())
    for key in "aaaabbc":
        dispatcher.submit(lambda seat, key=key: order.append(key), key=key)
    lock.set()
    dispatcher.shutdown()
    assert "".join(order) == "abcabaa"


def test_a_seat_that_rests_gets_only_what_wants_no_other():
    dispatcher = Dispatcher(range(2))
    dispatcher.rest(0, 60)
    assert {dispatcher.submit(lambda seat: seat).result(5) for _ in range(10)} == {1}
    assert dispatcher.submit(lambda seat: seat, seat=0).result(5) == 0
    assert (dispatcher.rests(0), dispatcher.rests(1)) == (True, False)
    dispatcher.shutdown()


def test_a_seat_has_rested_in_the_end(gate):
    dispatcher = Dispatcher(range(2))
    dispatcher.rest(0, 0.2)
    dispatcher.submit(lambda seat: gate.wait())
    assert dispatcher.submit(lambda seat: seat).result(5) == 0
    gate.set()
    dispatcher.shutdown()


def test_if_all_seats_rest_they_work_nevertheless():
    dispatcher = Dispatcher(range(2))
    for seat in range(2):
        dispatcher.rest(seat, 60)
    assert dispatcher.submit(lambda seat: seat).result(5) in (0, 1)
    dispatcher.shutdown()


def test_nothing_is_left_after_the_end(gate):
    before = threading.active_count()
    dispatcher = Dispatcher(range(2), max_fast_jobs=1)
    dispatcher.submit(lambda seat: gate.wait(0.05))
    dispatcher.submit(lambda seat: None)
    dispatcher.shutdown()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
