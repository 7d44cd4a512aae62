"""A tokenizer, for renderers, that can cut text where markup would occur in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tokenizers

from gtpo._text import well_formed

_SHORT, _MOST_KNOWN = 64, 4096
"""Length in characters of the longest text whose ids are kept, and number of texts whose ids are kept."""


class CutTokenizer:
    """What a renderer needs of a tokenizer. Inside `cutting`, text is cut at a special character.

    Fast tokenizers are called directly, because the layer of transformers takes longer than encoding a short text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = backend if isinstance(backend, tokenizers.Tokenizer) else None
        self._known: dict[str, list[int]] = {}
        self._cut = ""

    @property
    def name_or_path(self) -> str:
        """The model's name."""
        return str(getattr(self._tokenizer, "name_or_path", ""))

    @property
    def unk_token_id(self) -> int | None:
        """The id of the unknown token."""
        return self._tokenizer.unk_token_id

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a sequence."""
        return self._tokenizer.eos_token_id

    def encode(self, text: str, *args: Any, **kwargs: Any) -> list[int]:
        """Encode a text piece by piece, without the tokens that the tokenizer adds around a text."""
        text = well_formed(text)
        if len(text) <= _SHORT and text in self._known:
            return list(self._known[text])
        pieces = text.split(self._cut) if self._cut else [text]
        ids = [i for piece in pieces if piece for i in self._piece(piece)]
        if len(text) <= _SHORT and not self._cut and len(self._known) < _MOST_KNOWN:
            self._known[text] = list(ids)
        return ids

    def _piece(self, text: str) -> list[int]:
        if self._backend is None:
            return self._tokenizer.encode(text, add_special_tokens=False)
        self._backend.encode_special_tokens = False  # transformers leaves it as the last call wanted it
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> str:
        """Decode ids, with special tokens and spaces unchanged."""
        if self._backend is None:
            return self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self._backend.decode([token_ids] if isinstance(token_ids, int) else token_ids, skip_special_tokens=False)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """As the tokenizer does."""
        return self._tokenizer.convert_tokens_to_ids(tokens)

    def __getattr__(self, name: str) -> Any:
        if name == "__call__":  # it would be asked for character offsets, which are not needed
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    @contextmanager
    def cutting(self, texts: Sequence[str], pieces: Callable[[str], list[str]]) -> Iterator[list[str]]:
        """The texts, with a character that none of them contains at each place where they are to be cut."""
        cut = [pieces(text) for text in texts]
        if any(len(parts) > 1 for parts in cut):
            self._cut = next(c for c in map(chr, range(0xE000, 0xF8FF)) if not any(c in text for text in texts))
        try:
            yield [self._cut.join(parts) for parts in cut]
        finally:
            self._cut = ""
