"""Similarity of Python programs by their tokens: no model, no network. The default; ours, not the paper's.

A program is represented by its token unigrams and bigrams, each with weight 1 + log(count); the similarity of two
programs is the cosine between them. Comments and layout don't count; names, numbers and strings do, verbatim. Code
that does not parse is compared all the same. Meaning is not considered: a renamed variable counts as a difference.

Code is split by our own pattern and not by the `tokenize` module, which refuses much broken code and splits
f-strings differently in different Python versions: a bracket missing in one turn must not change how the others are
split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from gtpo.similarity.base import cosine_matrix, distinct

# A string that is not closed reaches to the end of its line, or of the code: that keeps the time linear.
_TOKEN = re.compile(
    r"""(?P<skip>\#[^\n]*|\\?\s+)
    |(?i:[rbuft]{0,2})(?:
        '''(?:\\.|[^\\])*?(?:'''|\\?\Z)|\"\"\"(?:\\.|[^\\])*?(?:\"\"\"|\\?\Z)
        |'(?:\\.|[^\\'\n])*'?|"(?:\\.|[^\\"\n])*"?)
    |0[xXoObB][\da-fA-F_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?[jJ]?
    |\w+|\*\*=?|//=?|>>=?|<<=?|->|:=|\.\.\.|[-+*/%&|^@=!<>]=|.""",
    re.VERBOSE | re.DOTALL,
)


class LexicalSimilarity:
    """Cosine similarity of token unigrams and bigrams. See `gtpo.similarity.base.CodeSimilarity`."""

    def matrix(self, texts: Sequence[str]) -> Tensor:
        """See `CodeSimilarity.matrix`. A text with nothing but comments counts as blank."""
        unique, places = distinct(texts)
        if not unique:
            return torch.zeros(0, 0)
        weights = [ngram_weights(text) for text in unique]
        columns: dict[tuple[str, ...], int] = {}
        for grams in weights:
            for gram in grams:
                columns.setdefault(gram, len(columns))
        vectors = torch.zeros(len(unique), max(len(columns), 1), dtype=torch.float64)
        for row, grams in zip(vectors, weights, strict=True):
            if grams:
                at = torch.tensor([columns[gram] for gram in grams])
                counts = torch.tensor(list(grams.values()), dtype=torch.float64)
                row[at] = 1 + counts.log()
        return cosine_matrix(vectors)[places][:, places]


@lru_cache(maxsize=4096)
def ngram_weights(code: str) -> Counter[tuple[str, ...]]:
    """How often each token, and each pair of neighbours, occurs in the code. Cached: don't change it."""
    tokens = tokens_of(code)
    return Counter([*((token,) for token in tokens), *pairwise(tokens)])


def tokens_of(code: str) -> list[str]:
    """The tokens of Python code without comments and layout. Broken code is split too."""
    return [match[0] for match in _TOKEN.finditer(code) if match["skip"] is None]
