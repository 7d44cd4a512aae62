"""Write the tables of studies into a page, from the reports of `gtpo study`.

    python benchmarks/study_tables.py [docs/results.md] [--studies runs/studies]

Tables are written between `<!-- table: KIND NAME ... -->` and `<!-- end -->`. The kinds are:

    family STUDY VARIANT ...     final pass rate, area, turns, invalid calls, and differences from the baseline
    brief STUDY VARIANT ...      the same with fewer columns
    sources STUDY                pass rates by source of the problems, and differences from the baseline
    rates STUDY ...              the search over the learning rate: `grpo`, `gtpo` and their `_lr_RATE`
    behaviour STUDY[=VARIANT,VARIANT] ...   the table of benchmarks/behaviour.py, for all variants or the given ones
    settings START ...           recipes/tiny-study/study.py: the tried settings of each algorithm, and the selected one
    best START                   recipes/tiny-study/study.py: the report at the selected settings
    map START ...                differences from GRPO, by pass rate at the start and turns

If a study has no report here, its table is kept unchanged, and its name is printed.
"""

from __future__ import annotations

import argparse
import errno
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from behaviour import cell_rows, file_name, variant_rows
from behaviour import table as behaviour_table
from best_tables import best_table, map_table, settings_table

from gtpo.lab.study.figures import Spread
from gtpo.lab.study.report import markdown_table, shown, shown_p, source_rows

_PART = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
_RATE = "1e-4"
"""That of the variants whose names give none."""


class Tables:
    """Tables of the studies in a folder.

    Args:
        studies: the folder.
    """

    def __init__(self, studies: Path) -> None:
        self.studies = studies

    def make(self, words: str) -> str:
        """The table of a marker.

        Raises:
            SystemExit: the marker says something else than is known.
        """
        kind, *rest = shlex.split(words)
        if kind in ("family", "brief"):
            return self.study(rest[0], rest[1:], whole=kind == "family")
        if kind == "sources":
            return self.sources(rest[0])
        if kind == "rates":
            return self.rates(rest)
        if kind == "settings":
            return settings_table(self.studies, rest)
        if kind == "best":
            return best_table(self.studies, rest[0])
        if kind == "map":
            return map_table(self.studies, rest)
        if kind == "behaviour":
            return "\n\n".join(map(self.behaviour, rest))
        raise SystemExit(
            f"unknown kind of table {kind!r}: use family, brief, sources, rates, behaviour, settings, best or map"
        )

    def report(self, name: str) -> dict[str, Any]:
        """What `gtpo study` wrote about a study."""
        return json.loads((self.studies / name / "report.json").read_text())

    def study(self, name: str, variants: Sequence[str], whole: bool) -> str:
        """A row a variant."""
        report = self.report(name)
        known = report["final"]
        head = ["variant", "seeds", "final pass rate", "area", "turns", "invalid calls", "final, minus GRPO's", "p"]
        head += ["area, minus GRPO's", "p", "equal time, minus GRPO's"] if whole else []
        rows = []
        for variant in variants:
            cells = [cell["result"] for cell in report["cells"][variant].values()]
            row = [
                variant,
                str(known[variant]["seeds"]),
                _interval(known[variant]),
                _interval(report["area"][variant]),
                f"{fmean(cell['turns_per_rollout'] for cell in cells):.2f}",
                f"{fmean(cell['invalid_calls_per_rollout'] for cell in cells):.3f}",
            ]
            difference = report["differences"].get(variant, {})
            for part in ("final", "area") if whole else ("final",):
                row += [_interval(difference.get(part), "+"), _p(difference.get(part))]
            if whole:  # only these two ran side by side
                row.append(_interval(difference.get("equal_time"), "+") if variant == "gtpo" else "")
            rows.append(row)
        return "\n".join(markdown_table(head, rows))

    def behaviour(self, which: str) -> str:
        """Of a study, or of some of its variants (`STUDY=VARIANT,VARIANT`)."""
        name, _, chosen = which.partition("=")
        rows = [
            row
            for row in variant_rows(cell_rows(self.studies / name))
            if not chosen or row["variant"] in chosen.split(",")
        ]
        if not rows:
            raise FileNotFoundError(errno.ENOENT, "no cell is done", str(self.studies / name / "cells"))
        return f"*{name.rpartition('/')[2]}*\n\n{behaviour_table(rows)}"

    def sources(self, name: str) -> str:
        """A row a source and variant; the file's name stands for the source."""
        report = self.report(name)
        sources, differences = (
            {source: {name: Spread(**value) for name, value in variants.items()} for source, variants in of.items()}
            for of in (report["sources"], report["source_differences"])
        )
        rows = [[file_name(row[0]), *row[1:]] for row in source_rows(sources, differences)]
        head = ["problems", "variant", "seeds", "pass rate", "minus GRPO's", "p"]
        return "\n".join(markdown_table(head, rows))

    def rates(self, names: Sequence[str]) -> str:
        """The search over the learning rate."""
        rows = []
        for name in names:
            final = self.report(name)["final"]
            others = {variant.partition("_lr_")[2] for variant in final if variant.startswith(("grpo_lr_", "gtpo_lr_"))}
            for rate in sorted({_RATE, *others}, key=float):
                end = "" if rate == _RATE else f"_lr_{rate}"
                sides = [final[f"{algorithm}{end}"] for algorithm in ("grpo", "gtpo")]
                seeds = ", ".join(str(side["seeds"]) for side in sides)
                rows.append([name.rpartition("/")[2], rate, *map(_interval, sides), seeds])
        return "\n".join(markdown_table(["family", "learning rate", "GRPO", "GTPO", "seeds"], rows))


def _interval(found: dict[str, Any] | None, sign: str = "") -> str:
    return shown(Spread(**found), sign) if found else ""


def _p(found: dict[str, Any] | None) -> str:
    return shown_p(Spread(**found)) if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"))
    args = parser.parse_args()
    page = args.page.read_text()
    tables = Tables(args.studies)
    kept = []

    def replacement(found: re.Match[str]) -> str:
        try:
            return f"{found[1]}{tables.make(found[2])}\n{found[3]}"
        except FileNotFoundError as error:
            kept.append(f"kept: {found[2]} ({error.filename} is missing)")
            return found[0]

    args.page.write_text(_PART.sub(replacement, page))
    print("\n".join([f"{args.page}: {len(_PART.findall(page)) - len(kept)} tables made", *kept]))


if __name__ == "__main__":
    main()
