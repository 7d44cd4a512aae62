"""The command line: `gtpo COMMAND`. Expected errors end in one line on stderr and exit status 2, not in a traceback."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from gtpo import __version__
from gtpo._signals import STOPPED_STATUS, stop_signals
from gtpo._text import say, show
from gtpo.errors import GtpoError, StoppedError

COMMANDS = {
    "demo": ("gtpo.commands.demo", "cold start and GTPO of a tiny model on the spot; needs nothing but this package"),
    "train": ("gtpo.commands.train", "train a model with GTPO or GRPO on a file of problems"),
    "sft": ("gtpo.commands.sft", "fine-tune a model on multi-turn traces first"),
    "make-traces": ("gtpo.commands.make_traces", "make such traces from worked solutions"),
    "collect-traces": ("gtpo.commands.collect_traces", "make such traces from a model's own rollouts that passed"),
    "eval": ("gtpo.commands.evaluate", "figures of a model over problems or benchmarks"),
    "compare": ("gtpo.commands.compare", "two results of gtpo eval: paired difference, interval, p-value"),
    "study": ("gtpo.commands.study", "a study: variants x seeds, trained and evaluated, with a report"),
    "plan": ("gtpo.commands.plan", "memory and time of a training run, before it is run"),
    "report": ("gtpo.commands.report", "the credit inspector: one HTML page about a run, or a live one"),
    "sandbox": ("gtpo.commands.sandbox", "serve: offer this machine's sandbox to others over HTTP"),
    "export-verl": ("gtpo.commands.export_verl", "problems as a dataset for verl"),
    "doctor": ("gtpo.commands.doctor", "what this machine can do: versions, device, sandbox, extras"),
}
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
STOPPABLE = {
    "train": "nothing to save before the first step",
    "sft": "nothing to save before the first step",
    "demo": "the same command with --resume auto goes on from the last stage that is done",
    "study": "the same command goes on with the cells that are left",
    "eval": "with --output, the samples that are verified are kept and the same command goes on from them",
    "collect-traces": "the samples that are verified are kept, and the same command goes on from them",
}
"""Commands that SIGTERM, SIGUSR1 and SIGHUP end in good order, with status 75; and what is kept."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        show(_usage())
        return 0
    if argv[0] in ("--version", "version"):
        show(f"gtpo {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        say(f"gtpo: no command {argv[0]!r}\n\n{_usage()}")
        return 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # see gtpo.rollout.backends.transformers
    try:
        return _run_stoppable(argv) if argv[0] in STOPPABLE else _run(argv)
    except KeyboardInterrupt:
        _say(argv[0], "interrupted")
        return 130


def _run_stoppable(argv: Sequence[str]) -> int:
    with stop_signals(lambda text: _say(argv[0], text)) as stop:
        try:
            return _run(argv)
        except StoppedError as stopped:
            _say(argv[0], str(stopped))
        except KeyboardInterrupt:
            if stop.requested is None:
                raise
            _say(argv[0], f"stopped by {stop.requested.name}; {STOPPABLE[argv[0]]}")
    return STOPPED_STATUS


def _run(argv: Sequence[str]) -> int:
    try:
        return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    except StoppedError:
        raise
    except GtpoError as error:
        _say(argv[0], str(error))
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        _say(argv[0], f"{error.filename or 'a file'}: can't be written: {error.strerror}; free some space, then again")
    return 2


def _say(command: str, text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that has hung up
        say(f"gtpo {command}: {text}")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gtpo COMMAND [--config FILE.yaml] [--OPTION VALUE ...]",
            "",
            "Group Turn Policy Optimization (arXiv 2511.14846) for models that reason with tools.",
            "",
            *lines,
            "",
            "gtpo COMMAND --help lists a command's options.",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
