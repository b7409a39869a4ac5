"""Conditions: a small, safe language with Python's syntax and meaning.

Safe by construction: Python's own parser reads the text, then every syntax node must be in the tables
below, and a small interpreter walks the tree. Nothing is compiled, no attribute is ever looked up, and
no value can grow past the bounds, so that a condition can neither escape nor hang nor eat memory.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinyllm.errors import ExpressionError
from tinyllm.message import Message

SOURCE_CHARS_MAX = 2_000
DEPTH_MAX = 32
SIZE_MAX = 1_000_000
#: Characters that one `.strip` looks for.
STRIPPED_CHARS_MAX = 1_000
INTEGER_BITS_MAX = 64

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_NUMBERS_ONLY = (ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, tuple[Callable[..., Any], range]] = {
    "len": (len, range(1, 2)),
    "str": (str, range(2)),
    "int": (int, range(2)),
    "float": (float, range(2)),
    "bool": (bool, range(2)),
    "min": (min, range(1, 100)),
    "max": (max, range(1, 100)),
    "sum": (sum, range(1, 3)),
    "any": (any, range(1, 2)),
    "all": (all, range(1, 2)),
}
_METHODS: dict[str, tuple[type, range]] = {
    "get": (dict, range(1, 3)),
    "lower": (str, range(1)),
    "upper": (str, range(1)),
    "strip": (str, range(2)),
    "startswith": (str, range(1, 2)),
    "endswith": (str, range(1, 2)),
}
#: What an evaluation may raise for a value that does not fit; everything else would be our own bug.
_FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, RecursionError, AttributeError)


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed condition. `names` are the names it reads, in order of first use."""

    source: str
    names: tuple[str, ...]
    body: ast.expr

    def evaluate(self, names: Mapping[str, Any]) -> Any:
        """The value with `names` bound; a name that is not among them is None.

        Raises ExpressionError when it fails: a type that does not fit, a division by zero, an
        integer over 64 bits, a text or list over 1,000,000.
        """
        try:
            return _value(self.body, names)
        except ExpressionError:
            raise
        except _FAILURES as error:
            # Some errors quote the value, which may be a whole text.
            reason = str(error)[:200]
            raise ExpressionError(f"{self.source!r} failed: {type(error).__name__}: {reason}") from None


def parse(source: str) -> Expression:
    """Parse a condition; raises ExpressionError that names what is not allowed and at which column."""
    if len(source) > SOURCE_CHARS_MAX:
        raise ExpressionError(f"{len(source)} characters; a condition has at most {SOURCE_CHARS_MAX}")
    try:
        with warnings.catch_warnings():
            # The parser warns about doubtful Python ("is" with a literal, odd escapes); we refuse or allow.
            warnings.simplefilter("ignore")
            body = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise ExpressionError(f"does not parse: {reason}") from None
    names: dict[str, None] = {}
    _check(body, 1, names)
    return Expression(source, tuple(names), body)


def names_of(message: Message, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The names a condition or a template can use on `message`, as plain JSON values.

    The payload's fields and extra keys, `variables`, and `metadata`: the payload's, completed by those
    fields of the message's own metadata that were set.
    """
    names = message.payload.model_dump(mode="json")
    measured = message.metadata.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return {**names, "metadata": {**measured, **names["metadata"]}, "variables": dict(variables)}


# --- what may be written -------------------------------------------------------------------------------


def _refuse(node: ast.AST, what: str) -> ExpressionError:
    column = getattr(node, "col_offset", 0) + 1
    return ExpressionError(f"{what} is not allowed in a condition (column {column})")


def _check(node: ast.expr, depth: int, names: dict[str, None]) -> None:
    if depth > DEPTH_MAX:
        raise ExpressionError(f"nested more than {DEPTH_MAX} levels deep")
    for child in _children(node):
        _check(child, depth + 1, names)
    if isinstance(node, ast.Name) and node.id not in names:
        names[node.id] = None


def _children(node: ast.expr) -> list[ast.expr]:
    """The sub-expressions of `node`, if it is one of the allowed kinds."""
    match node:
        case ast.Constant(value=value):
            if type(value) not in (str, int, float, bool, type(None)):
                raise _refuse(node, f"a {type(value).__name__} literal")
            return []
        case ast.Name(id=name):
            if name.startswith("__"):
                raise _refuse(node, f"the name {name}")
            return []
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return items
        case ast.Dict(keys=keys, values=values):
            if None in keys:
                raise _refuse(node, "** in a dict")
            return [*(key for key in keys if key is not None), *values]
        case ast.BoolOp(values=values):
            return values
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return [operand]
        case ast.BinOp(left=left, op=binary, right=right) if type(binary) in _ARITHMETIC:
            return [left, right]
        case ast.Compare():
            return _compared(node)
        case ast.Subscript(value=value, slice=index) if not isinstance(index, ast.Slice):
            return [value, index]
        case ast.Call():
            return _called(node)
    raise _refuse(node, f"`{_spelled(node)}`")


def _compared(node: ast.Compare) -> list[ast.expr]:
    for op, right in zip(node.ops, node.comparators, strict=True):
        identity = isinstance(op, ast.Is | ast.IsNot)
        if identity and not (isinstance(right, ast.Constant) and type(right.value) in (bool, type(None))):
            raise _refuse(node, "`is` with anything but None, True and False (use ==)")
    return [node.left, *node.comparators]


def _called(node: ast.Call) -> list[ast.expr]:
    if node.keywords:
        raise _refuse(node, "a keyword argument")
    match node.func:
        case ast.Name(id=name) if name in _FUNCTIONS:
            counts, receiver = _FUNCTIONS[name][1], []
        case ast.Attribute(value=value, attr=name) if name in _METHODS:
            counts, receiver = _METHODS[name][1], [value]
        case _:
            raise _refuse(node, f"calling `{_spelled(node.func)}`")
    if len(node.args) not in counts:
        raise _refuse(node, f"{name}() with {len(node.args)} arguments")
    return [*receiver, *node.args]


def _spelled(node: ast.AST) -> str:
    try:
        text = ast.unparse(node)
    except (RecursionError, ValueError):
        return type(node).__name__
    return text if len(text) <= 40 else f"{text[:37]}..."


# --- what it means -------------------------------------------------------------------------------------


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return _bounded(value)
        case ast.Name(id=name):
            return names.get(name)
        case ast.List(elts=items):
            return [_value(item, names) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item, names) for item in items)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_value(key, names): _value(value, names) for key, value in pairs if key is not None}
        case ast.BoolOp(op=op, values=values):
            return _either(isinstance(op, ast.Or), values, names)
        case ast.UnaryOp(op=unary, operand=operand):
            return _bounded(_UNARY[type(unary)](_value(operand, names)))
        case ast.BinOp(left=left, op=binary, right=right):
            return _arithmetic(binary, _value(left, names), _value(right, names))
        case ast.Compare():
            return _comparison(node, names)
        case ast.Subscript(value=value, slice=index):
            return _value(value, names)[_value(index, names)]
        case ast.Call():
            return _call(node, names)
    raise AssertionError(f"unchecked syntax: {ast.dump(node)}")


def _either(stop_at: bool, values: list[ast.expr], names: Mapping[str, Any]) -> Any:
    result: Any = None
    for value in values:
        result = _value(value, names)
        if bool(result) is stop_at:
            break
    return result


def _comparison(node: ast.Compare, names: Mapping[str, Any]) -> bool:
    left = _value(node.left, names)
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        right = _value(comparator, names)
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True


def _arithmetic(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(op, _NUMBERS_ONLY):
        _require_numbers(left, right)
    elif not isinstance(left, int | float):
        # Refused before it is built: two texts of the full size are fine, their sum is not.
        _require_size(len(left) + len(right))
    return _bounded(_ARITHMETIC[type(op)](left, right))


def _call(node: ast.Call, names: Mapping[str, Any]) -> Any:
    arguments = [_value(argument, names) for argument in node.args]
    if isinstance(node.func, ast.Name):
        if node.func.id == "sum":
            _require_numbers(*arguments[0], *arguments[1:])
        elif node.func.id == "str":
            _require_printable(*arguments)
        return _bounded(_FUNCTIONS[node.func.id][0](*arguments))
    assert isinstance(node.func, ast.Attribute)
    receiver, kind = _value(node.func.value, names), _METHODS[node.func.attr][0]
    if not isinstance(receiver, kind):
        raise TypeError(f".{node.func.attr} needs a {kind.__name__}, not {type(receiver).__name__}")
    if node.func.attr == "strip" and arguments and isinstance(arguments[0], str):
        # Python compares each character with all of these; a text of its own length would take for ever.
        _require_size(len(arguments[0]), STRIPPED_CHARS_MAX)
    return _bounded(getattr(kind, node.func.attr)(receiver, *arguments))


def _require_numbers(*values: Any) -> None:
    for value in values:
        if not isinstance(value, int | float):
            raise TypeError(f"a number is needed, not {type(value).__name__}")


def _require_size(size: int, most: int = SIZE_MAX) -> None:
    if size > most:
        raise ValueError(f"a text or list of {size}; at most {most}")


def _require_printable(*values: Any) -> None:
    """Refuse what `str` would make too long, before it is built: `[content, content]` is small, its text is not."""
    if len(values) == 1 and isinstance(values[0], str):
        return
    size, waiting = 0, list(values)
    while waiting:
        _require_size(size)
        match waiting.pop():
            case str() as text:
                # It stands in quotes, and each odd character as up to ten.
                size += len(repr(text[: SIZE_MAX + 1]))
            case int() as number:
                size += number.bit_length() // 3 + 2
            case float():
                size += 25
            case list() | tuple() as items:
                size += 2 * len(items) + 2
                _require_size(size)
                waiting += items
            case dict() as mapping:
                size += 4 * len(mapping) + 2
                _require_size(size)
                waiting += [*mapping.keys(), *mapping.values()]
    _require_size(size)


def _bounded(value: Any) -> Any:
    if type(value) is int and value.bit_length() > INTEGER_BITS_MAX:
        raise ValueError(f"an integer of {value.bit_length()} bits; at most {INTEGER_BITS_MAX}")
    if isinstance(value, str | list):
        _require_size(len(value))
    return value
