"""`gtpo compare`: is the second of two evaluations better than the first?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from gtpo._terminal import show_table
from gtpo._text import say, show
from gtpo.commands.arguments import CommandLine, positional
from gtpo.errors import ConfigError
from gtpo.evaluation import Comparison, compare
from gtpo.evaluation.statistics import Difference


@dataclass
class CompareArguments:
    """Data."""

    results: list[str] = field(
        default_factory=list,
        metadata={"help": "Two result files of gtpo eval. The option's name may be omitted: gtpo compare A B."},
    )


COMMAND_LINE = CommandLine(
    "gtpo compare",
    "Compare two result files of gtpo eval problem by problem: the second minus the first.",
    (CompareArguments,),
    usage="FIRST.json SECOND.json",
)


def main(argv: Sequence[str]) -> int:
    """Parse, compare, print."""
    (args,) = COMMAND_LINE.parse(positional(argv, "results"))
    if len(args.results) != 2:
        raise ConfigError(f"gtpo compare needs two result files (gtpo compare A B), got {len(args.results)}")
    found = compare(*args.results)
    say(f"first {found.first:.4f}, second {found.second:.4f}")
    show_table(rows(found))
    for note in found.notes:
        say(f"note: {note}")
    show(json.dumps(asdict(found), indent=1))
    return 0


def rows(comparison: Comparison) -> list[list[str]]:
    """The differences as a table: one line per domain, and one over all problems."""
    found = [["", "second - first", "95 % interval", "p", "problems", "that differ"]]
    named: dict[str, Difference] = {**comparison.domains, "all": comparison.overall}
    named |= {"reward": comparison.reward} if comparison.reward else {}
    for name, d in named.items():
        interval = f"[{d.low:+.4f}, {d.high:+.4f}]"
        found.append([name, f"{d.value:+.4f}", interval, f"{d.p_value:.4f}", str(d.problems), str(d.changed)])
    return found
