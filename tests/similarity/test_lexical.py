import io
import math
import sys
import time
import tokenize

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo.errors import ConfigError
from gtpo.similarity import LexicalSimilarity, get_similarity
from gtpo.similarity.base import cosine_matrix
from gtpo.similarity.lexical import ngram_weights, tokens_of

LOOP = "total = 0\nfor i in range(10):\n    total += i\nprint(total)\n"


def sim(left: str, right: str) -> float:
    return LexicalSimilarity().matrix([left, right])[0, 1].item()


def test_hand_computed_pair():
    # a a a: grams a x3, aa x2.  a a b: a x2, b, aa, ab.
    left, right = 1 + math.log(3), 1 + math.log(2)
    cosine = (left * right + right * 1) / (math.hypot(left, right) * math.hypot(right, 1, 1, 1))
    assert sim("a a a", "a a b") == pytest.approx(cosine, abs=1e-6)


def test_equal_code_is_1_disjoint_code_0_and_related_code_between():
    assert sim(LOOP, LOOP) == 1
    assert sim("a + b", "x * y") == 0
    related, unrelated = LOOP.replace("10", "11"), "import sympy\nx = sympy.Symbol('x')\n"
    assert 1 > sim(LOOP, related) > 0.7 > 0.3 > sim(LOOP, unrelated)


def test_comments_and_layout_do_not_count_but_names_numbers_and_strings_do():
    assert sim(LOOP, "# adds up\n" + LOOP.replace("    ", "\t").replace(" = ", "=")) == 1
    for other in (LOOP.replace("total", "t"), LOOP.replace("10", "20"), LOOP.replace("print", "show")):
        assert sim(LOOP, other) < 1
    assert sim("f('a')", "f('b')") < 1


def test_order_counts():
    """Negative control: by unigrams alone these two would be the same program."""
    assert 0 < sim("a = b\nc = d", "c = b\na = d") < 1


@pytest.mark.parametrize("blank", ["", " \n\t", "# only a comment\n"])
def test_blank_code_is_like_nothing(blank):
    assert LexicalSimilarity().matrix([blank, LOOP, blank]).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert LexicalSimilarity().matrix([]).shape == (0, 0)
    assert LexicalSimilarity().matrix([blank]).tolist() == [[0]]


@pytest.mark.parametrize(
    "broken",
    [
        "print((1, 2)",
        "x = 'unclosed",
        '"""unclosed',
        "  a\n b\n  c",
        "if x:\n\ty\n        z",
        "1 +* $ ?",
        "\x00",
        "\ud83d",
    ],
)
def test_broken_code_is_compared_too(broken):
    matrix = LexicalSimilarity().matrix([broken, LOOP])
    assert matrix.diagonal().tolist() == [1, 1]
    assert tokens_of(broken)


def test_a_missing_bracket_changes_little():
    assert sim(LOOP, LOOP.rstrip().removesuffix(")")) > 0.9


@pytest.mark.parametrize(
    "code",
    [
        LOOP,
        "x = 1_000 + 0xFF - 1.5e-3 + 2j + .5 // 3 ** 2\nx //= 2; x **= 3; x >>= 1; y = x -> 2\n",
        "s = r'\\d' + b\"x\" + '''a\nb''' + \"it's\"  # comment\n",
        "def f(a: int = 1, *args, **kw) -> None:\n    return a != 2 and (b := 3) <= 4 or not ...\n",
        "x = [i for i in y if i] \\\n    + {1: 2, 'a': 'b'}['a'][1:2]\n@d\nclass A: pass\n",
    ],
)
def test_code_that_python_can_read_is_split_as_python_does(code):
    layout = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER"}
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    assert tokens_of(code) == [t.string for t in tokens if tokenize.tok_name[t.type] not in layout]


def test_f_strings_are_one_token_in_every_python():
    code = 'print(f\'{a:{w}} {b!r}\', f"""{c\n}""", rb\'x\')\n'
    assert tokens_of(code) == ["print", "(", "f'{a:{w}} {b!r}'", ",", 'f"""{c\n}"""', ",", "rb'x'", ")"]


@pytest.mark.parametrize("piece", ["'", "'''", "'\\", "'''\\", "f'{", "\\", "1_", "#", "(", "a" * 50])
def test_splitting_takes_time_in_proportion_to_the_code(piece):
    start = time.perf_counter()
    tokens_of(piece * 50_000 + "\\")
    assert time.perf_counter() - start < 2


def test_matrix_is_symmetric_float32_on_the_cpu_and_in_the_order_of_the_texts():
    texts = [LOOP, "a + b", LOOP.replace("10", "11"), "a + c", LOOP]
    matrix = LexicalSimilarity().matrix(texts)
    assert (matrix.dtype, matrix.device.type, matrix.shape) == (torch.float32, "cpu", (5, 5))
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix[0], matrix[4])
    for i, left in enumerate(texts):
        for j, right in enumerate(texts):
            assert matrix[i, j].item() == pytest.approx(sim(left, right), abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=40) | st.sampled_from([LOOP, "a+b", "'''", "f'{"]), max_size=5))
def test_any_texts_give_a_valid_matrix(texts):
    matrix = LexicalSimilarity().matrix(texts)
    assert matrix.shape == (len(texts), len(texts))
    assert torch.equal(matrix, matrix.T)
    assert bool(((matrix >= 0) & (matrix <= 1)).all())
    assert all(matrix[i, i].item() == float(bool(tokens_of(text))) for i, text in enumerate(texts))


def test_each_text_is_taken_apart_once():
    ngram_weights.cache_clear()
    prefix = "x = 1\n" * 100
    for _ in range(3):
        matrix = LexicalSimilarity().matrix([prefix + "a", prefix + "b", prefix + "a"])
    assert ngram_weights.cache_info().misses == 2
    assert matrix[0, 2] == 1 > matrix[0, 1]


def test_cosines_are_clipped_at_0():
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[1, 0, half, 0], [0, 1, 0, 0], [half, 0, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(cosine_matrix(vectors), expected)
    with pytest.raises(ValueError, match="give a matrix"):
        cosine_matrix(torch.ones(3))


def test_similarities_are_found_by_specification():
    assert isinstance(get_similarity("lexical"), LexicalSimilarity)
    for spec in ("titan", "", "lexical:x", "endpoint:http://x/v1", "endpoint:#m", "sentence-transformers:"):
        with pytest.raises(ConfigError, match="there are: lexical, sentence-transformers:NAME, endpoint:URL#MODEL"):
            get_similarity(spec)


def test_sentence_transformers_missing_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'gtpo\[embeddings\]'"):
        get_similarity("sentence-transformers:some/model")
