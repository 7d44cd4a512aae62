"""Texts that others wrote (models, tools, servers, files), made safe for what they go to: one place for each.

`well_formed` is for tokenizers, files and other processes, `for_terminal` for people who read them on a terminal.
Records keep texts as they are, but for what no file can hold.
"""

from __future__ import annotations

import difflib
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_SURROGATES = re.compile("[\ud800-\udfff]")
_SUSPECTS = re.compile("[^\n\t\x20-\x7e\xa1-\xac\xae-\u0377]")
"""What `for_terminal` looks at one by one; nearly all text goes by."""
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of Unicode that control, hide, reorder or break text: as escapes they can be seen and do nothing."""


def well_formed(text: str) -> str:
    """The text with U+FFFD in the place of each lone surrogate, so that UTF-8 can say it; all else is kept."""
    return _SURROGATES.sub("\ufffd", text)


def for_terminal(text: str) -> str:
    """The text with every character that a terminal would obey written as an escape, such as `\\x1b`.

    New lines and tabs are kept; control codes, codes that change the direction of writing, invisible ones and lone
    surrogates are not. What comes back can be encoded as UTF-8.
    """
    return _SUSPECTS.sub(_escaped, text)


def say(message: str) -> None:
    """A message to the person at the terminal, on stderr."""
    print(for_terminal(message), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """What a command was asked for, on stdout."""
    print(for_terminal(text), flush=True)


def each_text(value: Any, change: Any) -> Any:
    """A value of JSON's types with `change` made to each text in it, the names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {each_text(name, change): each_text(part, change) for name, part in value.items()}
    return [each_text(part, change) for part in value] if isinstance(value, (list, tuple)) else value


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause that names the nearest of the known names; empty if none is near."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
