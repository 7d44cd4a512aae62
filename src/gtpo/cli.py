"""The command line: `gtpo COMMAND`. Expected errors end in one line on stderr and exit status 2, not in a traceback."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from gtpo import __version__
from gtpo._quiet import quieten
from gtpo._signals import STOPPED_STATUS, STOPPING, stop_signals
from gtpo._text import did_you_mean, say, show
from gtpo.errors import GtpoError, StoppedError

COMMANDS = {
    "demo": ("gtpo.commands.demo", "train a tiny model made on the spot; needs nothing but this package"),
    "train": ("gtpo.commands.train", "train a model with GTPO or GRPO"),
    "sft": ("gtpo.commands.sft", "fine-tune a model on multi-turn traces (cold start)"),
    "make-traces": ("gtpo.commands.make_traces", "make traces from worked solutions"),
    "collect-traces": ("gtpo.commands.collect_traces", "make traces from a model's own rollouts that passed"),
    "eval": ("gtpo.commands.evaluate", "evaluate a model on problems or benchmarks"),
    "compare": ("gtpo.commands.compare", "compare two results of gtpo eval: difference, interval, p-value"),
    "study": ("gtpo.commands.study", "train and evaluate variants, each with several seeds, and report"),
    "plan": ("gtpo.commands.plan", "estimate memory and time of a training run before it starts"),
    "report": ("gtpo.commands.report", "show why each turn got its advantage, as one HTML page"),
    "sandbox": ("gtpo.commands.sandbox", "serve: offer this machine's sandbox to other machines over HTTP"),
    "export-verl": ("gtpo.commands.export_verl", "write problems as a data set for verl"),
    "doctor": ("gtpo.commands.doctor", "check this machine, a model's tool format or a verifier"),
    "completion": ("gtpo.commands.completion", "print a completion script for a shell (bash, zsh, fish, ...)"),
}
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
STOPPABLE = {
    "train": "nothing to save before the first step",
    "sft": "nothing to save before the first step",
    "demo": "the same command with --resume auto continues after the last finished stage",
    "study": "the same command runs the remaining cells",
    "eval": "with --output, verified samples are kept and the same command continues from them",
    "collect-traces": "verified samples are kept, and the same command continues from them",
}
"""Commands that SIGTERM, SIGUSR1 and SIGHUP end cleanly, with status 75; and what is kept."""
_SAVING = ("train", "sft")
"""Those that a first Ctrl-C also ends cleanly, since they have a step to finish and a checkpoint to save."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output has stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it ends
        return 141
    return status


def _main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        show(_usage())
        return 0
    if argv[0] in ("--version", "version"):
        show(f"gtpo {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        say(f"gtpo: no command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}\n\n{_usage()}")
        return 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # see gtpo.rollout.backends.transformers
    quieten()
    try:
        return _run_stoppable(argv) if argv[0] in STOPPABLE else _run_command(argv)
    except KeyboardInterrupt:
        _say(argv[0], "interrupted")
        return 130


def _run_stoppable(argv: Sequence[str]) -> int:
    signals = (*STOPPING, signal.SIGINT) if argv[0] in _SAVING else STOPPING
    with stop_signals(lambda text: _say(argv[0], text), signals) as stop:
        try:
            return _run_command(argv)
        except StoppedError as stopped:
            _say(argv[0], str(stopped))
        except KeyboardInterrupt:
            if stop.requested is None:
                raise
            _say(argv[0], f"stopped by {stop.requested.name}; {STOPPABLE[argv[0]]}")
    return STOPPED_STATUS


def _run_command(argv: Sequence[str]) -> int:
    try:
        return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    except StoppedError:
        raise
    except GtpoError as error:
        _say(argv[0], str(error))
    except OSError as error:  # a broken pipe among them
        if error.errno not in DISK_ERRNOS:
            raise
        _say(
            argv[0],
            f"{error.filename or 'a file'}: can't be written: {error.strerror}; free disk space and run it again",
        )
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
            "gtpo COMMAND --help_all also lists those inherited from TRL and transformers.",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
