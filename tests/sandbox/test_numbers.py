"""Programs of one worker can't tell each other anything by the numbers of their processes and threads."""

from __future__ import annotations

import pytest

from gtpo.sandbox import Limits, LocalSandbox

COUNT_ON = """\
import threading
numbers = []
for _ in range(3000):
    thread = threading.Thread(target=lambda: numbers.append(threading.get_native_id()))
    thread.start()
    thread.join()
    if numbers[-1] % 128 == 77:
        break
print(numbers[-1] % 128)
"""
COUNT_ONE = COUNT_ON.replace("range(3000)", "range(1)")
NUMBER = "import os\nprint(os.getpid() % 128)"


@pytest.fixture(scope="module")
def box():
    box = LocalSandbox(max_workers=1)
    level = box.level()
    if level.name != "namespaces" or any("before them" in note for note in level.notes):
        box.close()
        pytest.skip("process numbers are the machine's here")
    yield box
    box.close()


def told(pairs):
    """How many of the second numbers go on from the first."""
    return sum((int(second) - int(first)) % 128 in (1, 2, 3) for first, second in pairs)


def test_control_numbers_that_go_on_are_seen():
    assert told([("77\n", "78\n"), ("127", "1"), ("77", "77"), ("77", "99")]) == 2


def test_the_next_program_does_not_learn_how_many_threads_there_were(box):
    limits = Limits(cpu_s=20, wall_s=60, memory_mb=2048)
    pairs = [
        (box.run_sync(COUNT_ON, limits=limits).stdout, box.run_sync(NUMBER, limits=limits).stdout) for _ in range(8)
    ]
    assert told(pairs) <= 2, pairs


def test_nor_does_another_session_by_its_own_threads(box):
    limits = Limits(cpu_s=20, wall_s=60, memory_mb=2048)
    one, other = box.session(), box.session()
    other.run_sync("1")
    pairs = [
        (one.run_sync(COUNT_ON, limits=limits).stdout, other.run_sync(COUNT_ONE, limits=limits).stdout)
        for _ in range(8)
    ]
    one.close()
    other.close()
    assert told(pairs) <= 2, pairs
