"""Measurements of benchmarks, and how they are printed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One measurement: the value of each round, and whether their median meets the target, if there is one."""

    what: str
    values: list[float]
    unit: str
    target: str = ""
    met: bool | None = None
    detail: dict[str, object] = field(default_factory=dict)


def print_table(rows: list[Row]) -> None:
    print("| what | median | min | max | target | met |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        numbers = " | ".join(f"{f(row.values):.3g} {row.unit}" for f in (statistics.median, min, max))
        met = "" if row.met is None else "yes" if row.met else "NO"
        print(f"| {row.what} | {numbers} | {row.target} | {met} |")
    for row in rows:
        print(f"\n{row.what}, by round: {spelled(row.values)} {row.unit}")
        for name, value in row.detail.items():
            print(f"    {name}: {spelled(value)}")


def spelled(value: object) -> str:
    return ", ".join(
        str(one) if isinstance(one, bool) else f"{one:.4g}" for one in (value if isinstance(value, list) else [value])
    )
