"""Converts plain data to JSON and back; nothing else is exchanged between the candidate's process and the tests'.

Plain data is numbers, text, bytes, containers of them, fractions, decimals, dates, built-in classes and functions, and
numpy's scalars and arrays, which become Python's. Anything else is sent as the name of its class, and equals nothing on
the other side. An object of a subclass is sent as its base class, without the candidate's methods, such as an `__eq__`
that is always true.

This text is sent into the sandbox: it imports only the standard library.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import types
from typing import Any

MOST_DEPTH, MOST_NODES = 500, 2_000_000
_DATES: dict[str, Any] = {"date": datetime.date, "datetime": datetime.datetime, "time": datetime.time}
_EMPTY: tuple[Any, ...] = ([], (), {}, set(), "", range(0))
_LAZY = (map, filter, zip, enumerate, reversed, types.GeneratorType, *(type(iter(empty)) for empty in _EMPTY))
_VIEWS: dict[Any, str] = {type({}.keys()): "K", type({}.values()): "V", type({}.items()): "E"}


class Reference:
    """Represents the result of an operation that is not plain data or is not known yet.

    Attributes:
        operation: index of the operation.
    """

    operation: int


class TooMuch(ValueError):
    """The value is nested too deeply or too large to be sent."""


def encode(value: Any) -> Any:
    """Converts a value to JSON data; raises TooMuch."""
    left = [MOST_NODES]
    return _encode(value, 0, left)


def _encode(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if depth > MOST_DEPTH or left[0] < 0:
        raise TooMuch("nested too deeply" if left[0] >= 0 else "too large")

    def each(items: Any) -> list[Any]:
        return [_encode(item, depth + 1, left) for item in items]

    if value is None or value is True or value is False:
        return value
    if isinstance(value, Reference):
        return {"r": object.__getattribute__(value, "operation")}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__add__(value, 0)
        return number if abs(number) < 2**53 else {"i": hex(number)}
    if isinstance(value, float):
        real = float.__add__(value, 0.0)
        return real if real - real == 0 else {"f": repr(real)}
    if isinstance(value, list):
        return {"l": each(list.__iter__(value))}
    if isinstance(value, tuple):
        return {"t": each(tuple.__iter__(value))}
    if isinstance(value, dict):
        return {"d": [each(pair) for pair in dict.items(value)]}
    if isinstance(value, (set, frozenset)):
        return {"s" if isinstance(value, set) else "z": sorted(each(list(value)), key=repr)}
    return _encode_rare(value, each)


def _encode_rare(value: Any, each: Any) -> Any:
    kind: Any = type(value)
    if isinstance(value, (bytes, bytearray)):
        return {"b": bytes(value).hex()}
    if isinstance(value, complex):
        return {"c": each([value.real, value.imag])}
    if isinstance(value, fractions.Fraction):
        return {"F": [hex(value.numerator), hex(value.denominator)]}
    if isinstance(value, decimal.Decimal):
        return {"D": str(value)}
    if isinstance(value, collections.deque):
        return {"q": each(value)}
    if kind is range:
        return {"R": [value.start, value.stop, value.step]}
    if kind is datetime.timedelta:
        return {"T": [value.days, value.seconds, value.microseconds]}
    for name, date in _DATES.items():
        if kind is date:
            return {"W": [name, value.isoformat()]}
    if kind in _VIEWS:
        return {_VIEWS[kind]: each(list(value))}
    if kind in _LAZY:
        return {"I": each(list(value))}
    name = getattr(value, "__name__", "")
    if kind in (type, type(len)) and getattr(builtins, name, None) is value:
        return {"B": name}
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return {"N": each([value.tolist()])[0]} if getattr(value, "shape", ()) else each([value.tolist()])[0]
    return {"o": str(kind.__name__)[:80]}


class Opaque:
    """Represents a value that could not be sent; it equals only itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def decode(data: Any, reference: Any = None) -> Any:
    """Converts JSON data back to a value.

    Args:
        data: JSON data made by `encode`.
        reference: creates the object for a reference.

    Raises:
        ValueError: the data was not made by `encode`.
    """
    if not isinstance(data, dict):
        if isinstance(data, list):
            raise ValueError("a bare list")
        return data
    if len(data) != 1:
        raise ValueError("not one mark")
    ((mark, inner),) = data.items()
    if mark not in _DECODERS:
        raise ValueError(f"unknown mark {mark!r}")
    try:
        if mark == "r":
            return reference(inner)
        if mark in "ltszqIKVEN":
            return _DECODERS[mark](
                [decode(item, reference) for item in inner["l"]]
                if mark == "N"
                else [decode(item, reference) for item in inner]
            )
        if mark == "d":
            return {decode(key, reference): decode(item, reference) for key, item in inner}
        if mark == "c":
            return complex(*[decode(part) for part in inner])
        return _DECODERS[mark](inner)
    except (TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _array(items: list[Any]) -> Any:
    import numpy

    return numpy.array(items)


_DECODERS: dict[str, Any] = {
    "r": None,
    "d": dict,
    "c": complex,
    "l": list,
    "t": tuple,
    "s": set,
    "z": frozenset,
    "q": collections.deque,
    "I": iter,
    "K": lambda items: dict.fromkeys(items).keys(),
    "V": lambda items: dict(enumerate(items)).values(),
    "E": lambda items: dict(items).items(),
    "N": _array,
    "i": lambda text: int(text, 16),
    "f": float,
    "b": bytes.fromhex,
    "F": lambda pair: fractions.Fraction(int(pair[0], 16), int(pair[1], 16)),
    "D": decimal.Decimal,
    "R": lambda parts: range(*parts),
    "T": lambda parts: datetime.timedelta(*parts),
    "W": lambda pair: _DATES[pair[0]].fromisoformat(pair[1]),
    "B": lambda name: getattr(builtins, name),
    "o": Opaque,
}
