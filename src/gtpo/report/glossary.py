"""The meaning of each metric, read from `docs/metrics.md`, of which the package contains a copy."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_ROW = re.compile(r"\| (`.+?`(?:, `.+?`)*) \| (.*?) \| (.*?) \|")


@cache
def glossary() -> dict[str, dict[str, str]]:
    """Unit and meaning by name. A name such as `tool/STATUS` or `time/*_share` stands for all that match it."""
    text = (files("gtpo.report") / "assets" / "metrics.md").read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = {}
    for names, unit, meaning in _ROW.findall(text):
        for name in re.findall(r"`(.+?)`", names):
            found[name] = {"unit": unit, "meaning": _plain(meaning)}
    return found


def _plain(meaning: str) -> str:
    """Without Markdown's backticks and link targets: the page shows it as text."""
    return re.sub(r"\[(.+?)\]\(.+?\)", r"\1", meaning).replace("`", "")
