"""The negative control: nothing to do with the code, but a similarity all the same."""

from __future__ import annotations

import torch

from gtpo.similarity import get_similarity


def test_it_is_symmetric_within_bounds_and_the_same_each_time():
    texts = [f"print({i})" for i in range(60)]
    matrix = get_similarity("random").matrix(texts)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix, get_similarity("random").matrix(texts))
    off = matrix[~torch.eye(60, dtype=torch.bool)]
    assert off.min() >= 0
    assert off.max() <= 1
    assert abs(off.mean() - 0.5) < 0.03
    assert abs(off.std() - 12**-0.5) < 0.02


def test_equal_texts_are_alike_and_blank_ones_like_nothing():
    matrix = get_similarity("random").matrix(["a", "b", "a", " "])
    assert matrix[0, 2] == 1
    assert matrix[0, 1] == matrix[2, 1] < 1
    assert matrix[3].eq(0).all()


def test_pairs_that_join_to_the_same_text_are_not_the_same_pair():
    matrix = get_similarity("random").matrix(["ab", "c", "a", "bc"])
    assert matrix[0, 1] != matrix[2, 3]
