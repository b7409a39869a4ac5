"""Arithmetic with Python's syntax and meaning, and nothing else of Python.

Python's parser reads the text, every syntax node must be known here, and no number is built before it is
known to be small: an expression can neither escape nor hang nor eat memory.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from tinyllm.message import INTEGER_BITS_MAX
from tinyllm.tools.decorator import tool
from tinyllm.tools.failures import refusal

SOURCE_CHARS_MAX = 1_000
DEPTH_MAX = 32
FACTORIAL_MAX = 1_000
DIGITS_MAX = 400

Number = int | float


class _Refused(Exception):
    """What is wrong, without the place."""


@tool(aliases={"input": "expression"})
async def calculator(
    expression: Annotated[str, Field(description="An arithmetic expression, for example sqrt(2) * (3 + 4) ** 2")],
) -> int | float:
    """Evaluate an arithmetic expression: + - * / // % **, parentheses, pi, e, tau, and functions such as sqrt,
    sin, log, exp, round, floor, ceil, min, max, sum, factorial, gcd, hypot.

    Integers are exact, at most 4,096 bits. Any other text, a result that is not a finite real number, and more
    than 1,000 characters or 32 levels fail with TOOL_ERROR, which is not recoverable.
    """
    return calculate(expression)


def calculate(expression: str) -> Number:
    """The value of an expression; raises NodeError (`TOOL_ERROR`, not recoverable) with the column."""
    if len(expression) > SOURCE_CHARS_MAX:
        raise refusal(f"an expression of {len(expression)} characters; at most {SOURCE_CHARS_MAX}")
    return _Walk(expression, len(expression) - len(expression.lstrip())).value(_parsed(expression.strip()), 1)


def _parsed(source: str) -> ast.expr:
    if not source:
        raise refusal("the expression is empty")
    try:
        with warnings.catch_warnings():
            # The parser warns about doubtful Python; here it is refused anyway.
            warnings.simplefilter("ignore")
            return ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise refusal(f"the expression does not parse: {reason}") from None


# --- numbers that stay small ---------------------------------------------------------------------------


def _kept(value: Any) -> Number:
    if type(value) is int:
        if value.bit_length() > INTEGER_BITS_MAX:
            raise _Refused(f"an integer of more than {INTEGER_BITS_MAX} bits")
        return value
    if type(value) is not float:
        raise _Refused(f"a result that is a {type(value).__name__} and no real number")
    if not math.isfinite(value):
        raise _Refused("a result that is not finite")
    return value


def _power(base: Number, exponent: Number) -> Number:
    if type(base) is int and type(exponent) is int and exponent > 0:
        # The result has at least so many bits, and at most twice as many: known before it is built.
        if (abs(base).bit_length() - 1) * exponent >= INTEGER_BITS_MAX:
            raise _Refused(f"an integer of more than {INTEGER_BITS_MAX} bits")
        exact: int = base**exponent
        return exact
    value: Number = base**exponent
    if value == 0 and base != 0:
        raise _Refused("a number too close to zero")
    return value


def _factorial(value: Number) -> int:
    if type(value) is not int or not 0 <= value <= FACTORIAL_MAX:
        raise _Refused(f"factorial of anything but an integer from 0 to {FACTORIAL_MAX}")
    return math.factorial(value)


def _round(value: Number, digits: Number | None = None) -> Number:
    if digits is None:
        return round(value)
    if type(digits) is not int or abs(digits) > DIGITS_MAX:
        raise _Refused(f"rounding to anything but an integer of digits from -{DIGITS_MAX} to {DIGITS_MAX}")
    return round(value, digits)


def _sum(values: list[Number]) -> Number:
    total: Number = 0
    for value in values:
        total = _kept(total + value)
    return total


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_ONE = range(1, 2)
_MANY = range(1, 1_000)
_FUNCTIONS: dict[str, tuple[Callable[..., Any], range]] = {
    **{
        name: (getattr(math, name), _ONE)
        for name in (
            *("sqrt", "cbrt", "isqrt", "exp", "log2", "log10", "floor", "ceil", "trunc", "degrees", "radians"),
            *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
        )
    },
    "log": (math.log, range(1, 3)),
    "atan2": (math.atan2, range(2, 3)),
    "hypot": (math.hypot, _MANY),
    "gcd": (math.gcd, _MANY),
    "abs": (abs, _ONE),
    "pow": (_power, range(2, 3)),
    "round": (_round, range(1, 3)),
    "factorial": (_factorial, _ONE),
}
#: These take several numbers or one list of them.
_OF_LISTS: dict[str, Callable[[list[Number]], Number]] = {"min": min, "max": max, "sum": _sum}
_NAMES = (*_CONSTANTS, *_FUNCTIONS, *_OF_LISTS)
_HINTS: dict[type[ast.AST], str] = {ast.BitXor: "; for a power write **"}


# --- what an expression means --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Walk:
    source: str
    indent: int

    def value(self, node: ast.expr, depth: int) -> Number:
        if depth > DEPTH_MAX:
            raise self._refusal(node, f"nesting of more than {DEPTH_MAX} levels")
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return self._applied(node, lambda: value)
            case ast.Name(id=name) if name in _CONSTANTS:
                return _CONSTANTS[name]
            case ast.Name(id=name):
                raise self._refusal(node, f"the name {name}{_nearest(name)}")
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                inner = self.value(operand, depth + 1)
                return self._applied(node, lambda: _UNARY[type(op)](inner))
            case ast.BinOp():
                return self._chain(node, depth)
            case ast.Call():
                return self._call(node, depth)
        raise self._refusal(node, f"`{_spelled(node)}`")

    def _chain(self, node: ast.BinOp, depth: int) -> Number:
        """`1 + 2 + 3 + ...` nests to the left without being deep to a reader: walked, not recursed into."""
        steps: list[ast.BinOp] = []
        left: ast.expr = node
        while isinstance(left, ast.BinOp):
            if type(left.op) not in _BINARY:
                raise self._refusal(left, f"`{_spelled(left)}`", _HINTS.get(type(left.op), ""))
            steps.append(left)
            left = left.left
        value = self.value(left, depth + 1)
        for step in reversed(steps):
            right = self.value(step.right, depth + 1)
            value = self._applied(step, _BINARY[type(step.op)], value, right)
        return value

    def _call(self, node: ast.Call, depth: int) -> Number:
        if not isinstance(node.func, ast.Name) or node.keywords:
            raise self._refusal(node, f"`{_spelled(node)}`")
        name, given = node.func.id, node.args
        if name in _OF_LISTS:
            if len(given) == 1 and isinstance(given[0], ast.List | ast.Tuple):
                given = given[0].elts
            values = [self.value(argument, depth + 1) for argument in given]
            return self._applied(node, _OF_LISTS[name], values)
        if name not in _FUNCTIONS:
            raise self._refusal(node, f"the function {name}{_nearest(name)}")
        function, counts = _FUNCTIONS[name]
        if len(given) not in counts:
            raise self._refusal(node, f"{name}() with {len(given)} arguments")
        return self._applied(node, function, *[self.value(argument, depth + 1) for argument in given])

    def _applied(self, node: ast.expr, function: Callable[..., Any], *arguments: Any) -> Number:
        try:
            return _kept(function(*arguments))
        except _Refused as reason:
            raise self._refusal(node, str(reason)) from None
        except (ArithmeticError, ValueError, TypeError) as error:
            raise refusal(f"cannot calculate `{_spelled(node)}` ({self._place(node)}): {error}") from None

    def _refusal(self, node: ast.expr, what: str, hint: str = "") -> Exception:
        return refusal(f"{what} is not allowed ({self._place(node)}){hint}")

    def _place(self, node: ast.expr) -> str:
        lines = self.source.strip().encode().split(b"\n")
        # The parser counts bytes; a reader counts characters.
        before = lines[node.lineno - 1][: node.col_offset] if node.lineno <= len(lines) else b""
        column = len(before.decode("utf-8", "replace")) + 1 + (self.indent if node.lineno == 1 else 0)
        return f"column {column}" if len(lines) == 1 else f"line {node.lineno}, column {column}"


def _nearest(name: str) -> str:
    found = difflib.get_close_matches(name, _NAMES, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _spelled(node: ast.AST) -> str:
    try:
        text = ast.unparse(node)
    except (RecursionError, ValueError):
        return type(node).__name__
    return text if len(text) <= 40 else f"{text[:37]}..."
