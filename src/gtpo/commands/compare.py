"""`gtpo compare`: train and evaluate every variant of a study with every seed, and report how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

from gtpo.commands.arguments import parse, say
from gtpo.errors import ConfigError
from gtpo.study import read_study, run_cells, write_report


@dataclass
class CompareArguments:
    """What to run."""

    study: Optional[str] = field(  # noqa: UP045 (the argument parser reads the annotation)
        default=None, metadata={"help": "The study file; may stand without its name: gtpo compare STUDY.yaml."}
    )
    jobs: int = field(default=1, metadata={"help": "Cells at a time."})
    threads: Optional[int] = field(  # noqa: UP045
        default=None, metadata={"help": "CPU threads a cell; by default the machine's cores over the jobs."}
    )
    only: list[str] = field(default_factory=list, metadata={"help": "Only these variants."})
    report_only: bool = field(default=False, metadata={"help": "Run nothing; report the cells that are done."})


def main(argv: Sequence[str]) -> int:
    """Parse, run what is left, write the report."""
    if argv and not argv[0].startswith("-"):
        argv = ["--study", *argv]
    (args,) = parse(
        (CompareArguments,),
        argv,
        prog="gtpo compare",
        about="Run a study: variants of a training run x seeds. Stopped, it goes on where it was.",
    )
    if args.study is None:
        raise ConfigError("no study: gtpo compare STUDY.yaml")
    study = read_study(args.study)
    if unknown := sorted(set(args.only) - set(study.variants)):
        raise ConfigError(f"--only: no variant {', '.join(unknown)}; there are: {', '.join(study.variants)}")
    failed = []
    if not args.report_only:
        cells = [cell for cell in study.cells if not args.only or cell.variant in args.only]
        failed = run_cells(cells, jobs=args.jobs, threads=args.threads, say=say)
    say(f"report in {write_report(study)}")
    return 1 if failed else 0
