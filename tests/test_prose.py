"""Phrases that readers stumbled over stay out of what people read: pages, help, messages, docstrings, recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WHERE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "src", "recipes", "examples", "benchmarks", "tests")
KINDS = {".md", ".py", ".yaml", ".sh", ".js", ".html", ".ipynb", ".jinja"}

_UNIT = "step|rollout|turn|second|problem|group|cell|device|weight|character|byte|line"
_COUNTED = (
    r"rollouts|tokens|problems|threads|points|calls|samples|turns|operations|[Oo]ne (?:call|sample|token|JSON object)"
    r"|\d+(?:\.\d+)? s"
)
PHRASES = {
    "the host, meaning TRL": (r"\b[Tt]he host\b", "TRL"),
    "hang on": (r"\bhangs? on\b", "depends on"),
    "can't be had": (r"\bcan(?:no|')t be had\b", "is unavailable"),
    "is whose": (r"\bis whose\b", "what comes from the paper and what is ours"),
    "as one is patient": (r"\bas one is patient\b", "did not answer within 120 s"),
    "a rate with a": (rf"\b(?:{_COUNTED}) an? (?:{_UNIT})\b(?!')", "tokens per rollout"),
    "a rollout's, as a rate": (r"\b(?:tokens|turns|calls|seconds) a rollout's\b", "tokens per rollout"),
    "less GRPO's": (r"\bless GRPO's\b", "minus GRPO's"),
    "told apart": (r"\bnot be told apart\b(?! from each other)", "no significant difference (p = ..., n seeds)"),
    "in vain": (r"\bin vain\b", "wasted"),
    "teach nothing": (r"\bteach(?:es)? nothing\b", "are excluded from the loss"),
    "leaves nothing behind": (r"\bleaves nothing behind\b", "returns self; the tool is stateless"),
}
"""Name: pattern and what to write in its place."""

NETWORK = {"src/gtpo/_http.py", "src/gtpo/similarity/endpoint.py", "CHANGELOG.md"}
"""Files in which a host is a machine that a URL names."""


def texts() -> list[Path]:
    """The files that people read. This one names the phrases."""
    found = [path for part in WHERE for path in [ROOT / part, *(ROOT / part).rglob("*")] if path.is_file()]
    return [
        path for path in found if path.suffix in KINDS and path != Path(__file__) and "__pycache__" not in path.parts
    ]


def findings(text: str, pattern: str) -> list[str]:
    """The places of a phrase, also where a line is broken within it, as line numbers with the words around."""
    words = re.compile(pattern.replace(" ", r"\s+(?:#\s+|//\s+)?"))
    return [
        f"{text.count(chr(10), 0, m.start()) + 1}: {' '.join(text[max(m.start() - 40, 0) : m.end() + 40].split())}"
        for m in words.finditer(text)
    ]


@pytest.fixture(scope="module")
def read():
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in texts()}


@pytest.mark.parametrize("name", PHRASES)
def test_no_text_uses(read, name):
    pattern, better = PHRASES[name]
    allowed = NETWORK if name.startswith("the host") else set()
    found = [
        f"{path}:{place}" for path, text in read.items() if path not in allowed for place in findings(text, pattern)
    ]
    assert not found, f"write as in: {better}\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("the host, meaning TRL", "a model of the\n    # host is loaded"),
        ("hang on", "the figures hang on the seed"),
        ("can't be had", "the data set can't be had"),
        ("is whose", "What is whose"),
        ("as one is patient", "has not answered for as long as one is patient"),
        ("a rate with a", "8 rollouts a\nstep"),
        ("a rate with a", "takes 13 s a step"),
        ("a rollout's, as a rate", "the tokens a rollout's"),
        ("less GRPO's", "less GRPO's final pass rate"),
    ],
)
def test_the_patterns_find_what_they_are_for(name, text):
    assert findings(text, PHRASES[name][0])


@pytest.mark.parametrize(
    "text", ["the rewards of a rollout's turns", "hang in a system call", "the hosts file", "tokens that a turn holds"]
)
def test_the_patterns_leave_ordinary_sentences_alone(text):
    assert not any(findings(text, pattern) for pattern, _ in PHRASES.values())
