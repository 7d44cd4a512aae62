"""Search over a file of passages: a tool besides Python, and an example of a tool. Needs the extra `search`."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtpo._jsonl import rows
from gtpo.errors import ConfigError, DataError
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.rollout.tools import ToolResult
from gtpo.types import ToolCall

NOTHING = "[no passage found]"


@dataclass(frozen=True)
class Passage:
    """A passage that can be found."""

    text: str
    title: str = ""


def search_spec(results: int) -> ToolSpec:
    """The description of the search tool, which returns up to `results` passages."""
    return ToolSpec(
        "search",
        "Search a collection of passages and return the best ones.",
        {"query": {"type": "string", "description": "Words to look for."}},
        ("query",),
        ability="search a collection of passages",
        note=f"Each search returns up to {results} passages.",
    )


class SearchTool:
    """BM25 search over passages in memory, with the package bm25s. One for all rollouts; any thread may call it.

    Args:
        passages: the passages to search, at least one.
        results: maximum number of passages per call, the best first; those that share no word with the query are left
            out.

    Raises:
        ConfigError: there is no passage, none has a word that can be searched for, `results` is below 1, or bm25s is
            not installed.
    """

    def __init__(self, passages: Sequence[Passage], results: int = 3):
        if not passages or results < 1:
            raise ConfigError(
                f"search needs at least one passage, and results >= 1 (got {len(passages)} passages, results {results})"
            )
        try:
            import bm25s
        except ImportError as error:
            raise ConfigError("the tool 'search' needs bm25s: pip install 'gtpo[search]'") from error
        self._bm25s, self._passages, self._results = bm25s, list(passages), min(results, len(passages))
        tokens = self._tokens([f"{p.title} {p.text}" for p in passages])
        if not any(tokens):
            raise ConfigError("no passage holds a word that can be searched for (stop words can't)")
        self._index = bm25s.BM25()
        self._index.index(tokens, show_progress=False)
        self.spec = search_spec(results)

    @classmethod
    def from_file(cls, path: str | Path, results: int = 3) -> SearchTool:
        """Search the passages of a JSON Lines file: `text`, and `title` if there is one; other fields are ignored.

        Raises:
            DataError: the file or one of its lines can't be used; the message names it.
        """
        path = Path(path)
        passages = []
        for number, row in rows(path):
            for name in ("text", "title"):
                if not isinstance(row.get(name, ""), str):
                    raise DataError(
                        "not text; a passage has `text` and may have `title`", path=path, line=number, field=name
                    )
            if not row.get("text", "").strip():
                raise DataError("missing or blank; fill it in or remove the line", path=path, line=number, field="text")
            passages.append(Passage(row["text"], row.get("title", "")))
        if not passages:
            raise DataError("holds no passage; write one JSON object per line, with text", path=path)
        return cls(passages, results)

    def search(self, query: str) -> list[Passage]:
        """The best passages for a query, the best first."""
        tokens = self._tokens([query])
        if not any(tokens[0]):
            return []
        places, scores = self._index.retrieve(tokens, k=self._results, show_progress=False, n_threads=0)
        return [self._passages[i] for i, score in zip(places[0], scores[0], strict=True) if score > 0]

    def open(self, key: Hashable) -> SearchTool:
        """Returns self; the tool is stateless."""
        return self

    async def run(self, call: ToolCall) -> ToolResult:
        """The passages that a call finds, as text."""
        found = await asyncio.to_thread(self.search, str(call.arguments["query"]))
        shown = [f"[{i}] {p.title + ': ' if p.title else ''}{p.text}" for i, p in enumerate(found, 1)]
        return ToolResult("\n".join(shown) or NOTHING, "ok" if found else "nothing_found")

    async def aclose(self) -> None:
        """Nothing to close."""

    def _tokens(self, texts: list[str]) -> Any:
        return self._bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
