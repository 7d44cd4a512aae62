"""Similarities of two programs, in [0, 1], behind one protocol: `CodeSimilarity`.

Lexical similarity is the default and needs no model; the paper's authors use an embedding model.
"""

from __future__ import annotations

from gtpo.errors import ConfigError
from gtpo.similarity.base import CodeSimilarity, SimilarityError
from gtpo.similarity.lexical import LexicalSimilarity
from gtpo.similarity.random import RandomSimilarity

__all__ = ["CodeSimilarity", "LexicalSimilarity", "RandomSimilarity", "SimilarityError", "get_similarity"]


def get_similarity(spec: str) -> CodeSimilarity:
    """A similarity by its specification.

    Args:
        spec: one of
            - `lexical`;
            - `sentence-transformers:NAME`, NAME the name or folder of an embedding model;
            - `random`, the negative control of studies: independent of the code;
            - `endpoint:URL#MODEL`, URL the base of an OpenAI-compatible API, such as `http://localhost:8000/v1`;
              `endpoint:URL#MODEL?key=VARIABLE` with the environment variable that holds the key for this URL (without
              it, `OPENAI_API_KEY` at api.openai.com and no key elsewhere).

    Raises:
        ConfigError: the specification is none of these, or what it needs is not installed.
    """
    kind, _, rest = spec.partition(":")
    if spec == "lexical":
        return LexicalSimilarity()
    if spec == "random":
        return RandomSimilarity()
    if kind == "sentence-transformers" and rest:
        from gtpo.similarity.embeddings import SentenceTransformerSimilarity

        return SentenceTransformerSimilarity(rest)
    if kind == "endpoint":
        from gtpo.similarity.endpoint import EndpointSimilarity

        url, _, named = rest.rpartition("#")
        model, _, setting = named.partition("?")
        name, _, variable = setting.partition("=")
        if url and model and (not setting or (name == "key" and variable)):
            return EndpointSimilarity(url, model, api_key_env=variable or None)
    raise ConfigError(
        f"no code similarity {spec!r}; there are: lexical, sentence-transformers:NAME, endpoint:URL#MODEL, "
        "endpoint:URL#MODEL?key=VARIABLE, random"
    )
