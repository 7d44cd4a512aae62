"""`gtpo compare`: is the second of two evaluations better than the first?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from gtpo._text import say, show
from gtpo.commands.arguments import parse, positional
from gtpo.errors import ConfigError
from gtpo.evaluation import Comparison, compare
from gtpo.evaluation.statistics import Difference


@dataclass
class CompareArguments:
    """What to compare."""

    results: list[str] = field(
        default_factory=list,
        metadata={"help": "Two result files of gtpo eval; the option's name may be left out: gtpo compare A B."},
    )


def main(argv: Sequence[str]) -> int:
    """Parse, compare, print."""
    (args,) = parse(
        (CompareArguments,),
        positional(argv, "results"),
        prog="gtpo compare",
        about="Compare two result files of gtpo eval, the second with the first, problem by problem.",
    )
    if len(args.results) != 2:
        raise ConfigError(f"give two result files, gtpo compare A B; got {len(args.results)}")
    found = compare(*args.results)
    say(table(found))
    show(json.dumps(asdict(found), indent=1))
    return 0


def table(comparison: Comparison) -> str:
    """The comparison for people."""
    lines = [f"first {comparison.first:.4f}, second {comparison.second:.4f}"]
    named: dict[str, Difference] = {**comparison.domains, "all": comparison.overall}
    named |= {"reward": comparison.reward} if comparison.reward else {}
    width = max(map(len, named))
    for name, d in named.items():
        lines.append(
            f"{name:{width}}  second - first {d.value:+.4f}, 95 % [{d.low:+.4f}, {d.high:+.4f}], p = {d.p_value:.4f}, "
            f"{d.problems} problems of which {d.changed} differ"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in comparison.notes)])
