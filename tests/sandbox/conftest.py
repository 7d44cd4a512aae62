"""Shared sandboxes; the confined one has a single worker, so each test meets what the last one left."""

from __future__ import annotations

import sys

import pytest
from sandbox_support import children_of

from gtpo.sandbox import LocalSandbox
from gtpo.sandbox._child import seccomp


@pytest.fixture(scope="session")
def confined():
    if sys.platform != "linux":
        pytest.skip("the confined sandbox needs Linux")
    with_filter = LocalSandbox(max_workers=1)
    yield with_filter
    with_filter.close()


@pytest.fixture
def box(confined):
    """The confined sandbox; afterwards it still works, and nothing of the test is left."""
    yield confined
    after = confined.run_sync("1+1")
    assert (after.status, after.render()) == ("ok", "2")
    if confined.level().name == "namespaces":  # elsewhere nothing can be written, nor this be read
        assert confined.run_sync("import os\nos.listdir()").stdout == "[]\n"
    for worker in (confined._seats[0].light, confined._seats[0].scientific):
        assert worker.pid is None or children_of(worker.pid) == []


@pytest.fixture(scope="session")
def unconfined():
    """The same sandbox with its filter off: the negative control of every denial."""
    patch = pytest.MonkeyPatch()
    patch.setattr(seccomp, "supported", lambda: False)
    without_filter = LocalSandbox(max_workers=1, require="weak")
    patch.undo()
    yield without_filter
    without_filter.close()
