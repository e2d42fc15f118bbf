"""What a mathematical answer is worth, as a string: equal values have equal keys, however they are written.

Imported in worker processes only (see `rewards.equivalence`): SymPy evaluates what it reads, so an answer such as
``9^{9^{9}}`` can take any time and memory. math-verify reads LaTeX; its own comparison of two answers is not used,
because it is neither symmetric nor transitive, and votes need classes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean

from rewards.answers import canonical

# It warns that no time limit of its own is set, which is the caller's here.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_LATEX = LatexExtractionConfig(
    boxed_match_priority=-1,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    ),
)
_POINTS = 3
"""Expressions with variables are equal if they are equal at so many points, up to the last digits."""
_DIGITS = 12
_WORKING_DIGITS = 40
_LONGEST_INTEGER = 4000
"""Digits; Python refuses to write out longer ones."""


def math_key(answer: str) -> str | None:
    """Return the key of an answer in LaTeX or plain notation; None if it cannot be read as mathematics."""
    try:
        return _parsed_key(answer)
    except Exception:  # SymPy and the parser raise almost anything on what makes no sense.
        return None


def _parsed_key(answer: str) -> str | None:
    found = parse(
        f"${answer}$",
        extraction_config=[_LATEX],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    value = next((item for item in found if isinstance(item, sympy.Basic | sympy.MatrixBase)), None)
    return None if value is None else _key(value)


def _key(value: Any) -> str | None:
    """Return the key of a SymPy object; None if it has no definite value."""
    if isinstance(value, sympy.Equality):
        return _equation_key(value)
    if isinstance(value, Relational):
        return _inequality_key(value)
    if isinstance(value, Boolean):  # "-2 ≤ x ≤ 7"
        return _key(value.as_set()) if len(value.free_symbols) == 1 else None
    if isinstance(value, sympy.MatrixBase):
        return _joined(f"matrix {value.rows}x{value.cols}", map(_key, value))
    if isinstance(value, sympy.Tuple):
        return _joined("tuple", map(_key, value))
    if isinstance(value, sympy.FiniteSet):
        unknowns = {each.lhs for each in value if isinstance(each, sympy.Equality)}
        keys = [_named_key(each) if len(unknowns) > 1 else _key(each) for each in value]
        return keys[0] if len(keys) == 1 else _joined("set", keys, ordered=False)
    if isinstance(value, sympy.Interval):
        ends = f"{'(' if value.left_open else '['}{')' if value.right_open else ']'}"
        return _joined(f"interval {ends}", map(_key, (value.start, value.end)))
    if isinstance(value, sympy.Union | sympy.Intersection | sympy.Complement):
        return _joined(type(value).__name__, map(_key, value.args), ordered=isinstance(value, sympy.Complement))
    if isinstance(value, sympy.Expr):
        return _expression_key(value)
    return "the empty set" if value is sympy.S.EmptySet else None


def _named_key(value: Any) -> str | None:
    """Return the key of one of several equations, "x = 2" being no other's "y = 2"."""
    if not isinstance(value, sympy.Equality) or not value.lhs.is_Symbol:
        return _key(value)
    return _joined(f"{value.lhs.name} =", [_key(value.rhs)])


def _joined(kind: str, keys: Iterable[str | None], *, ordered: bool = True) -> str | None:
    parts = list(keys)
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return f"{kind}({'; '.join(known if ordered else sorted(known))})"


def _expression_key(expression: Any) -> str | None:
    expression = _complex(expression)
    # Decimals as they are written, before anything is computed with their binary approximations.
    decimals = {number: sympy.nsimplify(number, rational=True) for number in expression.atoms(sympy.Float)}
    expression = expression.xreplace(decimals).doit()
    if expression.has(sympy.nan, sympy.zoo):
        return None
    if expression.is_infinite:
        return str(expression)
    if expression.is_Symbol:
        return str(expression.name).lower()
    if not expression.free_symbols:
        return _number_key(expression)
    values = [_at(expression, number) for number in range(_POINTS)]
    return None if None in values else f"expression({'; '.join(map(str, values))})"


def _complex(expression: Any) -> Any:
    """Return the expression with i as the imaginary unit, which is a variable to the parser."""
    return expression.subs({symbol: sympy.I for symbol in expression.free_symbols if symbol.name == "i"})


def _number_key(number: Any) -> str | None:
    exact = sympy.nsimplify(number, rational=True) if number.has(sympy.Float) else number
    if exact.is_Rational and exact.q == 1 and sympy.log(abs(exact.p) + 1, 10) < _LONGEST_INTEGER:
        return canonical(str(exact.p))
    if exact.is_Rational and exact.q != 1:
        return canonical(f"{exact.p}/{exact.q}")
    return _digits(exact)


def _digits(number: Any) -> str | None:
    """Return a number in decimals, its last ones cut off; None if it is none."""
    value = number.evalf(_WORKING_DIGITS)
    parts = value.as_real_imag()
    if not all(part.is_Float or part.is_Rational for part in parts):
        return None
    whole = round(parts[0]) if parts[1] == 0 and abs(parts[0]) < 10**_DIGITS else 0
    if whole and abs(parts[0] - whole) < 10 ** -(_WORKING_DIGITS // 2):
        return str(whole)  # A logarithm of a power, say: whole, though not in SymPy's eyes.
    scale = max(abs(part) for part in parts)
    # A part that is 0 but for rounding has no digits worth comparing.
    rounded = [sympy.Integer(0) if abs(part) < scale * 10**-_DIGITS else part.evalf(_DIGITS) for part in parts]
    return "~" + ",".join(str(part) for part in rounded)


def _at(expression: Any, point: int) -> str | None:
    """Return the value with a number for each variable that depends on its name, and the point, alone."""
    return _digits(expression.subs({symbol: _coordinate(symbol.name, point) for symbol in expression.free_symbols}))


def _coordinate(name: str, point: int) -> Any:
    """Return a number between 1/2 and 3/2; at the points after the first, of either sign."""
    digest = hashlib.sha256(f"{point} {name}".encode()).digest()
    size = sympy.Rational(int.from_bytes(digest[:4], "little"), 2**32) + sympy.Rational(1, 2)
    return -size if point == 1 or (point and digest[4] % 2) else size


def _equation_key(equation: Any) -> str | None:
    left, right = equation.lhs, equation.rhs
    if left.is_Symbol and left not in right.free_symbols:  # "x = 5", "y = 2x + 3" and "x ∈ [0, 1]" give a value
        return _key(right)
    return _scaled_key("equation", left - right, signed=False)


def _inequality_key(relation: Any) -> str | None:
    if len(relation.free_symbols) == 1 and (relation.lhs.is_Symbol or relation.rhs.is_Symbol):
        return _key(relation.as_set())
    difference = relation.gts - relation.lts if hasattr(relation, "gts") else relation.lhs - relation.rhs
    kind = "strict" if relation.rel_op in ("<", ">") else relation.rel_op.replace(">=", "<=")
    return _scaled_key(f"inequality {kind}", difference, signed=relation.rel_op != "!=")


def _scaled_key(kind: str, difference: Any, *, signed: bool) -> str | None:
    """Return the key of "difference is (greater than) 0", which a factor does not change."""
    difference = _complex(difference)
    symbols = difference.free_symbols
    values = [difference.subs({s: _coordinate(s.name, point) for s in symbols}) for point in range(_POINTS)]
    if not symbols or values[0] == 0:
        return None
    sign = str(sympy.sign(values[0])) if signed else ""
    return _joined(f"{kind} {sign}", [_digits(value / values[0]) for value in values[1:]])


for _usual in (r"\frac{1}{2} + x = \sqrt{3}", "(2, 3]", "1, 2"):  # The first of its kind takes a hundred times as long.
    math_key(_usual)
