"""Embeddings by a real sentence-transformers model, made here and not trained."""

import pytest
import torch

from gtpo.similarity import SimilarityError, get_similarity
from gtpo.similarity.base import EmbeddingSimilarity

CODE = ["print(1)", "x = 2", "print(1)", "", "import math"]


class Counting(EmbeddingSimilarity):
    """Embeds a text as its numbers of characters, and notes what it was asked to embed."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.asked: list[str] = []

    def embed(self, texts: list[str]) -> torch.Tensor:
        self.asked += texts
        return torch.tensor([[text.count(c) for c in "abx"] for text in texts], dtype=torch.float64)


def test_each_distinct_text_is_embedded_once_and_blank_ones_never():
    similarity = Counting()
    matrix = similarity.matrix(["ab", "x", "ab", " ", "aab"])
    assert similarity.asked == ["ab", "x", "aab"]
    assert matrix[0].tolist() == pytest.approx([1, 0, 1, 0, 3 / 10**0.5])
    assert matrix[3].tolist() == [0] * 5
    similarity.matrix(["x", "b", "ab"])
    assert similarity.asked == ["ab", "x", "aab", "b"]


def test_texts_are_told_apart_by_all_of_them():
    similarity = Counting()
    prefix = "a" * 5000
    assert similarity.matrix([prefix, prefix + "x" * 5000])[0, 1] < 0.9
    assert len(similarity.asked) == 2


def test_the_cache_drops_what_was_not_used_for_longest():
    similarity = Counting(cache_size=2)
    similarity.matrix(["a", "b"])
    similarity.matrix(["a", "x"])
    similarity.asked.clear()
    similarity.matrix(["a", "x"])
    assert similarity.asked == []
    similarity.matrix(["b"])
    assert similarity.asked == ["b"]
    assert similarity.matrix(["a", "b", "x"]).diagonal().tolist() == [1, 1, 1]


def test_nothing_to_embed():
    similarity = Counting()
    assert similarity.matrix([]).shape == (0, 0)
    assert similarity.matrix(["", " "]).tolist() == [[0, 0], [0, 0]]
    assert similarity.asked == []


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (torch.ones(1, 3), "2 texts gave embeddings of shape"),
        (torch.ones(2), "of shape"),
        (torch.full((2, 3), torch.nan), "not finite"),
    ],
)
def test_a_model_that_gives_something_else_is_an_error(monkeypatch, rows, says):
    similarity = Counting()
    monkeypatch.setattr(similarity, "embed", lambda texts: rows)
    with pytest.raises(SimilarityError, match=says):
        similarity.matrix(["a", "b"])


def test_a_real_model_loaded_from_a_folder(tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra: pip install 'gtpo[embeddings]'")
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"()=12x", "print", "import", "math"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(tmp_path)

    matrix = get_similarity(f"sentence-transformers:{tmp_path}").matrix(CODE)
    assert torch.equal(matrix, matrix.T)
    assert matrix.diagonal().tolist() == [1, 1, 1, 0, 1]
    assert matrix[0, 2] == 1 > matrix[0, 1]


def test_a_model_that_is_not_there_is_an_error(tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra: pip install 'gtpo[embeddings]'")
    with pytest.raises(SimilarityError, match="can't load the embedding model"):
        get_similarity(f"sentence-transformers:{tmp_path}/nothing").matrix(CODE)
