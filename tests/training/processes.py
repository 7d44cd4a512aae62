"""Starts a script in several processes as torchrun does; they come from a server that has the libraries loaded."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
from pathlib import Path


def run_together(script, log, *argv, processes=2, timeout=280, env=None):
    """Run a script in each of some processes and wait for them.

    Args:
        script: its path.
        log: what they write goes there.
        argv: of the script.
        processes: how many.
        timeout: seconds, for all of it.
        env: further variables of their environment.

    Raises:
        AssertionError: one failed or is not over in time; shows what was written.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gtpo.training.run", "peft"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        context.Process(
            target=_run, args=(str(script), str(log), list(map(str, argv)), rank, processes, port, env or {})
        )
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(timeout)
        assert [process.exitcode for process in started] == [0] * processes, Path(log).read_text()
    finally:
        for process in started:
            process.kill()


def _run(script, log, argv, rank, processes, port, env):
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {name: str(value) for name, value in {**(ranks if processes > 1 else {}), **where, **env}.items()}
    import torch

    torch.set_num_threads(1)
    sys.argv = [script, *argv]
    runpy.run_path(script, run_name="__main__")
