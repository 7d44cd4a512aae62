"""Makes untrusted texts (from models, tools, servers, files) safe for their destination.

`well_formed` is for tokenizers, files and other processes, `for_terminal` for people who read the texts on a terminal.
Records keep texts unchanged, except for what a file can't store.
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
"""Characters that `for_terminal` checks one by one; nearly all text has none."""
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that control, hide, reorder or break text: as escapes they are visible and have no effect."""


def well_formed(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD, so that it can be encoded as UTF-8."""
    return _SURROGATES.sub("\ufffd", text)


def for_terminal(text: str) -> str:
    """The text with every character that a terminal would interpret written as an escape, such as `\\x1b`.

    Newlines and tabs are kept; control codes, codes that change the writing direction, invisible characters and lone
    surrogates are escaped. The result can be encoded as UTF-8.
    """
    return _SUSPECTS.sub(_escaped, text)


def say(message: str) -> None:
    """Print a message for the user, on stderr."""
    print(for_terminal(message), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print the output of a command, on stdout."""
    print(for_terminal(text), flush=True)


def each_text(value: Any, change: Any) -> Any:
    """A JSON value with `change` applied to each string in it, including field names."""
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
    """A clause that suggests the nearest known name; empty if none is near."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
