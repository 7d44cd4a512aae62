"""`gtpo demo`: the whole pipeline on a tiny model, in minutes, without GPU, network or account."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gtpo._terminal import show_table
from gtpo._text import say
from gtpo.commands.arguments import CommandLine
from gtpo.lab.tiny.pipeline import TinyArguments, rows, run_tiny
from gtpo.training.config import GTPOConfig
from gtpo.training.recorder import RunRecorder

COMMAND_LINE = CommandLine(
    "gtpo demo",
    "Make a tiny model, teach it imperfect use of a Python tool, then train it with GTPO (or GRPO).",
    (TinyArguments, GTPOConfig),
    usage="[--OPTION VALUE ...]",
    defaults="demo.yaml",
)


def main(argv: Sequence[str]) -> int:
    """Parse, run, and print the results and where the files are."""
    tiny, args = COMMAND_LINE.parse(argv)
    recorder = RunRecorder(args.run_dir)
    recorder.hold()
    try:
        summary = run_tiny(tiny, args)
    finally:
        recorder.release()
    run_dir = Path(args.run_dir)
    if tiny.prepare_only:
        say(f"{run_dir / 'cold-start' / 'model'}: the model after the cold start; {run_dir / 'problems'}: the problems")
        return 0
    say(f"\n{args.algorithm}, seed {args.seed}, {summary['steps']} steps, {summary['wall_s']:.0f} s:")
    show_table(rows(summary))
    for name, what in (
        ("summary.json", "these figures"),
        ("learning_curve.png", "the learning curve"),
        ("metrics.jsonl", "every figure of every step"),
        ("rollouts", "every rollout with the credit of each turn"),
        ("model", "the trained model"),
    ):
        say(f"  {run_dir / name!s:34} {what}")
    say(f"Next: gtpo report {run_dir}    # why each turn got its advantage, as one HTML page")
    return 0
