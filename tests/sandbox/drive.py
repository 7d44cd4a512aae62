"""Runs the behaviours in a situation, in a process of its own: the trainer of the trial.

    python drive.py --situation NAME --output FILE [--require LEVEL] [--only NAME ...]

FILE gets a JSON object: `behaviours` maps each name to "" where it held and to a sentence where it did not;
`level` is the sandbox's own account; `present` what the situation is, as the kernel says. If this machine does not
offer the situation the object is only {"impossible": reason}.

The process starts itself twice more: once to enter the situation, from there by exec to be the trainer.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import situations
from behaviours import ALL, Behaviour, Facts, Outcome
from behaviours.entry import LIMITS
from world import TOKEN, World

from gtpo.sandbox import ExecResult, Limits, LocalSandbox, Status

ALL_S = 240.0
_GRACE_S = 5.0


class Box(Protocol):
    """The part of a sandbox, or of a session, that the trial needs."""

    def run_sync(self, code: str, *, limits: Limits | None = None) -> ExecResult:
        """Runs one program."""


class Plain:
    """No sandbox: `python -c` in a process group, with a time limit and the trainer's environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run_sync(self, code: str, *, limits: Limits | None = None) -> ExecResult:
        """Runs one program; what lives on in its process group is killed afterwards."""
        limits = limits or Limits()
        started = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-B", "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    cwd=self.directory,
                    preexec_fn=os.setpgrp,
                )
            except ValueError as error:
                return ExecResult(Status.TOOL_FAILURE, note=f"{type(error).__name__}: {error}")
            try:
                code_at_end: int | None = process.wait(limits.wall_s)
            except subprocess.TimeoutExpired:
                code_at_end = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            texts = [
                Path(f"/proc/self/fd/{file.fileno()}").read_bytes().decode("utf-8", "replace") for file in (out, err)
            ]
        return _as_result(code_at_end, *texts, wall_s=time.monotonic() - started)

    def session(self) -> Plain:
        """Itself: there is nothing to be kept apart."""
        return self

    def close(self) -> None:
        """Nothing is kept."""


def _as_result(code: int | None, stdout: str, stderr: str, wall_s: float) -> ExecResult:
    if code is None:
        return ExecResult(Status.TIMEOUT, stdout, stderr, wall_s)
    if code < 0:
        return ExecResult(Status.CRASHED, stdout, stderr + signal.Signals(-code).name, wall_s)
    last = stderr.strip().rpartition("\n")[2].partition(":")[0].rpartition(".")[2]
    status = Status.ERROR if code else Status.OK
    return ExecResult(status, stdout, stderr, wall_s, error_type=last if code else None)


def try_one(behaviour: Behaviour, box: Box, facts: Facts) -> list[str]:
    """Runs the programs of one behaviour; sentences of what was wrong about their outcomes."""
    limits = Limits(**{**LIMITS, **behaviour.limits})
    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        runners: dict[str, Box] = {"": box}
        for code, rollout in itertools.zip_longest(behaviour.programs, behaviour.rollouts, fillvalue=""):
            if rollout not in runners:
                runners[rollout] = stack.enter_context(contextlib.closing(box.session()))
            outcomes.append(runners[rollout].run_sync(facts.fill(code), limits=limits))
            time.sleep(behaviour.pause_s)
    failed = [outcome for outcome in outcomes if outcome.status == "tool_failure"]
    if failed:
        return [f"the sandbox failed: {failed[0].note}"]
    sentences = [behaviour.holds(outcomes, facts)]
    slowest = max(outcome.wall_s for outcome in outcomes)
    if slowest > limits.wall_s + _GRACE_S:
        sentences.append(f"it ended after {slowest:.1f} s, far behind its limit of {limits.wall_s:g} s")
    return sentences


def try_all(names: list[str], box: Box, world: World, confined: bool) -> dict[str, str]:
    """The behaviours in `names`, each followed by a look at what it left; name: "" or a sentence.

    Args:
        names: which ones.
        box: what they are run in.
        world: what lies outside.
        confined: whether the destructive ones may be run, and `1+1` gives 2.
    """
    found = {}
    for behaviour in ALL:
        if behaviour.name not in names:
            continue
        if not (confined or behaviour.harmless):
            if isinstance(box, LocalSandbox):
                found[behaviour.name] = "not run, for the sandbox does not say that it would hold"
            continue
        sentences = try_one(behaviour, box, world.facts) + world.damage()
        if confined:
            after = box.run_sync("1+1")
            if (after.status, after.stdout) != ("ok", "2\n"):
                sentences.append(f"afterwards 1+1 ended as {after.status.value}, {after.render(200)}")
        found[behaviour.name] = "; ".join(filter(None, sentences))
        if found[behaviour.name]:
            world.clear()
    return found


def trial(situation: str, require: str, names: list[str]) -> dict[str, Any]:
    """What the trainer finds in its situation, in which it is already."""
    here = situations.present()
    if reason := situations.lacking(situation, here):
        return {"impossible": reason}
    world, level = World(), None
    try:
        if situation == "plain":
            found = try_all(names, Plain(world.tmp), world, confined=False)
        else:
            box = LocalSandbox(max_workers=1, require=require)
            try:
                level = box.level()
                # A sandbox may start what it needs for numpy only when it is needed first.
                for code in ("1+1", "import numpy, sympy"):
                    box.run_sync(code)
                world.settle()
                confined = level.network_denied and level.processes_denied and level.signals_denied
                found = try_all(names, box, world, confined)
            finally:
                box.close()
    finally:
        world.close()
    return {"present": here, "level": level and dataclasses.asdict(level), "behaviours": found}


def become_trainer(arguments: list[str], situation: str) -> dict[str, Any]:
    """Enters the situation and turns into the trainer; returns only if that can't be."""
    package = importlib.util.find_spec("gtpo").submodule_search_locations[0]
    needed = [sys.base_prefix, sys.prefix, package, os.path.dirname(os.path.abspath(__file__))]
    try:
        situations.enter(situation, needed)
    except PermissionError as error:
        return {"impossible": f"it can't be entered from where this runs: {error}"}
    for path in (*needed, sys.executable):
        if not os.access(path, os.R_OK | os.X_OK):
            return {"impossible": f"{path} is closed to user {os.getuid()}"}
    os.execv(sys.executable, [sys.executable, "-B", os.path.abspath(__file__), *arguments, "--phase", "trial"])


def launch(arguments: list[str], situation: str) -> dict[str, Any]:
    """Starts the trainer and returns its report.

    Raises:
        RuntimeError: the trainer failed, or took longer than `ALL_S`.
    """
    if reason := situations.impossible_here(situation):
        return {"impossible": reason}
    # Variables that would make this interpreter behave unlike any other, such as PYTHONUNBUFFERED.
    kept = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON") or name == "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "-B", os.path.abspath(__file__), *arguments, "--phase", "enter"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, TOKEN: secrets.token_hex(16)},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=ALL_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the trainer did not end within {ALL_S:g} s") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise RuntimeError(f"the trainer ended with {process.returncode}: {err[-2000:]}")
    return json.loads(out)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Runs the behaviours of the sandbox in one situation.")
    parser.add_argument("--situation", choices=situations.SITUATIONS, required=True)
    parser.add_argument("--output", required=True, help="file for the report, JSON")
    parser.add_argument("--require", default="weak", help="what the sandbox must hold, see LocalSandbox")
    parser.add_argument("--only", nargs="+", default=[one.name for one in ALL], help="names of behaviours")
    parser.add_argument("--phase", choices=("launch", "enter", "trial"), default="launch", help=argparse.SUPPRESS)
    options, arguments = parser.parse_args(), sys.argv[1:]
    if unknown := set(options.only) - {one.name for one in ALL}:
        parser.error(f"no such behaviour: {', '.join(sorted(unknown))}")
    if options.phase == "launch":
        report = launch(arguments, options.situation)
        Path(options.output).write_text(json.dumps(report, indent=1), encoding="utf-8")
    elif options.phase == "enter":
        print(json.dumps(become_trainer(arguments, options.situation)))
    else:
        print(json.dumps(trial(options.situation, options.require, options.only)))


if __name__ == "__main__":
    main()
