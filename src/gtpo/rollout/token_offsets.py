"""Which characters of a turn's text each of its tokens represents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"


class TokenPieces:
    """Cuts decoded texts at their tokens. Remembers the text of each id that it has seen.

    Args:
        decode: ids to text, as the text was decoded.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._texts: dict[int, str] = {}

    def chars(self, ids: Sequence[int], text: str) -> list[int] | None:
        """How many characters of the text each id represents; the counts add up to the length of the text.

        A character that is spread over several ids counts for the last of them. An id past the text's end, such as that
        of the end of a turn, represents none.

        Returns:
            One count per id, or None if the ids, decoded one by one, do not give the text, as with tokenizers that
            clean up spaces.
        """
        try:
            pieces = [self._texts[token] for token in ids]
        except KeyError:
            pieces = [self._text_of([token]) for token in ids]
        if "".join(pieces) == text:
            return list(map(len, pieces))
        if "".join(pieces[:-1]) == text:
            return [*map(len, pieces[:-1]), 0]
        return self._one_by_one(ids, text)

    def _one_by_one(self, ids: Sequence[int], text: str) -> list[int] | None:
        """`chars` where characters are spread over several ids."""
        counts: list[int] = []
        pending: list[int] = []
        place = 0
        for token in ids:
            pending.append(token)
            piece = self._text_of(pending)
            if place < len(text) and (not piece or (piece.endswith(_BROKEN) and not text.startswith(piece, place))):
                counts.append(0)
                continue
            if place >= len(text):
                counts.append(0)
            elif text.startswith(piece, place):
                counts.append(len(piece))
                place += len(piece)
            else:
                return None
            pending = []
        return counts if place == len(text) else None

    def _text_of(self, ids: list[int]) -> str:
        if len(ids) > 1:
            return self._decode(ids)
        if ids[0] not in self._texts:
            self._texts[ids[0]] = self._decode(ids)
        return self._texts[ids[0]]
