"""The forms of mathematical answers that `_math_reading` parses and `_math_equal` compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from gtpo.tasks.verifiers._math_units import Unit


@dataclass(frozen=True)
class Value:
    """A number or an expression.

    Attributes:
        expr: exact; decimals are fractions.
        decimal: whether it was written with a decimal point.
        others: further possible meanings: 50% is 50 and 1/2, 60 degrees are 60 and pi/3.
    """

    expr: Any
    decimal: bool = False
    others: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Words:
    """Words in lower case.

    Attributes:
        text: the words.
        product: for two or three letters without a font, their product, which `ma` may mean.
    """

    text: str
    product: Value | None = None


@dataclass(frozen=True)
class Grid:
    """A matrix, by rows."""

    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True)
class Ratio:
    """a : b, or a time of day."""

    parts: tuple[Form, ...]
    time: bool


@dataclass(frozen=True)
class Many:
    """Several members.

    Attributes:
        brackets: "" for a list without brackets, "{}" for a set, or the two brackets.
        members: the members in order.
        union: whether it is a list of conditions of which any may hold.
        signs: whether it was one member with a plus-minus sign.
    """

    brackets: str
    members: tuple[Form, ...]
    union: bool = False
    signs: bool = False


@dataclass(frozen=True)
class Combined:
    """Sets joined by `union`, `intersection` or `difference`."""

    how: str
    parts: tuple[Form, ...]


@dataclass(frozen=True)
class Named:
    """A set with a name of its own: reals, integers, naturals, rationals, complexes, empty."""

    name: str


@dataclass(frozen=True)
class Builder:
    """The set of a variable that meets a condition."""

    variable: str
    condition: Form


@dataclass(frozen=True)
class Chain:
    """Sides with relations between them.

    Attributes:
        sides: the sides, one more than relations.
        relations: each is one of `= < > <= >= != in`.
        name: the first side as text, if it is a name, such as x or f(x).
    """

    sides: tuple[Form, ...]
    relations: tuple[str, ...]
    name: str


Form: TypeAlias = Value | Words | Grid | Ratio | Many | Combined | Named | Builder | Chain


@dataclass(frozen=True)
class Answer:
    """An answer as it was read.

    Attributes:
        form: what it is.
        unit: the unit behind it.
        qualifier: a condition on its letters that follows it, as text.
    """

    form: Form
    unit: Unit | None
    qualifier: str
