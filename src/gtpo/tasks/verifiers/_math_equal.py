r"""Compares two parsed answers by their kind.

- Values: exact values exactly, by their difference; if one was written with a decimal point, within `ABSOLUTE` and
  `RELATIVE`.
- Relations: by their difference up to a factor, never by their solutions. `x = 5` is read as 5 where a value is
  expected, if only the letter is on its left side.
- Members: in order for brackets, in any order for a set or a list; a set never equals a pair.
- Sets and inequalities of one letter: as sets of real numbers. (1, 2) is a pair or an interval, like the other side.

Letters are equal only if name and case are the same; answers that differ in a parameter's name, as 3k + 1 and 3n + 1,
are not equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
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
from gtpo.tasks.verifiers._math_sets import NoSet, letter_of, real_set, same_sets
from gtpo.tasks.verifiers._math_values import factor_of, same_exactly, same_number

MOST_MEMBERS = 200


def same_answer(gold: Answer, candidate: Answer) -> bool:
    """Whether the candidate is equal to the gold answer."""
    if gold.unit and candidate.unit and gold.unit != candidate.unit:
        return False
    if gold.qualifier and candidate.qualifier and _words(gold.qualifier) != _words(candidate.qualifier):
        return False
    return same(gold.form, candidate.form)


def same(gold: Form, candidate: Form) -> bool:
    """Whether two forms are equal."""
    if isinstance(gold, Value) and isinstance(candidate, Value):
        return _same_value(gold, candidate)
    for words, value in ((gold, candidate), (candidate, gold)):
        if isinstance(words, Words) and isinstance(value, Value) and words.product and not value.expr.is_Symbol:
            return _same_value(words.product, value)
    if isinstance(gold, Chain) or isinstance(candidate, Chain):
        return _same_chain(gold, candidate)
    if isinstance(gold, Words) or isinstance(candidate, Words):
        return _same_words(gold, candidate)
    if isinstance(gold, Ratio) or isinstance(candidate, Ratio):
        return _same_ratio(gold, candidate)
    if isinstance(gold, Grid) or isinstance(candidate, Grid):
        return _same_grid(gold, candidate)
    if _is_set(gold) or _is_set(candidate):
        return _same_set(gold, candidate)
    if isinstance(gold, Many) and isinstance(candidate, Many):
        return _same_members(gold, candidate)
    many, single = (gold, candidate) if isinstance(gold, Many) else (candidate, gold)
    if isinstance(many, Many) and many.brackets in ("", "{}"):
        distinct = _distinct(many.members)
        return len(distinct) == 1 and not many.signs and same(distinct[0], single)
    return False


def _words(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _same_words(gold: Form, candidate: Form) -> bool:
    one, other = _as_words(gold), _as_words(candidate)
    if one is None or other is None:
        return False
    if "".join(one.split()) == "".join(other.split()):
        return True
    for answer, opposite in (("yes", "no"), ("no", "yes")):
        if one == answer:
            first, *rest = other.replace(".", ",").split(",")
            return first.strip() == answer and bool(rest) and opposite not in other.replace(",", " ").split()
    return False


def _as_words(form: Form) -> str | None:
    if isinstance(form, Words):
        return form.text
    letter = isinstance(form, Value) and form.expr.is_Symbol
    return str(form.expr).casefold() if letter and isinstance(form, Value) else None


def _same_value(gold: Value, candidate: Value) -> bool:
    decimal = gold.decimal or candidate.decimal
    return any(
        same_number(one, other, decimal)
        for one in (gold.expr, *gold.others)
        for other in (candidate.expr, *candidate.others)
        if not (gold.others and candidate.others) or (one is gold.expr) == (other is candidate.expr)
    )


def _same_chain(gold: Form, candidate: Form) -> bool:
    if isinstance(gold, Chain) and isinstance(candidate, Chain):
        for member, bounds in ((gold, candidate), (candidate, gold)):
            if member.relations == ("in",) and _is_inequality(bounds):
                return member.name == letter_of(bounds) and _same_set(member.sides[1], bounds)
        if gold.name and gold.name == candidate.name and gold.relations == candidate.relations and len(gold.sides) == 2:
            return same(gold.sides[1], candidate.sides[1])
        if _same_relation(gold, candidate):
            return True
        return _is_inequality(gold) and _is_inequality(candidate) and _same_set(gold, candidate)
    chain, other = (gold, candidate) if isinstance(gold, Chain) else (candidate, gold)
    assert isinstance(chain, Chain)
    if set(chain.relations) <= {"="} or (chain.relations == ("in",) and chain.name):
        if _polynomial(chain, other, given=chain is candidate):
            return True
        value = _value_of(chain, strict=chain is gold)
        if value is None:
            return isinstance(other, Many) and other.signs and _product_of_lines(chain, other)
        return same(value, other)
    return _is_inequality(chain) and _same_set(gold, candidate)


def _value_of(chain: Chain, strict: bool) -> Form | None:
    """The last side, if the first is a name or all are the same number; unless `strict`, also if there are only two."""
    *before, last = chain.sides
    numbers = [side for side in before if isinstance(side, Value) and not side.expr.free_symbols and not _is_name(side)]
    if isinstance(last, Value) and any(not _same_value(last, number) for number in numbers):
        return None
    if chain.name or len(numbers) == len(before):
        return last
    return None if strict or len(before) > 1 else last


def _is_name(side: Value) -> bool:
    """The parser reads the letter I as the imaginary unit and e as Euler's number."""
    from sympy import E, I

    return side.expr in (I, E)


def _polynomial(chain: Chain, other: Form, given: bool) -> bool:
    """Whether the candidate is the gold expression followed by `= 0`."""
    if not given or len(chain.sides) != 2 or chain.name or not isinstance(other, Value):
        return False
    left, right = chain.sides
    zero = isinstance(right, Value) and right.expr.is_zero
    return bool(zero and other.expr.free_symbols and isinstance(left, Value) and _same_value(other, left))


def _same_relation(gold: Chain, candidate: Chain) -> bool:
    if len(gold.sides) != len(candidate.sides):
        return False
    if len(gold.sides) > 2:
        if gold.relations == candidate.relations:
            return all(map(same, gold.sides, candidate.sides))
        turned = tuple({"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(r, r) for r in reversed(candidate.relations))
        return gold.relations == turned and all(map(same, gold.sides, reversed(candidate.sides)))
    if not all(isinstance(side, Value) for side in (*gold.sides, *candidate.sides)):
        return gold.relations == candidate.relations and all(map(same, gold.sides, candidate.sides))
    (one,), (other,) = gold.relations, candidate.relations
    if "in" in (one, other):
        return one == other and all(map(same, gold.sides, candidate.sides))
    left, right = (
        side.sides[0].expr - side.sides[1].expr  # type: ignore[union-attr]
        for side in (gold, candidate)
    )
    if not left.free_symbols or not right.free_symbols or left.is_zero or same_exactly(left, left * 0):
        return one == other and all(map(same, gold.sides, candidate.sides))
    factor = factor_of(left, right)
    if factor is None:
        return False
    if one in ("=", "!="):
        return one == other
    if not factor.is_positive:
        other = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}[other] if other in ("<", ">", "<=", ">=") else other
    return one == other


def _product_of_lines(gold: Chain, candidate: Many) -> bool:
    """Whether `y = +-f(x)` is the equation: the product of the differences is, up to a factor."""
    from sympy import expand

    product: Any = 1
    for member in candidate.members:
        if not isinstance(member, Chain) or member.relations != ("=",):
            return False
        if not all(isinstance(side, Value) for side in member.sides):
            return False
        product *= member.sides[0].expr - member.sides[1].expr  # type: ignore[union-attr]
    if gold.relations != ("=",) or not all(isinstance(side, Value) for side in gold.sides):
        return False
    left = gold.sides[0].expr - gold.sides[1].expr  # type: ignore[union-attr]
    return bool(left.free_symbols) and factor_of(left, expand(product)) is not None


def _same_ratio(gold: Form, candidate: Form) -> bool:
    if isinstance(gold, Ratio) and isinstance(candidate, Ratio):
        zero = any(isinstance(part, Value) and part.expr.is_zero for part in (*gold.parts, *candidate.parts))
        if len(gold.parts) != len(candidate.parts) or zero or (gold.time and candidate.time):
            return len(gold.parts) == len(candidate.parts) and all(map(same, gold.parts, candidate.parts))
        first, other = (side.parts[0] for side in (gold, candidate))
        return all(
            same(_product(one, other), _product(two, first))
            for one, two in zip(gold.parts, candidate.parts, strict=True)
        )
    ratio, value = (gold, candidate) if isinstance(gold, Ratio) else (candidate, gold)
    if isinstance(ratio, Ratio) and isinstance(value, Value) and len(ratio.parts) == 2 and not ratio.time:
        return same(ratio.parts[0], _product(value, ratio.parts[1]))
    return False


def _product(one: Form, other: Form) -> Form:
    if isinstance(one, Value) and isinstance(other, Value):
        return Value(one.expr * other.expr, one.decimal or other.decimal)
    return Words("no number")


def _same_grid(gold: Form, candidate: Form) -> bool:
    rows, others = _rows(gold), _rows(candidate)
    if isinstance(gold, Many) or isinstance(candidate, Many):  # a vector may be written as a row or as a column
        rows, others = [[c for row in rows for c in row]] if _is_vector(rows) else rows, others
        others = [[c for row in others for c in row]] if _is_vector(others) else others
    return len(rows) == len(others) > 0 and all(
        len(row) == len(other) and all(map(same, row, other)) for row, other in zip(rows, others, strict=True)
    )


def _rows(form: Form) -> list[list[Form]]:
    if isinstance(form, Grid):
        return [list(row) for row in form.rows]
    if isinstance(form, Many) and form.brackets in ("()", "[]"):
        return [list(form.members)]
    return []


def _is_vector(rows: list[list[Form]]) -> bool:
    return len(rows) == 1 or all(len(row) == 1 for row in rows)


def _distinct(members: Sequence[Form]) -> list[Form]:
    distinct: list[Form] = []
    for member in islice(members, MOST_MEMBERS):
        if not any(type(member) is type(other) and same(other, member) for other in distinct):
            distinct.append(member)
    return distinct


def _same_members(gold: Many, candidate: Many) -> bool:
    if len(gold.members) > MOST_MEMBERS or len(candidate.members) > MOST_MEMBERS:
        return False
    free = {"", "{}"}
    if gold.brackets in free and candidate.brackets in free:
        names = [{m.name for m in many.members if isinstance(m, Chain)} for many in (gold, candidate)]
        if len(names[0]) > 1 and not names[1]:  # values for several letters come in the letters' order
            return _in_order(gold.members, candidate.members)
        return _in_any_order(_distinct(gold.members), _distinct(candidate.members))
    if gold.brackets == candidate.brackets:
        return _in_order(gold.members, candidate.members)
    if "{}" in (gold.brackets, candidate.brackets) or "" not in (gold.brackets, candidate.brackets):
        return False
    if not {gold.brackets, candidate.brackets} <= {"", "()", "[]"}:
        return False
    return _in_order(*(_by_name(many) for many in (gold, candidate)))


def _by_name(many: Many) -> Sequence[Form]:
    """The members; values for letters in the order of the letters' names."""
    named = [m for m in many.members if isinstance(m, Chain) and m.name and m.relations == ("=",)]
    if len(named) < len(many.members):
        return many.members
    return [member.sides[1] for member in sorted(named, key=lambda member: member.name)]


def _in_order(gold: Sequence[Form], candidate: Sequence[Form]) -> bool:
    return len(gold) == len(candidate) and all(map(same, gold, candidate))


def _in_any_order(gold: Sequence[Form], candidate: Sequence[Form]) -> bool:
    left = list(candidate)
    if len(gold) != len(left):
        return False
    for member in gold:
        place = next((i for i, other in enumerate(left) if same(member, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _is_inequality(form: Form) -> bool:
    return isinstance(form, Chain) and bool(form.relations) and set(form.relations) <= {"<", ">", "<=", ">=", "!="}


def _is_set(form: Form) -> bool:
    if isinstance(form, Combined | Named | Builder):
        return True
    if isinstance(form, Many) and form.brackets in ("(]", "[)"):
        return True
    if not isinstance(form, Many) or not all(isinstance(m, Chain) for m in form.members):
        return False
    inequalities = [_is_inequality(member) for member in form.members]
    return any(inequalities) and all(
        inequality or (isinstance(member, Chain) and member.relations == ("in",))
        for inequality, member in zip(inequalities, form.members, strict=True)
    )


def _same_set(gold: Form, candidate: Form) -> bool:
    letters = letter_of(gold), letter_of(candidate)
    if None not in letters and letters[0] != letters[1]:
        return False
    try:
        return same_sets(real_set(gold), real_set(candidate))
    except NoSet:
        pass
    if isinstance(gold, Many) and isinstance(candidate, Many):
        return _same_members(gold, candidate)
    return False
