"""Where the answer stands in a final turn: boxes, tags and fenced blocks. Structure decides, then what a block holds.

One pass over the text for each, so that a text of 8,000 tags costs no more than any other of its length.
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
    """A part of a text that is set off from the rest.

    Attributes:
        content: what stands in it.
        start: where it opens.
        closed: it is closed before the end of the text.
        label: of a fenced block, what stands behind the fence.
    """

    content: str
    start: int
    closed: bool
    label: str = ""


def last_tag(text: str) -> Block | None:
    """The last `<answer>` block: of nested ones the outermost, and if the last opening tag is never closed, that.

    So a program that prints `</answer>` is not cut short, and no earlier block is taken for one that breaks off.
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
    """The fenced blocks in their order, as Markdown has them: backticks or tildes, indented or not, any line ends."""
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
    """The program in a final turn.

    The last `<answer>` block, and in it the last fenced block if there is one; else the last fenced block that is
    labelled as Python, else the last one without a label. A block that is not closed counts if what it holds is a
    program that does something: a text that breaks off mostly is none.

    Returns:
        None if there is none.
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
    """Whether the text is a program with a statement that is more than a name or a constant."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    idle = (ast.Name, ast.Constant)
    return any(not (isinstance(statement, ast.Expr) and isinstance(statement.value, idle)) for statement in body)


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("".join(lines).replace("\r\n", "\n").replace("\r", "\n"))
