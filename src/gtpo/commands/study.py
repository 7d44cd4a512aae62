"""`gtpo study`: train and evaluate every variant of a study with every seed, and report how they differ."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from gtpo._text import say
from gtpo.commands.arguments import CommandLine, positional
from gtpo.errors import ConfigError
from gtpo.lab.study import Cell, read_study, run_cells, write_report


@dataclass
class StudyArguments:
    """The study."""

    study: str | None = field(
        default=None,
        metadata={"help": "Study file (docs/studies.md). The option's name may be omitted: gtpo study STUDY.yaml."},
    )
    jobs: int = field(
        default=1, metadata={"help": "Number of cells (one variant with one seed) that run at the same time."}
    )
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads per cell; by default the number of cores divided by jobs."}
    )
    only: list[str] = field(default_factory=list, metadata={"help": "Run these variants only."})
    report_only: bool = field(
        default=False, metadata={"help": "Run nothing; write the report from the cells that have finished."}
    )


COMMAND_LINE = CommandLine(
    "gtpo study",
    "Run a study: variants of a training run, each with several seeds. Run the same command to resume one.",
    (StudyArguments,),
    usage="STUDY.yaml [--OPTION VALUE ...]",
)


def main(argv: Sequence[str]) -> int:
    """Parse, run what is left, write the report."""
    (args,) = COMMAND_LINE.parse(positional(argv, "study"))
    if args.study is None:
        raise ConfigError("no study file: run gtpo study STUDY.yaml")
    study = read_study(args.study)
    if unknown := sorted(set(args.only) - set(study.variants)):
        raise ConfigError(
            f"--only: the study has no variant {', '.join(unknown)}; there are: {', '.join(study.variants)}"
        )
    failed = []
    if not args.report_only:
        cells = [cell for cell in study.cells if not args.only or cell.variant in args.only]
        failed = run_cells(cells, jobs=args.jobs, threads=args.threads, say=say, check=check_options)
    say(f"report in {write_report(study)}")
    return 1 if failed else 0


def check_options(cells: Sequence[Cell]) -> None:
    """Read the options of every variant as the commands will, so that a mistake shows before any training.

    Raises:
        ConfigError: an option is unknown or its value can't be used, or a file of problems is missing; names the
            variant.
    """
    from gtpo.commands import evaluate, train  # they take seconds to load

    checked: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells:
            for part, read, options in (
                ("train", train.arguments, cell.train),
                ("evaluate", evaluate.arguments, cell.evaluate),
            ):
                text = yaml.safe_dump(dict(options or {}), sort_keys=True)
                if text in checked or options is None:
                    continue
                checked.add(text)
                path = Path(folder) / f"{part}.yaml"
                path.write_text(text)
                try:
                    read(["--config", str(path), *(["--run_dir", folder] if part == "train" else [])])
                except ConfigError as error:
                    said = str(error).removeprefix(f"{path}: ")
                    raise ConfigError(f"{part}, variant {cell.variant}: {said}") from error
        for source in [name for cell in cells for name in _sources(cell)]:
            file = Path(source.partition("?")[0])
            if file.suffix in (".jsonl", ".parquet", ".yaml") and not file.exists():
                raise ConfigError(f"{file}: no such problem file")


def _sources(cell: Cell) -> list[str]:
    asked = (cell.evaluate or {}).get("problems", [])
    return [str(cell.train.get("train_file", "")), *([asked] if isinstance(asked, str) else map(str, asked))]
