r"""Finds final answers in text (the last `\boxed{}`), and makes the comparisons that need no algebra.

These are equal without algebra:
- the same LaTeX up to spacing and spelling (`\dfrac` is `\frac`, `\left(` is `(`, a unit in `\text{}` is
  dropped);
- two plain numbers (integers, decimals, a fraction of integers; with thousands separators, currency, percent
  or a unit) of the same value. Integers and fractions are compared exactly. If either has a decimal point, they may
  differ by `ABSOLUTE` or by `RELATIVE` times the gold value, whichever is less, so 0.333333 is 1/3 and floating-point
  noise is tolerated. A percentage may be a factor or a unit: 50% is both 50 and 0.5. A number word is a factor:
  5 million is not 5. A line over the last decimals repeats them without end;
- two numerals with the same base as subscript: 101_2 is 101_{2}, but not 101_3, 5 or 5_{10}.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from gtpo.tasks.verifiers._math_units import is_unit, says_something
from gtpo.tasks.verifiers.reading import last_tag

ABSOLUTE, RELATIVE = Fraction(5, 10**7), Fraction(1, 10**4)

Spelling: TypeAlias = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_BOXED = re.compile(r"\\boxed\s*\{")
_NUMBER_WORDS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SYMBOLS: tuple[Spelling, ...] = (
    (re.compile(r"(?![0-9])\d"), lambda match: str(int(match[0]))),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"°|\\degree(?![a-zA-Z])"), r"^\\circ"),
    (re.compile(r"∞"), r"\\infty"),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r"\\[bB]igg?[lr]?(?![a-zA-Z])\s*"), ""),
)
_SPELLINGS: tuple[Spelling, ...] = (
    *_SYMBOLS,
    (re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])\s*|(?<!\\)\\[!,;:]|\\displaystyle(?![a-zA-Z])|(?<!\\)\$"), ""),
    (re.compile(r"\{([,:])\}(?=\d)"), r"\1"),
    (re.compile(r"\\(?:mbox|mathrm|textbf|textrm)(?=\s*\{)"), r"\\text"),
    (re.compile(r"~|(?<!\\)\\ |\s+"), " "),
    (re.compile(r"(?<![a-zA-Z\d]) | (?![a-zA-Z\d])"), ""),
)
_PERIOD = re.compile(r"(?<!\.)\.$")
_DROPPED = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\,)(?=\d{3}(?!\d))|[€£]")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar)\{(\d+)\}")
_SCIENTIFIC = re.compile(r"(-?\d+(?:\.\d*)?)[eE]([-+]?\d{1,2})")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_PLAIN = re.compile(
    rf"""(?P<sign>[-+]?)(?:\\\$|[$€£])?(?P<sign2>[-+]?)
    (?:\\frac\{{?(?P<over>(?<=\{{)\d+(?=\}})|\d)\}}?\{{?(?P<under>(?<=\{{)\d+(?=\}})|\d)\}}?
    |(?P<top>{_DIGITS})/(?P<bottom>{_DIGITS})
    |(?P<whole>{_DIGITS})?(?:(?P<part>\.\d*)(?:\\(?:overline|bar)\{{(?P<cycle>\d+)\}})?)?(?P<power>[eE][-+]?\d{{1,2}})?)
    (?:\ ?(?P<percent>\\?%)|\^(?:\\circ|\{{\\circ\}})
    |\ ?\\text\{{(?P<unit>[a-zA-Z .]*)\}}(?:\^\{{?(?P<cubed>[23])\}}?)?|\ (?P<word>[a-z]{{3,}}))?""",
    re.VERBOSE,
)
_UNIT = re.compile(r" ?\\text\{[a-zA-Z .]*\}(?:\^\{?[23]\}?)?$")
_BASED = re.compile(r"(-?\d[\dA-Z]*)_(?:(\d)|\{(\d\d?)\})")
_HALF_DAY = re.compile(r"(?<![a-zA-Z])([ap])\.? ?m\.?\}?$", re.IGNORECASE)
_TAG = re.compile(r"<answer>", re.IGNORECASE)
_PREFIX = re.compile(r"\**(?:the )?(?:final )?answer(?: is:?|:)\**\s*", re.IGNORECASE)
_WRAPS = ("**", "__", "*", "_", "`", '"', "'", "“”", "‘’", "«»")
_MATH_MODE = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_WORDING = (
    (re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt)|mbox|boldsymbol|emph)\s*(?=\{)"), ""),
    (re.compile(r"\\(?:bf|it|rm|left|right)(?![a-zA-Z])|\\!"), ""),
    (re.compile(r"(?<!\\)[{}]"), ""),
    (re.compile(r"(?<!\\)\\[ ,;:]|~|\s+"), " "),
    (re.compile(r"\\([$%&#_{}])"), r"\1"),
    (re.compile(r" {2,}"), " "),
)


def last_boxed(text: str) -> str | None:
    r"""Returns the content of the last `\boxed{}` of the text, without surrounding space.

    Returns:
        None if there is no `\boxed{`, or if the braces of the last one never close.
    """
    start = None
    for match in _BOXED.finditer(text):
        start = match.end()
    if start is None:
        return None
    depth, i = 1, start
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if not depth:
                return text[start:i].strip()
        i += 1
    return None


def boxed_or_tagged(text: str) -> str | None:
    r"""Returns the content of the last `\boxed{}` or `<answer>` block, whichever opens later, without outer space.

    For example, `<answer>\boxed{A}</answer>` gives A.

    Returns:
        None if there is neither, or if the one that opens last never closes.
    """
    tag, box = (max((match.start() for match in p.finditer(text)), default=-1) for p in (_TAG, _BOXED))
    if box >= tag:
        return last_boxed(text)
    block = last_tag(text[tag:])
    return block.content.strip() if block and block.closed else None


def judgeable(text: str | None) -> tuple[str | None, str]:
    r"""Returns a final turn's answer by `boxed_or_tagged`, and the reason why it can't be judged ("" if it can)."""
    if text is None:
        return None, "no final answer"
    answer = boxed_or_tagged(text)
    if answer is None:
        what = "unclosed \\boxed{ or <answer>" if _BOXED.search(text) or _TAG.search(text) else "no \\boxed{}"
        return None, f"{what} in the final turn"
    return answer, "" if answer else "empty \\boxed{} or <answer> in the final turn"


def plain_text(latex: str) -> str:
    r"""Returns the words of an answer without math mode, fonts such as `\text{}`, braces and extra space."""
    latex = latex.strip()
    for start, end in _MATH_MODE:
        if latex.startswith(start) and latex.endswith(end) and len(latex) >= len(start + end):
            latex = latex[len(start) : -len(end)]
            break
    for pattern, spelling in _WORDING:
        latex = pattern.sub(spelling, latex)
    return latex.strip()


def bare(text: str) -> str:
    """Strips what people and models put around an answer: emphasis, quotation marks, a final `.` or `!`,
    and `Answer:` before it.
    """
    before = None
    while text != before:
        before = text
        text = _PREFIX.sub("", text.strip().rstrip(".!").strip(), count=1) if len(text) < 2000 else text
        for wrap in _WRAPS:
            start, end = (wrap[0], wrap[1]) if wrap[0] != wrap[-1] else (wrap, wrap)
            inner = text[len(start) : -len(end)]
            if text.startswith(start) and text.endswith(end) and inner.strip() and start not in inner:
                text = inner.strip()
    return text


def readable(latex: str) -> str:
    """Prepares an answer for math-verify: removes math mode's dollar signs, a final period, thousands separators and
    currency, and rewrites spellings of numbers that it doesn't know.
    """
    for pattern, spelling in (*_SYMBOLS, (_DROPPED, "")):
        latex = pattern.sub(spelling, latex)
    latex = _PERIOD.sub("", latex.strip()).strip().strip("$").strip()
    if match := _SCIENTIFIC.fullmatch(latex):
        return rf"{match[1]} \times 10^{{{int(match[2])}}}"
    return _REPEATING.sub(lambda m: "\\frac{{{}}}{{{}}}".format(*_repeating(*m.groups()).as_integer_ratio()), latex)


def canonical(latex: str) -> str:
    """Normalises the spelling of an answer: removes math mode's dollar signs, spacing and a final period."""
    for pattern, spelling in _SPELLINGS:
        latex = pattern.sub(spelling, latex)
    return _PERIOD.sub("", latex.strip()).strip()


@dataclass(frozen=True)
class PlainNumber:
    """A number that needs no algebra.

    Attributes:
        value: the number without percent sign and unit, multiplied by a number word such as "million".
        factor: 1/100 for a percentage, else 1.
        inexact: whether it is written with a decimal point or an exponent.
        unit: the word after it, in lower case and the singular; "" if there is none.
    """

    value: Fraction
    factor: Fraction
    inexact: bool
    unit: str


def plain_number(latex: str) -> PlainNumber | None:
    """Parses an answer in the spelling of `canonical` as a plain number; None if it is anything else."""
    match = _PLAIN.fullmatch(latex) if len(latex) <= 200 else None
    if match is None or (match["sign"] and match["sign2"]) or (match["cycle"] and match["power"]):
        return None
    part = {name: text or "" for name, text in match.groupdict().items()}
    top, bottom = part["over"] or part["top"], part["under"] or part["bottom"]
    decimals, cycle = part["part"][1:], part["cycle"]
    inexact = bool(decimals or part["power"]) and not cycle
    if top:
        if int(bottom.replace(",", "")) == 0:
            return None
        value = Fraction(int(top.replace(",", "")), int(bottom.replace(",", "")))
    elif cycle:
        value = _repeating(part["whole"].replace(",", ""), decimals, cycle)
    elif part["whole"] or decimals:
        value = Fraction(f"{part['whole'].replace(',', '') or '0'}.{decimals or '0'}{part['power']}")
    else:
        return None
    if "-" in (part["sign"], part["sign2"]):
        value = -value
    if part["word"] and not is_unit(part["word"]) and part["word"] not in _NUMBER_WORDS:
        return None
    unit = (part["unit"] or part["word"]).replace(".", "").strip().lower().removesuffix("s")
    if unit in _NUMBER_WORDS:
        return PlainNumber(value * _NUMBER_WORDS[unit], Fraction(1), inexact, "")
    if unit != "percent" and says_something(unit):
        return None
    factor = Fraction(1, 100) if part["percent"] or unit == "percent" else Fraction(1)
    return PlainNumber(value, factor, inexact, "" if factor != 1 else unit + part["cubed"])


def quick_match(candidate: str, gold: str) -> bool | None:
    """Whether the answers are equal; None if algebra is needed to decide."""
    candidate, gold = canonical(candidate), canonical(gold)
    if candidate == gold != "":
        return True
    bases = _digits_and_base(candidate), _digits_and_base(gold)
    if None not in bases:
        return bases[0] == bases[1]
    halves = [match[1].lower() for match in map(_HALF_DAY.search, (candidate, gold)) if match]
    if len(set(halves)) == 2:
        return False
    left, right = plain_number(candidate), plain_number(gold)
    if left is None or right is None:
        units = [match[0] for match in map(_UNIT.search, (candidate, gold)) if match]
        bare = _UNIT.sub("", candidate)
        alike = len(set(units)) == 1 and not says_something(units[0])
        return True if alike and bare and bare == _UNIT.sub("", gold) else None
    if left.unit and right.unit and left.unit != right.unit:
        return None
    inexact = left.inexact or right.inexact
    if left.factor != 1 and right.factor != 1:
        return _close(left.value * left.factor, right.value * right.factor, inexact)
    return any(
        _close(a, b, inexact)
        for a in (left.value, left.value * left.factor)
        for b in (right.value, right.value * right.factor)
    )


def _repeating(whole: str, decimals: str, cycle: str) -> Fraction:
    """The number whole.decimals followed by the endlessly repeated cycle."""
    return (int(whole + decimals or "0") + Fraction(int(cycle), 10 ** len(cycle) - 1)) / 10 ** len(decimals)


def _digits_and_base(latex: str) -> tuple[int, int] | None:
    """A numeral with its base as a subscript, such as 101_2, as its value and base."""
    match = _BASED.fullmatch(latex)
    base = int(match[2] or match[3]) if match else 0
    try:
        return (int(match[1], base), base) if match and base else None
    except ValueError:
        return None


def _close(value: Fraction, gold: Fraction, inexact: bool) -> bool:
    return value == gold or (inexact and abs(value - gold) <= min(ABSOLUTE, RELATIVE * abs(gold)))
