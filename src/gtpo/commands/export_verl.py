"""`gtpo export-verl`: problems as a dataset for verl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gtpo._text import say
from gtpo.commands.arguments import ColumnArguments, CommandLine
from gtpo.errors import ConfigError
from gtpo.integrations.verl.rows import write_parquet
from gtpo.tasks.sources import problems_from, verifiable
from gtpo.tasks.verifiers import get_verifier


@dataclass
class VerlProblemsArguments(ColumnArguments):
    """Data."""

    problems: list[str] = field(default_factory=list, metadata={"help": "Sources of problems, as in gtpo eval."})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with benchmarks as NAME.jsonl files, read instead of downloading from the Hub."},
    )
    output: str = field(default="problems.parquet", metadata={"help": "Parquet file to write the data set to."})
    data_source: str = field(default="gtpo", metadata={"help": "Name under which verl logs the validation metrics."})
    verifier: str = field(
        default="auto", metadata={"help": "Verifier, as in gtpo train. Problems that it cannot verify are left out."}
    )


COMMAND_LINE = CommandLine(
    "gtpo export-verl",
    "Write problems as a data set for verl.",
    (VerlProblemsArguments,),
    usage="--problems SOURCE [SOURCE ...] [--output FILE.parquet] [--OPTION VALUE ...]",
)


def main(argv: Sequence[str]) -> int:
    """Parse, read, check, write."""
    (args,) = COMMAND_LINE.parse(argv)
    if not args.problems:
        raise ConfigError("no problems: give --problems SOURCE")
    options = {"data_dir": args.data_dir, "columns": args.row_columns()}
    found = [problem for source in args.problems for problem in problems_from(source, **options)]
    verifier = get_verifier(args.verifier)
    try:
        problems = verifiable(found, verifier, say)
    finally:
        verifier.close()
    write_parquet(problems, args.output, args.data_source)
    say(f"{args.output}: {len(problems)} problems")
    return 0
