"""Runs the cells of a study, one after another or several at a time, each in its own process.

A finished cell is not run again; a stopped one continues from its last checkpoint and the samples that its evaluation
has. Processes are forked from a server that has loaded the libraries, so that cells start quickly.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import yaml

from gtpo._files import write_text
from gtpo._signals import STOPPING, StopSignals, stop_signals
from gtpo.errors import ConfigError, GtpoError, StoppedError
from gtpo.lab.study.plan import Cell

_STATE, _LOG = "cell.json", "log.txt"
Say = Callable[[str], None]
Check = Callable[[Sequence[Cell]], None]


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int = 1,
    threads: int | None = None,
    say: Say = print,
    check: Check,
) -> list[Cell]:
    """Run the cells that have not finished.

    Args:
        cells: all cells.
        jobs: number of cells that run at the same time.
        threads: CPU threads per cell; by default the number of the machine's cores divided by `jobs`.
        say: called with a message when a cell starts or ends.
        check: called with the remaining cells, in a process that has the libraries loaded; must be a function of a
            module.

    Returns:
        The cells that failed. Their logs say why; the others have been run all the same.

    Raises:
        ConfigError: `jobs` or `threads` is below 1, a cell's folder holds a run with other options, or `check` raised
            it.
        StoppedError: a signal came; the running cells have saved their state.
        GtpoError, OSError: an error raised by `check`.
    """
    if jobs < 1 or (threads is not None and threads < 1):
        raise ConfigError("--jobs and --threads must be at least 1")
    for cell in cells:
        _check_same(cell)
    waiting = [cell for cell in cells if not _state(cell).get("done")]
    say(f"{len(cells)} cells, {len(cells) - len(waiting)} done already; logs in {cells[0].folder.parent}/*/{_LOG}")
    threads = threads or max((os.cpu_count() or 1) // jobs, 1)
    if not waiting:
        return []
    _check_apart(check, waiting)
    with stop_signals(say) as stop, stop.deferred():
        return _run_all(waiting, jobs, threads, say, stop)


def _run_all(waiting: list[Cell], jobs: int, threads: int, say: Say, stop: StopSignals) -> list[Cell]:
    context = _context()
    running: dict[Any, tuple[Any, Cell, float]] = {}
    failed: list[Cell] = []
    total, left = len(waiting), 0

    def pass_on(number: signal.Signals) -> None:
        for process, _, _ in list(running.values()):
            process.terminate()

    stop.on_request.append(pass_on)
    try:
        while (waiting and not stop.requested) or running:
            while waiting and len(running) < jobs and not stop.requested:
                cell = waiting.pop(0)
                process = context.Process(target=_run, args=(cell, threads, os.getcwd()), name=cell.name)
                process.start()
                running[process.sentinel] = (process, cell, time.monotonic())
                if stop.requested:  # it came before the cell was among those that it is passed on to
                    process.terminate()
            for sentinel in wait(list(running)):
                process, cell, since = running.pop(sentinel)
                process.join()
                ended = total - len(waiting) - len(running)
                spent = f"{time.monotonic() - since:.0f} s"
                if process.exitcode == 0:
                    say(f"[{ended}/{total}] {cell.name}: {_headline(cell)} ({spent})")
                elif stop.requested:
                    left += 1
                    say(f"[{ended}/{total}] {cell.name} stopped ({spent}): {_last_line(cell.folder / _LOG)}")
                else:
                    failed.append(cell)
                    say(f"[{ended}/{total}] {cell.name} FAILED ({spent}): {_last_line(cell.folder / _LOG)}")
    finally:
        stop.on_request.remove(pass_on)
        for process, _, _ in running.values():
            process.terminate()
            process.join()
    if stop.requested and (waiting or left):
        raise StoppedError(
            f"stopped by {stop.requested.name}; {len(waiting) + left} of {total} cells are left, and the same command "
            "runs them"
        )
    return failed


def _check_apart(check: Check, cells: Sequence[Cell]) -> None:
    """Check cells in a process of their server, so that this process need not load the libraries."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _context().Process(target=_checked, args=(check, cells, sender, os.getcwd()))
    process.start()
    sender.close()
    try:
        fault = receiver.recv()
    except EOFError:
        raise RuntimeError("the check of the options ended without a result; see its output above") from None
    finally:
        process.join()
    if fault is not None:
        raise fault


def _checked(check: Check, cells: Sequence[Cell], sender: Any, folder: str) -> None:
    os.chdir(folder)
    fault = None
    try:
        check(cells)
    except (GtpoError, OSError) as error:  # the others end this process, with where they came from
        fault = error
    sender.send(fault)


def _context() -> Any:
    """The context of the cells' processes. Their server ignores signals: else it would end, and its cells be lost."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gtpo.commands.train", "gtpo.commands.evaluate"])
    if threading.current_thread() is not threading.main_thread():
        return context
    former = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return context


def _check_same(cell: Cell) -> None:
    """Refuse to continue a cell whose options or files have changed since it was started."""
    for part in stale_parts(cell):
        raise ConfigError(
            f"{cell.folder}: its {part} was done with other options than the study file has now, or with files that "
            "have changed since; delete the folder to run it again, or give the study another output"
        )


def stale_parts(cell: Cell) -> list[str]:
    """The parts of a cell, training or evaluation, that were done with other options or file contents than now."""
    state = _state(cell)
    begun = {
        "training": bool(state.get("trained")) or (cell.folder / "checkpoints").is_dir(),
        "evaluation": any((cell.folder / "eval").glob("result.json*")),
    }
    now = {"training": cell.train_fingerprint, "evaluation": cell.evaluate_fingerprint}
    return [part for part, there in begun.items() if there and state.get(part) not in (None, now[part])]


def _state(cell: Cell) -> dict[str, Any]:
    path = cell.folder / _STATE
    return json.loads(path.read_text()) if path.exists() else {}


def _save_state(cell: Cell, **changes: Any) -> None:
    state = {"variant": cell.variant, "seed": cell.seed, **_state(cell), **changes}
    write_text(cell.folder / _STATE, json.dumps(state, indent=1) + "\n")


def _run(cell: Cell, threads: int, folder: str) -> None:
    """The process of a cell. It changes to `folder`, since it starts in the folder in which the study was started."""
    os.chdir(folder)
    for number in STOPPING:  # its server ignores them
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cell.folder.mkdir(parents=True, exist_ok=True)
    with (cell.folder / _LOG).open("a", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"{cell.folder}: another process is running this cell")
        import torch

        torch.set_num_threads(threads)
        _save_state(cell, threads=threads, training=cell.train_fingerprint, evaluation=cell.evaluate_fingerprint)
        if not _state(cell).get("trained"):
            _command("train", _train_options(cell), cell.folder / "train.yaml")
            _save_state(cell, trained=True)
        if cell.evaluate is not None and not cell.result.exists():
            cell.result.parent.mkdir(parents=True, exist_ok=True)
            model = {"model": str(cell.folder / "model"), "output": str(cell.result)}
            _command("eval", {**cell.evaluate, **model}, cell.folder / "eval.yaml")
        _save_state(cell, done=True)


def _end_with_parent() -> None:
    """Make a cell end with its study: a restarted study would otherwise find the cell still running."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train_options(cell: Cell) -> dict[str, Any]:
    from gtpo.training.checkpoints import sealed_checkpoints

    start = {"resume": "auto"} if sealed_checkpoints(cell.folder / "checkpoints") else {"overwrite": True}
    return {**cell.train, "run_dir": str(cell.folder), "seed": cell.seed, **start}


def _command(name: str, options: Mapping[str, Any], path: Path) -> None:
    from gtpo.cli import main

    path.write_text(yaml.safe_dump(dict(options), sort_keys=False))
    if status := main([name, "--config", str(path)]):
        sys.exit(status)


def _headline(cell: Cell) -> str:
    if not cell.result.exists():
        return "trained"
    return f"pass rate {json.loads(cell.result.read_text())['pass_rate']:.3f}"


def _last_line(path: Path) -> str:
    if not path.exists():
        return "it ended before it wrote to its log"
    lines = [line for line in path.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
