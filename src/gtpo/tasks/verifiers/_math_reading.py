r"""Parses an answer into a form: first brackets, separators and relations, then the expressions between them.

A form is a value (a number or an expression), words, a matrix, a ratio, several members with or without brackets, a
set, or a chain of relations. The expressions are parsed by math-verify's LaTeX parser, which keeps the case of letters.
An answer that contains anything else has no form, and is equal only to the same spelling.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import Any

from gtpo.tasks.verifiers._math_forms import (
    Answer,
    Builder,
    Chain,
    Combined,
    Form,
    Grid,
    Many,
    Named,
    Ratio,
    Value,
    Words,
)
from gtpo.tasks.verifiers._math_spelling import spelled
from gtpo.tasks.verifiers._math_units import without_unit


class Unreadable(Exception):
    """The answer has no form.

    Attributes:
        broken: whether it is not even well-formed mathematics.
    """

    def __init__(self, why: str, broken: bool = False) -> None:
        super().__init__(why)
        self.broken = broken


_SETS = {
    r"\mathbb{R}": "reals",
    r"\mathbb{Z}": "integers",
    r"\mathbb{N}": "naturals",
    r"\mathbb{Q}": "rationals",
    r"\mathbb{C}": "complexes",
    r"\emptyset": "empty",
    r"\varnothing": "empty",
}
_RELATION = re.compile(r"\\leq\b|\\geq\b|\\neq\b|\\equiv\b|\\approx\b|\\in\b(?!fty)|:=|<=|>=|=|<|>")
_CANONICAL = {r"\leq": "<=", r"\geq": ">=", r"\neq": "!=", r"\equiv": "=", r"\approx": "=", r"\in": "in", ":=": "="}
_SEPARATOR = re.compile(
    r",\s*\\(?:text|mbox|mathrm)\{\s*(?:and|or)\s*\}|\\(?:text|mbox|mathrm)\{\s*,?\s*(?P<word>and|or)\s*\}|"
    r"(?<![a-zA-Z\\])(?P<bare>and|or)(?![a-zA-Z])|\\text\{\s*,\s*\}|[,;]"
)
_OF_A_SET = re.compile(r"[a-zA-Z](?:_\{?\w+\}?)?\s*(?:\\in(?!fty)|=)")
_REALS = {"all real numbers", "all reals", "the real numbers", "real numbers", "the reals"}
_MORE_THAN_A_VALUE = re.compile(rf"{_RELATION.pattern}|\\(?:pm|cup|cap|setminus)(?![a-zA-Z])")
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:bf|it|rm|sf)|mbox|boldsymbol|operatorname)\s*\{")
_LETTERS = re.compile(r"[A-Za-z](?:[A-Za-z -]*[A-Za-z])?[.!]?")
_NAME = re.compile(
    r"(?:\\(?:angle|triangle|overline|vec|widehat)\s*\{?)?[a-zA-Z\\]+(?:_\{?\w+\}?)?\}?(?:\([a-zA-Z0-9, ]*\))?"
    r"|\|[A-Z]+\|"
)
_DOTS = re.compile(r"\\[lcdv]?dots(?![a-zA-Z])|\.\.\.|…")
_SIDE_BY_SIDE = re.compile(r"\d\s+\.?\d|[=<>]\s*$|^\s*[=]|\d\s+\\frac\{\d+\}\{\d+\}\s*\d")
_QUALIFIER = re.compile(
    r"[,;]?\s*\\(?:text|mbox)\{\s*,?\s*(?:for|where|when|if|with)\b.*$|[,;]\s*[a-z]\s*\\in\s*\\mathbb\{[ZN]\}.*$"
)
_MOD = re.compile(r"\s*\\pmod\s*\{?[^{}]*\}?$|\s*\(\\bmod\s+[^()]*\)$|\s*\\bmod\s.*$")
_PERCENT = re.compile(r"\s*\\?%$|\s*\\text\{\s*(?:percent|%)\s*\}$")
_DEGREES = re.compile(r"\s*\^\s*\{?\\circ\}?$")
_DROPPED = re.compile(r"\\circ|\d\s*_|%")
_NUMERAL = re.compile(r"-?(\d+)_(?:(\d)|\{(\d+)\})")


@lru_cache(maxsize=2048)
def read(latex: str) -> Answer:
    """Parses an answer; raises Unreadable if it has no form."""
    text = spelled(_outside(latex))
    qualifier = _QUALIFIER.search(text)
    if qualifier and qualifier.start() > 0:
        text = text[: qualifier.start()].strip()
    text = re.sub(r"^\\approx\s*", "", _MOD.sub("", text)) if text.startswith(r"\approx") or "mod" in text else text
    text, unit = without_unit(text)
    return Answer(_form(text), unit, qualifier[0] if qualifier else "")


def _outside(latex: str) -> str:
    """Removes emphasis, math mode and braces around an answer."""
    latex = latex.strip()
    for start, end in (("**", "**"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("`", "`")):
        inner = latex[len(start) : -len(end)]
        if latex.startswith(start) and latex.endswith(end) and len(latex) > len(start + end) and start not in inner:
            return _outside(inner)
    grouped = re.search(r"\\(?:choose|over|atop)(?![a-zA-Z])", latex)  # their braces mean something
    if latex.startswith("{") and _closing(latex, 0) == len(latex) - 1 and not grouped:
        return _outside(latex[1:-1])
    return re.sub(r"(?<!\\)\$", " ", latex).strip()


def _form(text: str) -> Form:
    text = re.sub(r"(?<!\.)\.$", "", text.strip()).strip()
    if not text:
        raise Unreadable("nothing stands there", broken=True)
    if text in _SETS:
        return Named(_SETS[text])
    if words := _words(text):
        return words
    if _DOTS.search(text):
        raise Unreadable("dots leave something out")
    if re.search(r"['\"’”]", text):
        raise Unreadable("marks that have no meaning there")
    if _SIDE_BY_SIDE.search(text):
        raise Unreadable("numbers side by side")
    for split in (_members, _joined_sets, _related, _bracketed, _ratio, _with_signs):
        if (form := split(text)) is not None:
            return form
    return _value(text)


def _words(text: str) -> Words | Form | None:
    """Words alone, with or without a font; a font around mathematics is dropped."""
    font = _WRAPPED.match(text)
    if font and _closing(text, font.end() - 1) == len(text) - 1:
        inner = text[font.end() : -1].strip()
        if not inner:
            raise Unreadable("nothing stands there", broken=True)
        number, _ = without_unit(inner)
        if re.search(r"\d", number) and not re.search(r"[a-zA-Z]{2}", re.sub(r"\b(?:and|or)\b", "", number)):
            with suppress(Unreadable):
                return _form(number)
        return _named_or_words(inner.removeprefix("(").removesuffix(")"))
    letters = re.sub(r"[^a-zA-Z]", "", text)
    if not _LETTERS.fullmatch(text) or len(letters) < 2:
        return None
    words = _named_or_words(text)
    if isinstance(words, Words) and len(letters) < 4:
        with suppress(Unreadable):
            return Words(words.text, Value(*_parsed(" ".join(letters))))
    return words


def _named_or_words(text: str) -> Named | Words:
    words = re.sub(r"\s+", " ", text).casefold().strip(" .!")
    return Named("reals") if words in _REALS else Words(words)


def _closing(text: str, opening: int) -> int:
    """Index where the bracket at `opening` closes; -1 if it does not."""
    depth, place = 0, opening
    while place < len(text):
        if text[place] == "\\":
            place += 1
            if text[place : place + 1] in "{}" and text[opening - 1 : opening] == "\\":
                depth += 1 if text[place] == "{" else -1
                if not depth:
                    return place
        elif text[place] in "{(" and text[opening - 1 : opening] != "\\":
            depth += 1
        elif text[place] in "})" and text[opening - 1 : opening] != "\\":
            depth -= 1
            if not depth:
                return place
        place += 1
    return -1


def _depths(text: str) -> list[int]:
    """Bracket depth of each character, brackets included; raises Unreadable if they don't match. `(0,1]` matches."""
    return _inside(text)[0]


def _inside(text: str) -> tuple[list[int], list[int]]:
    """Bracket depth of each character, and the depth after it."""
    depth, depths, place, env = 0, [0] * len(text), 0, 0
    behind = [0] * len(text)
    while place < len(text):
        step = 1
        if text.startswith(r"\begin", place):
            env += 1
        elif text.startswith(r"\end", place):
            env -= 1
        escaped = text[place] == "\\"
        mark = text[place + 1 : place + 2] if escaped else text[place]
        if escaped:
            step = 2 if mark in "{}" else max(1, len(re.match(r"\\[a-zA-Z]*", text[place:])[0]))  # type: ignore[index]
        opens = (
            mark in "{([" if not escaped else mark == "{" or text.startswith((r"\langle", r"\lfloor", r"\lceil"), place)
        )
        closes = (
            mark in "})]" if not escaped else mark == "}" or text.startswith((r"\rangle", r"\rfloor", r"\rceil"), place)
        )
        if closes:
            depth -= 1
        for i in range(place, min(place + step, len(text))):
            depths[i] = depth + (1 if opens or closes or env else 0)
        if opens:
            depth += 1
        behind[place : place + step] = [depth] * min(step, len(text) - place)
        if depth < 0:
            raise Unreadable("brackets don't match", broken=True)
        place += step
    if depth:
        raise Unreadable("brackets don't match", broken=True)
    return depths, behind


def _split(text: str, pattern: re.Pattern[str]) -> tuple[list[str], list[re.Match[str]]]:
    """The parts between the matches outside all brackets, and the matches."""
    depths = _depths(text)
    parts, matches, start = [], [], 0
    for match in pattern.finditer(text):
        if depths[match.start()] == 0:
            parts.append(text[start : match.start()])
            matches.append(match)
            start = match.end()
    return [*parts, text[start:]], matches


def _members(text: str) -> Form | None:
    parts, matches = _split(text, _SEPARATOR)
    if not matches:
        return None
    if any(not part.strip() for part in parts):
        raise Unreadable("a member is missing")
    number = re.fullmatch(r"(?P<name>[^,]*=\s*)?(?P<number>-?\d{1,3}(?:,\d{3})+(?:\.\d+)?)", text)
    if number and number["name"]:
        return _form(number["name"] + number["number"].replace(",", ""))
    if number:
        return _value(text.replace(",", ""))
    union = any("or" in (match["word"], match["bare"]) for match in matches)
    members: list[Form] = []
    for part in parts:
        form = _form(part)
        members += form.members if isinstance(form, Many) and form.signs else [form]
    return Many("", tuple(members), union)


def _joined_sets(text: str) -> Form | None:
    if _OF_A_SET.match(text):
        return None
    for operator in ("cup", "cap", "setminus"):
        parts, matches = _split(text, re.compile(rf"\\{operator}(?![a-zA-Z])"))
        if matches:
            how = {"cup": "union", "cap": "intersection", "setminus": "difference"}[operator]
            return Combined(how, tuple(_form(part) for part in parts))
    return None


def _related(text: str) -> Form | None:
    parts, matches = _split(text, _RELATION)
    if not matches:
        return None
    if any(not part.strip() for part in parts):
        raise Unreadable("a side is missing")
    relations = tuple(_CANONICAL.get(match[0], match[0]) for match in matches)
    name = parts[0].strip()
    forms = [_form(part) if i else _side(part) for i, part in enumerate(parts)]
    signed = [i for i, form in enumerate(forms) if isinstance(form, Many) and form.signs]
    named = re.sub(r"\s", "", name) if _NAME.fullmatch(name) else ""
    if signed and len(forms) == 2:
        members = forms[1].members if isinstance(forms[1], Many) else ()
        return Many("", tuple(Chain((forms[0], member), relations, named) for member in members), signs=True)
    return Chain(tuple(forms), relations, named)


def _side(text: str) -> Form:
    """Parses the first side of a relation; a name without a value, such as an angle, is read as words."""
    try:
        return _form(text)
    except Unreadable:
        if _NAME.fullmatch(text.strip()):
            return Words(text.strip())
        raise


def _bracketed(text: str) -> Form | None:
    opening = next((b for b in ("\\{", "\\langle", "(", "[", "{") if text.startswith(b)), None)
    closing = next((b for b in ("\\}", "\\rangle", ")", "]", "}") if text.endswith(b)), "")
    if opening is None or 0 in _inside(text)[1][: len(text) - len(closing)]:
        return None
    inner = text[len(opening) : len(text) - len(closing)].strip()
    if opening == "{":
        return _form(inner) if closing == "}" else None
    if opening == "\\{":
        return _set(inner) if closing == "\\}" else None
    parts, matches = _split(inner, re.compile("[,;]"))
    if opening == "\\langle":
        opening, closing = "(", ")"
    if not matches:
        return _form(inner) if opening == "(" and closing == ")" and _MORE_THAN_A_VALUE.search(inner) else None
    if any(not part.strip() for part in parts):
        raise Unreadable("a member is missing")
    members = tuple(_form(part) for part in parts)
    if opening == "[" and all(isinstance(m, Many) and m.brackets == "[]" for m in members):
        return Grid(tuple(m.members for m in members if isinstance(m, Many)))
    return Many(opening + closing, members)


def _set(inner: str) -> Form:
    if not inner:
        return Named("empty")
    parts, matches = _split(inner, re.compile(r"\\mid(?![a-zA-Z])|:(?!=)|\|"))
    if len(matches) == 1:
        variable = re.match(r"\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\{R\})?\s*$", parts[0])
        if not variable:
            raise Unreadable("a set of something else than a letter")
        return Builder(variable[1], _form(parts[1]))
    form = _members(inner) or _form(inner)
    return Many("{}", form.members if isinstance(form, Many) and not form.brackets else (form,))


def _ratio(text: str) -> Form | None:
    parts, matches = _split(text.replace("{:}", ":"), re.compile(":"))
    if not matches:
        return None
    if any(not part.strip() for part in parts):
        raise Unreadable("a part is missing")
    time = bool(re.fullmatch(r"\d{1,2}:\d\d(?::\d\d)?", text.replace("{:}", ":").replace(" ", "")))
    return Ratio(tuple(_form(part) for part in parts), time)


def _with_signs(text: str) -> Form | None:
    if r"\pm" not in text and r"\mp" not in text:
        return None
    upper = re.sub(r"\\mp(?![a-zA-Z])", "-", re.sub(r"\\pm(?![a-zA-Z])", "+", text))
    lower = re.sub(r"\\mp(?![a-zA-Z])", "+", re.sub(r"\\pm(?![a-zA-Z])", "-", text))
    return Many("", (_form(upper.removeprefix("+")), _form(lower.removeprefix("+"))), signs=True)


def _value(text: str) -> Form:
    hundredth, degrees = _PERCENT.search(text), _DEGREES.search(text)
    text = _DEGREES.sub("", _PERCENT.sub("", text)).strip()
    if _DROPPED.search(text) and not _is_numeral(text):
        raise Unreadable("a mark within it has no meaning")  # the parser would drop it
    from sympy import MatrixBase, Rational, pi

    parsed, decimal = _parsed(text)
    if isinstance(parsed, MatrixBase):
        rows = tuple(tuple(Value(*_exact(cell)) for cell in parsed.row(i)) for i in range(parsed.rows))
        return Grid(rows)
    others: tuple[Any, ...] = ()
    if hundredth and not parsed.is_number:
        parsed = parsed * Rational(1, 100)
    elif hundredth:
        others = (parsed * Rational(1, 100),)
    elif degrees and parsed.is_number:
        others = (parsed * pi / 180,)
    return Value(parsed, decimal, others)


def _is_numeral(text: str) -> bool:
    """Whether it is a whole number with its base as a subscript."""
    match = _NUMERAL.fullmatch(text)
    return bool(match) and all(int(digit) < int(match[2] or match[3]) for digit in match[1])  # type: ignore[index]


def _parsed(text: str) -> tuple[Any, bool]:
    """Parses an expression exactly; also returns whether it had a decimal point."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
    from sympy import Expr, MatrixBase

    config = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    try:
        found = latex2sympy(
            normalize_latex(text, config),
            is_real=True,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False, interpret_contains_as_eq=False),
        )
    except (RecursionError, MemoryError):
        raise
    except Exception as error:
        raise Unreadable("math-verify can't read it", broken=True) from error
    if isinstance(found, MatrixBase):
        return found, False
    if not isinstance(found, Expr):
        raise Unreadable("math-verify can't read it as an expression", broken=True)
    return _exact(found)


def _exact(expr: Any) -> tuple[Any, bool]:
    """Replaces decimals by fractions; raises Unreadable if a value in the expression is undefined or infinite."""
    from sympy import Float, Rational, nan, oo, zoo

    floats = expr.atoms(Float)
    if floats:
        expr = expr.xreplace({number: Rational(str(number)) for number in floats})
    if expr.has(oo, -oo) and expr not in (oo, -oo) and expr.doit() not in (oo, -oo):
        raise Unreadable("infinity in an expression")
    expr = expr.doit()
    if expr.has(nan, zoo):
        raise Unreadable("undefined")
    return expr, bool(floats)
