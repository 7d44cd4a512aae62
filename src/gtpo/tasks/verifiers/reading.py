"""Locates the answer in a final turn: tags and fenced blocks, by structure first, then by the content of a block.

Each search is one pass over the text, so a text with 8,000 tags costs no more than any other of its length.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_FENCE = re.compile(r"[ \t]*(?:(?:[-*+>]|\d{1,3}[.)])[ \t]+)*(`{3,}|~{3,})([^`]*)")
_LABELS = re.compile(r"\{?\.?(?:i?python|py)(?:[ -]?[23](?:\.\d+)?)?\}?(?:[\s,{:].*)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A tagged or fenced part of a text.

    Attributes:
        content: the text inside.
        start: where the block opens.
        closed: whether it is closed before the end of the text.
        label: for a fenced block, the text after the opening fence.
    """

    content: str
    start: int
    closed: bool
    label: str = ""


def last_tag(text: str) -> Block | None:
    """Returns the last `<answer>` block: the outermost of nested ones; or the last opening tag if it is never closed.

    So a program that prints `</answer>` is not truncated, and an unclosed last block is not replaced by an earlier one.
    """
    open_tags: list[re.Match[str]] = []
    last: tuple[re.Match[str], int] | None = None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            open_tags.append(tag)
        elif open_tags:
            last = (open_tags.pop(), tag.start())
    if open_tags and (last is None or open_tags[-1].start() > last[0].start()):
        opening = open_tags[-1]
        return Block(text[opening.end() :], opening.start(), False)
    return None if last is None else Block(text[last[0].end() : last[1]], last[0].start(), True)


def fenced(text: str) -> list[Block]:
    """Returns the fenced blocks of Markdown in order: backticks or tildes, indented or not, any line ends."""
    blocks: list[Block] = []
    fence, label, lines, start = "", "", [""], 0
    place = 0
    for line in text.splitlines(keepends=True):
        found = _FENCE.fullmatch(line.rstrip("\r\n"))
        if fence and found and found[1][0] == fence[0] and len(found[1]) >= len(fence) and not found[2].strip():
            blocks.append(Block(_dedented(lines), start, True, label))
            fence = ""
        elif fence:
            lines.append(line)
        elif found:
            fence, label, lines, start = found[1], found[2].strip(), [], place
        place += len(line)
    if fence:
        blocks.append(Block(_dedented(lines), start, False, label))
    return blocks


def program(text: str) -> str | None:
    """Returns the program in a final turn.

    It is the content of the last `<answer>` block, or of the last fenced block in it if there is one; else the last
    fenced block labelled as Python, else the last one without a label. A block that is not closed counts only if it
    contains a program that does something; truncated text usually does not.

    Returns:
        None if there is no program.
    """
    tag = last_tag(text)
    if tag is not None and (tag.closed or _does_something(_dedented(tag.content.splitlines(keepends=True)))):
        inner = _of_python(fenced(tag.content))
        found: str | None = inner if inner is not None else _dedented(tag.content.splitlines(keepends=True)).strip("\n")
    else:
        found = _of_python(fenced(text))
    return found if found and found.strip() else None


def _of_python(blocks: list[Block]) -> str | None:
    blocks = [block for block in blocks if block.closed or _does_something(block.content)]
    labelled = [block.content for block in blocks if block.label and _LABELS.fullmatch(block.label)]
    unlabelled = [block.content for block in blocks if not block.label]
    found = labelled or unlabelled
    return found[-1] if found else None


def _does_something(text: str) -> bool:
    """Whether the text is a program with at least one statement that is not just a name or a constant."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    idle = (ast.Name, ast.Constant)
    return any(not (isinstance(statement, ast.Expr) and isinstance(statement.value, idle)) for statement in body)


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("".join(lines).replace("\r\n", "\n").replace("\r", "\n"))
