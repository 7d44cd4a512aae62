"""Tokens and the characters they stand for."""

from __future__ import annotations

import pytest

from gtpo.rollout.token_offsets import TokenPieces


def utf8(ids):
    """A tokenizer whose ids are bytes: characters beyond ASCII take several."""
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["", "abc", "é", "a€b", "naïve 🙂🙂 end"])
def test_counts_add_up_and_a_character_of_several_tokens_counts_for_the_last(text):
    ids = list(text.encode())
    counts = TokenPieces(utf8).chars(ids, text)
    assert len(counts) == len(ids)
    assert sum(counts) == len(text)
    place = 0
    for i, count in enumerate(counts):
        if count:
            assert utf8(ids[: i + 1]) == text[: place + count]
        place += count


def test_the_end_of_a_turn_stands_for_no_character():
    assert TokenPieces(utf8).chars([*b"ab", 0], "ab") == [1, 1, 0]


def test_a_text_that_is_not_what_the_ids_give_is_not_cut():
    assert TokenPieces(utf8).chars(list(b"a b"), "ab") is None
    assert TokenPieces(utf8).chars(list(b"ab"), "abc") is None


@pytest.mark.parametrize("ids", [[0xE2, 0x82, 0x41], list("x\ufffdy".encode()), [0xFF, 0x41]])
def test_text_with_broken_characters_is_cut_rightly_or_not_at_all(ids):
    text = utf8(ids)
    counts = TokenPieces(utf8).chars(ids, text)
    assert counts is None or sum(counts) == len(text)


def test_real_tokens(tiny_tokenizer):
    text = "```python\n6*7\n```"
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    counts = TokenPieces(lambda ids: tiny_tokenizer.decode(ids)).chars(ids, text)
    assert counts == [10, 1, 1, 1, 4]
