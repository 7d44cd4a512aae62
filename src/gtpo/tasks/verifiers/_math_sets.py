"""Intervals, their unions, and inequalities of one letter as sets of real numbers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any

from gtpo.tasks.verifiers._math_forms import Builder, Chain, Combined, Form, Many, Named, Value


class NoSet(Exception):
    """The form is not a set of numbers that can be compared."""


def letter_of(form: Form) -> str | None:
    """The letter of an inequality, or of several inequalities with the same letter; None for anything else."""
    if isinstance(form, Chain):
        letters = {str(s) for side in form.sides if isinstance(side, Value) for s in side.expr.free_symbols}
        return letters.pop() if len(letters) == 1 else None
    if isinstance(form, Many):
        found = {letter_of(member) for member in form.members}
        return found.pop() if len(found) == 1 else None
    return None


def same_sets(gold: Any, candidate: Any) -> bool:
    """Whether two sets are equal."""
    if gold == candidate:
        return True
    return bool(gold.symmetric_difference(candidate).is_empty)


def real_set(form: Form) -> Any:
    """Converts a form to a set of numbers; raises NoSet."""
    from sympy import FiniteSet, Interval, S

    if isinstance(form, Named):
        named = {"reals": S.Reals, "integers": S.Integers, "naturals": S.Naturals, "rationals": S.Rationals}
        return {**named, "complexes": S.Complexes, "empty": S.EmptySet}[form.name]
    if isinstance(form, Builder):
        return real_set(form.condition)
    if isinstance(form, Combined):
        parts = [real_set(part) for part in form.parts]
        if form.how == "union":
            return reduce(lambda one, other: one.union(other), parts)
        if form.how == "intersection":
            return reduce(lambda one, other: one.intersect(other), parts)
        return reduce(lambda one, other: one - other, parts)
    if isinstance(form, Chain):
        return _solutions(form)
    if not isinstance(form, Many):
        return FiniteSet(_number(form))
    if form.members and all(isinstance(member, Chain) for member in form.members):
        return _of_conditions([real_set(member) for member in form.members], form.union)
    if form.brackets in ("()", "[]", "(]", "[)") and len(form.members) == 2:
        start, end = (_number(member) for member in form.members)
        if not (start.is_extended_real and end.is_extended_real and start < end):
            raise NoSet
        return Interval(start, end, form.brackets[0] == "(", form.brackets[1] == ")")
    if form.brackets in ("{}", ""):
        return FiniteSet(*(_number(member) for member in form.members))
    raise NoSet


def _of_conditions(sets: Iterable[Any], union: bool) -> Any:
    """The intersection of the conditions; their union if `union` is set or the intersection is empty."""
    sets = list(sets)
    both = reduce(lambda one, other: one.intersect(other), sets)
    return reduce(lambda one, other: one.union(other), sets) if union or both.is_empty else both


def _number(form: Form) -> Any:
    if not isinstance(form, Value) or form.expr.free_symbols:
        raise NoSet
    return form.expr


def _solutions(chain: Chain) -> Any:
    """The numbers that meet conditions which have only the letter on one side."""
    from sympy import Interval, S, oo

    met = S.Reals
    for left, relation, right in zip(chain.sides[:-1], chain.relations, chain.sides[1:], strict=True):
        if relation == "in" and isinstance(left, Value) and left.expr.is_Symbol:
            met = met.intersect(real_set(right))
            continue
        if not (isinstance(left, Value) and isinstance(right, Value)):
            raise NoSet
        if left.expr.is_Symbol and not right.expr.free_symbols:
            bound = right.expr
        elif right.expr.is_Symbol and not left.expr.free_symbols:
            bound = left.expr
            relation = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(relation, relation)
        else:
            raise NoSet
        if not bound.is_extended_real:
            raise NoSet
        meets = {
            "<": lambda b: Interval(-oo, b, True, True),
            "<=": lambda b: Interval(-oo, b),
            ">": lambda b: Interval(b, oo, True, True),
            ">=": lambda b: Interval(b, oo),
            "!=": lambda b: S.Reals - {b},
        }
        if relation not in meets:
            raise NoSet
        met = met.intersect(meets[relation](bound))
    return met
