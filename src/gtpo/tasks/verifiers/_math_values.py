"""Whether two numbers or expressions are equal: exact ones exactly, decimals within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gtpo.tasks.verifiers.answers import ABSOLUTE, RELATIVE

DIGITS, MOST_DIGITS = 30, 400
LONG_NUMBER = 10**40
"""If an expression has a number of this size, equal digits alone do not prove equality."""

_POINTS = ((7, 11), (-13, 17), (31, 19), (-5, 23), (43, 37), (3, 41))


def same_number(gold: Any, candidate: Any, decimal: bool = False) -> bool:
    """Whether two expressions are equal; if one is decimal, whether they are within the tolerance of `answers`."""
    if gold == candidate:
        return True
    if gold.is_infinite or candidate.is_infinite:
        return False
    if same_exactly(gold, candidate):
        return True
    if decimal and gold.is_number and candidate.is_number:
        return _close(gold, candidate)
    return _with_imaginary_unit(gold, candidate)


def _with_imaginary_unit(gold: Any, candidate: Any) -> bool:
    """Compares again, with the imaginary unit for the letter i."""
    from sympy import I

    letters = {s: I for s in gold.free_symbols | candidate.free_symbols if s.name == "i"}
    return bool(letters) and same_exactly(gold.subs(letters).doit(), candidate.subs(letters).doit())


def _close(gold: Any, candidate: Any) -> bool:
    from sympy import Rational

    distance, size = (
        _size((candidate - gold).evalf(DIGITS, maxn=MOST_DIGITS)),
        _size(gold.evalf(DIGITS, maxn=MOST_DIGITS)),
    )
    if distance is None or size is None:
        return False
    most = min(Rational(ABSOLUTE.numerator, ABSOLUTE.denominator), Rational(*RELATIVE.as_integer_ratio()) * size)
    return bool(distance <= most)


def same_exactly(gold: Any, candidate: Any) -> bool:
    """Compares by the difference: rational numbers at once; others by its values at some points, then by proof.

    If no proof is found, values with some hundred digits at all points decide, except for very long numbers.
    """
    from sympy import expand, fraction, simplify, together

    difference = gold - candidate
    if difference.is_zero:
        return True
    if difference.is_Rational:
        return False
    letters = sorted(gold.free_symbols | candidate.free_symbols, key=lambda letter: str(letter.name))
    zeros = 0
    for letters_at in _points(letters):
        zero = _is_zero(difference, gold, candidate, letters_at)
        if zero is False:
            return False
        zeros += bool(zero)
    difference = expand(difference)
    if difference.is_zero or (difference.is_Rational and not difference):
        return True
    if difference.is_Rational:
        return False
    if not zeros:
        return False
    if letters and expand(fraction(together(difference))[0]).is_zero:
        return True
    proved = simplify(difference)
    if proved.is_zero is not None and not letters:
        return bool(proved.is_zero)
    return bool(proved == 0) or not (_has_long_numbers(gold) or _has_long_numbers(candidate))


def _has_long_numbers(expr: Any) -> bool:
    from sympy import Rational

    return any(abs(number.p) > LONG_NUMBER or number.q > LONG_NUMBER for number in expr.atoms(Rational))


def _points(letters: Sequence[Any]) -> list[dict[Any, Any]]:
    """Values for the letters, of both signs and different for each letter; none if there are no letters."""
    from sympy import Rational

    if not letters:
        return [{}]
    return [
        {letter: Rational(top + 2 * (k + 1) * i * i, bottom + 6 * i) for i, letter in enumerate(letters)}
        for k, (top, bottom) in enumerate(_POINTS)
    ]


def _is_zero(difference: Any, gold: Any, candidate: Any, at: dict[Any, Any]) -> bool | None:
    """Whether the difference is zero at a point; None if one of the two is not real there although the letters are."""
    size, distance = _size(gold.subs(at).evalf(15)), _size(difference.subs(at).evalf(15, maxn=MOST_DIGITS))
    if size is None or distance is None:
        return None
    if at and not (gold.has(*_complex()) or candidate.has(*_complex())):
        real = {bool(expr.subs(at).evalf(15).is_real) for expr in (gold, candidate)}
        if real != {True}:
            return None if real == {False} else False  # only one of them has a value there: ln|x| is not ln x
    return bool(distance <= (size or 1) * 10 ** -(MOST_DIGITS // 4))


def _size(value: Any) -> Any:
    """The larger absolute value of the real and imaginary part; None if the number is not finite."""
    parts = value.as_real_imag()
    if not all(part.is_Float or part.is_Rational for part in parts):
        return None
    return max(abs(part) for part in parts)


def _complex() -> tuple[Any, ...]:
    from sympy import I

    return (I,)


def factor_of(gold: Any, candidate: Any) -> Any:
    """The number by which the gold expression is multiplied in the candidate; None if there is none or it is zero."""
    if gold.free_symbols != candidate.free_symbols:
        return None
    letters = sorted(gold.free_symbols, key=lambda letter: str(letter.name))
    for at in _points(letters):
        one, other = gold.subs(at).doit(), candidate.subs(at).doit()
        if one.is_number and other.is_number and one.evalf(15).is_real and abs(one.evalf(15)) > 1e-9:
            factor = other / one
            if not factor.evalf(15).is_finite or not abs(factor.evalf(15)) > 0:
                return None
            return factor if same_exactly(gold * factor, candidate) else None
    return None
