r"""Rewrites spellings of mathematics to the LaTeX that the parser reads: one rule per kind of spelling.

Each rule keeps the meaning. What can't be read without losing a mark (dots that omit members, two numbers side by
side) is left unchanged, and `_math_reading` refuses it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import TypeAlias

_Rule: TypeAlias = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def _power_of_ten(match: re.Match[str]) -> str:
    return rf"{match[1]} \times 10^{{{int(match[2])}}}"


def _blackboard(match: re.Match[str]) -> str:
    letter = match[1] or match[2] or "RZNQ"["ℝℤℕℚ".index(match[3])]
    return rf"\mathbb{{{letter}}}"


def _without_commas(match: re.Match[str]) -> str:
    return "{" + match[1].replace(",", "") + "}"


_RULES: tuple[_Rule, ...] = (
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])\.?|\\[bB]igg?[lrm]?(?![a-zA-Z])|\\displaystyle(?![a-zA-Z])|\\!"), ""),
    (re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])|\\(?:hspace|vspace)\{[^{}]*\}|\s+"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
    (re.compile(r"(?<![\d/.])(\d+) +(\d+)/(\d+)(?![\d/.])"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"\\(frac|binom)\s*(\d)\s*(\d)"), r"\\\1{\2}{\3}"),
    (re.compile(r"_\s*(\d)\s+(?=\d)"), r"_{\1}"),
    (re.compile(r"\{\s*(\w+)\s*\\choose\s+(\w+)\s*\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\math(?:rm|it|sf|bf)\{([a-zA-Z])\}|\\operatorname\{([a-zA-Z])\}"), r"\1\2"),
    (re.compile(r"\\lg(?![a-zA-Z])"), r"\\log_{10}"),
    (re.compile(r"\\mathbb\s*([RZNQC])(?![a-zA-Z])|\\([RZNQ])(?![a-zA-Z])|([ℝℤℕℚ])"), _blackboard),
    (re.compile(r"≤|\\leqslant(?![a-zA-Z])|\\le(?![a-zA-Z])"), r"\\leq "),
    (re.compile(r"≥|\\geqslant(?![a-zA-Z])|\\ge(?![a-zA-Z])"), r"\\geq "),
    (re.compile(r"≠|\\ne(?![a-zA-Z])"), r"\\neq "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"×|\\times(?![a-zA-Z])"), r"\\times "),
    (re.compile(r"·|\\ast(?![a-zA-Z])"), r"\\cdot "),
    (re.compile(r"π"), r"\\pi "),
    (re.compile(r"\\\|"), "|"),
    (re.compile(r"\\(?:l|r)vert(?![a-zA-Z])"), "|"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\backslash(?![a-zA-Z])"), r"\\setminus "),
    (re.compile(r"\{\}_\{?(\d+|[a-z])\}?\s*(?:C|\\mathrm\{C\})_\{?(\d+|[a-z])\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"\{\}\^\{?(\d+|[a-z])\}?\s*C_\{?(\d+|[a-z])\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<![a-zA-Z\\])C_\{?(n|[2-9]|\d\d+)\}?\^\{?(\d+|[a-z])\}?(?![\d{])"), r"\\binom{\1}{\2}"),
    (re.compile(r"(\\(?:max|min|gcd|lcm))\s*\\\{([^{}\\]*)\\\}"), r"\1(\2)"),
    (re.compile(r"\\gamma(?![a-zA-Z])"), r"\\mathit{greekgamma}"),
    (re.compile(r"(?<![a-zA-Z\\])([eE])(?=_)"), r"\\mathit{letter\1}"),
    (
        re.compile(r"(?<![\w.}])(\d+\.\d+(?=[eE][-+]?\d)|\d+(?=[eE][-+]?\d\d))[eE]([-+]?\d{1,2})(?![\d.])"),
        _power_of_ten,
    ),
    (re.compile(r"([a-zA-Z])(?:'''|\^\{?\\prime\\prime\\prime\}?)"), r"\1_{third}"),
    (re.compile(r"([a-zA-Z])(?:''|\^\{?\\prime\\prime\}?)"), r"\1_{second}"),
    (re.compile(r"([a-zA-Z])(?:'|’|\^\{?\\prime\}?)"), r"\1_{prime}"),
    (re.compile(r"\{(\d{1,3}(?:,\d{3})+)\}"), _without_commas),
    (
        re.compile(r"((?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*)(\d+(?:\.\d+)?)\s*\^\{?\\circ\}?"),
        r"\1{\\frac{\2 \\pi}{180}}",
    ),
)
_PRODUCT = re.compile(
    r"(?<=\d)\s*(?=\(|\[|\\(?:binom|lfloor|lceil|sqrt|left|log|ln|sin|cos|tan|sum|pi|math|max|min|gcd|lcm)(?![a-zA-Z]*\{\d+\}\^))"
)
_FRACTION = re.compile(r"(?<=\d)\s*\\frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")
_REPEATED = re.compile(r"(?<![\d.])(\d*)\.(\d*?)(\d+?)\3+(?:\\[lcd]?dots|\.\.\.|…)")
_ONCE_MORE = 3
_PYTHON = re.compile(r"\*|\b(?:sqrt|exp|pi|oo|Rational|log|sin|cos|tan|Matrix|factorial|binomial)\b")
_NAMES = {"pi": r"\pi ", "oo": r"\infty ", "E": "e", "I": "i"}
_FUNCTIONS = {
    "sqrt": r"\sqrt{{{}}}",
    "exp": "e^{{{}}}",
    "log": r"\ln({})",
    "ln": r"\ln({})",
    "sin": r"\sin({})",
    "cos": r"\cos({})",
    "tan": r"\tan({})",
    "abs": "|{}|",
    "Abs": "|{}|",
    "factorial": "({})!",
    "Rational": r"\frac{{{}}}{{{}}}",
    "binomial": r"\binom{{{}}}{{{}}}",
}
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: r"\cdot "}


def spelled(latex: str) -> str:
    """Rewrites an answer in the parser's spelling."""
    latex = from_python(latex) or latex
    for pattern, spelling in _RULES:
        latex = pattern.sub(spelling, latex)
    if len(latex) < 200 and re.search(r"dots|\.\.\.|…", latex):
        latex = _REPEATED.sub(_repeating, latex)
    latex = _FRACTION.sub(_mixed_or_product, latex)
    latex = _PRODUCT.sub(r"\\cdot ", latex)
    return re.sub(r" {2,}", " ", latex).strip()


def _mixed_or_product(match: re.Match[str]) -> str:
    r"""A number before a fraction: `2\frac13` is a mixed number, `2\frac{5}{3}` a product."""
    top, bottom = match[1] or match[2], match[3] or match[4]
    return match[0] if int(top) < int(bottom) else rf"\cdot \frac{{{top}}}{{{bottom}}}"


def _repeating(match: re.Match[str]) -> str:
    """A decimal that repeats its ending: 0.333... is 0.333 with a line over its last digit."""
    whole, before, cycle = match[1], match[2], match[3]
    times = (len(match[0].rstrip(".…\\lcdots")) - len(whole) - 1 - len(before)) // len(cycle)
    if len(cycle) * times < _ONCE_MORE or set(cycle) == {"0"}:
        return match[0]
    digits = int((whole + before + cycle) or "0") - int((whole + before) or "0")
    return rf"\frac{{{digits}}}{{{(10 ** len(cycle) - 1) * 10 ** len(before)}}}"


def from_python(text: str) -> str | None:
    """LaTeX for a Python or sympy expression, such as `3*pi/2` or `x**2 + 1`; None if it is not one."""
    if "\\" in text or "{" in text or len(text) > 300 or not (_PYTHON.search(text) or text.startswith("[[")):
        return None
    try:
        return _latex(ast.parse(text.replace("^", "**").strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _latex(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return str(node.value)
    if isinstance(node, ast.Name) and (len(node.id) == 1 or node.id in _NAMES):
        return _NAMES.get(node.id, node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return f"(-{_latex(node.operand)})"
    if isinstance(node, ast.BinOp):
        left, right = _latex(node.left), _latex(node.right)
        if isinstance(node.op, ast.Div):
            return rf"\frac{{{left}}}{{{right}}}"
        if isinstance(node.op, ast.Pow):
            return f"({left})^{{{right}}}"
        if type(node.op) in _OPERATORS:
            return f"({left}{_OPERATORS[type(node.op)]}{right})"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        form = _FUNCTIONS.get(node.func.id, "")
        if form and form.replace("{{", "").replace("}}", "").count("{}") == len(node.args):
            return form.format(*map(_latex, node.args))
    if isinstance(node, ast.List | ast.Tuple) and node.elts:
        opening, closing = ("[", "]") if isinstance(node, ast.List) else ("(", ")")
        return opening + ", ".join(map(_latex, node.elts)) + closing
    raise ValueError("no mathematics")
