r"""The unit after an answer is dropped; answers with two different known units are different.

In `\text{}` any words are a unit, unless they say something about the number ("or", "not"). Without `\text{}` a unit
follows a number and a space, and is a known unit or a word of three letters or more; a single letter, or consecutive
letters as in `abc`, may be variables and are kept.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Unit(NamedTuple):
    """A known unit, such as cm and 2 for square centimetres."""

    name: str
    power: int


_SPELLINGS = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inche",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram",
    "kg": "kilogram",
    "lb": "pound",
    "oz": "ounce",
    "ml": "milliliter millilitre mL",
    "l": "liter litre L",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "year yr",
    "dollar": "dollar",
    "cent": "cent",
    "degree": "degree",
    "hundred": "hundred",
    "thousand": "thousand",
    "million": "million",
    "billion": "billion",
    "trillion": "trillion",
}
_KNOWN = {spelling: name for name, all_of in _SPELLINGS.items() for spelling in (name, *all_of.split())}
_MEANINGFUL = re.compile(
    r"\b(?:and|or|not|no|none|maybe|perhaps|either|neither|nor|to|if|is|are|plus|minus|times|but|except|than|about|"
    r"over|real|imaginary|mod|base|half|halves|third|quarter|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|"
    r"twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|dozen|hundred|thousand|million|billion|"
    r"trillion|percent|pi|actually|really|answer)\b",
    re.IGNORECASE,
)
_IN_TEXT = re.compile(
    r"((?:(?:\s|/|\\cdot)*\\(?:text(?:rm|bf|it)?|mbox|mathrm)\s*\{[^{}\d]*[23]?\}(?:\s*\^\s*(?:-?\d|\{-?\d\}))?)+)$"
)
_BARE = re.compile(r"(?<=[\d})\]])\s+([a-zA-Z]{2,}(?:\s+[a-zA-Z]{2,})*)\.?$")
_POWER = re.compile(r"\^\s*\{?(-?\d)\}?$|([23])\}$")
_WORDS = re.compile(r"[A-Za-z]+")
_LETTERS_OF_VARIABLES = re.compile(r"(?:a?b?c?d?|p?q?r?s?t?|u?v?w?x?y?z?|k?l?m?n?)")


def without_unit(text: str) -> tuple[str, Unit | None]:
    """Returns the answer without the unit after it, and the unit if it is known."""
    match = _IN_TEXT.search(text)
    if match and match.start() > 0 and re.search(r"[\w)}\]]$", text[: match.start()].rstrip()):
        rest = text[: match.start()].rstrip()
        words = re.sub(r"\\(?:text\w*|mbox|mathrm)", "", match[1])
        if says_something(words) or not _balanced(rest):
            return text, None
        power = _POWER.search(match[1])
        return rest, _unit(words, int(power[1] or power[2]) if power else 1)
    if re.fullmatch(r"\d{1,2}:\d\d\s*[AaPp]\.?[Mm]\.?", text):
        return text.rstrip("AaPpMm. "), None
    bare = _BARE.search(text)
    if bare is None or says_something(bare[1]) or re.search(r"(?<![\\a-zA-Z])[a-zA-Z]", text[: bare.start()]):
        return text, None
    if all(is_unit(word) for word in bare[1].split()):
        return text[: bare.start()].rstrip(), _unit(bare[1], 1)
    return text, None


def says_something(words: str) -> bool:
    """Whether words after a number are more than a unit."""
    return bool(_MEANINGFUL.search(words))


def is_unit(word: str) -> bool:
    """Whether `word` is a known unit, or a word rather than a product of letters."""
    if word in _KNOWN or word.removesuffix("s") in _KNOWN:
        return True
    return (
        len(word) > 2 and bool(re.search("[aeiouyAEIOUY]", word)) and not _LETTERS_OF_VARIABLES.fullmatch(word.lower())
    )


def _balanced(text: str) -> bool:
    return text.count("{") == text.count("}")


def _unit(text: str, power: int) -> Unit | None:
    words = _WORDS.findall(text)
    if len(words) == 2 and words[0].lower() in ("square", "sq", "cubic", "cu"):
        power, words = 2 if words[0].lower() in ("square", "sq") else 3, words[1:]
    if len(words) != 1:
        return None
    word = words[0] if words[0] in _KNOWN else words[0].lower()
    name = _KNOWN.get(word) or _KNOWN.get(word.removesuffix("s"))
    return Unit(name, power) if name else None
