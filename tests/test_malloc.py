"""Freed memory is kept between steps, but not without bound."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from gtpo._malloc import KeptMemory, _resident_bytes, keep_freed_memory
assert keep_freed_memory()
kept = KeptMemory(steps=2)
assert not kept.check(), "the first calls measure"
assert not kept.check()
between = []  # small tensors that live on between large ones that do not: fragments
def step(megabytes):
    large = []
    for _ in range(megabytes):
        large.append(torch.ones(1 << 18))
        between.append(torch.ones(64))
step(20)
assert not kept.check(), "it has hardly grown"
step(1000)
before = _resident_bytes()
assert before > 1000 << 20, "freed memory is kept"
assert kept.check()
assert _resident_bytes() < before - (800 << 20)
assert not kept.check(), "it measures anew"
assert sum(float(t.sum()) for t in between) == 64 * 1020
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_memory_that_has_grown_goes_back_and_what_is_used_stays():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert run.stdout == "done\n", run.stderr
