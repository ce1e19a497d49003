"""Arithmetic on numbers and lists in configuration files: `!!python/object/apply:eval ["..."]` without running code.

Detectron2's RetinaNet files write their anchors in this way, `[[x, x * 2**(1.0/3)] for x in [32, 64]]`, and Detectron2
evaluates any expression. Here an expression may contain numbers, lists and tuples, + - * / // % **, comprehensions
without conditions, and calls of int, float, round, min, max and range; time and memory are bounded.
conditions, and calls of int, float, round, min, max and range; time and memory are bounded.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_LONGEST = 1000  # characters
_MOST_ELEMENTS = 10_000  # of all lists together
_LARGEST = 1e18  # of a number
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"int": int, "float": float, "round": round, "min": min, "max": max}


def evaluate(text: str) -> Any:
    """Return the number or (nested) list that an expression evaluates to.

    Raises:
        ValueError: an expression that the module does not allow, or that has no value (division by zero, overflow).
    """
    if len(text) > _LONGEST:
        raise ValueError(f"an expression of {len(text)} characters, the limit is {_LONGEST}")
    try:
        return _Evaluator().value(ast.parse(text.strip(), mode="eval").body, {})
    except (SyntaxError, RecursionError, MemoryError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


class _Evaluator:
    def __init__(self) -> None:
        self.elements = 0

    def value(self, node: ast.AST, names: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return self.number(node.value)
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, (ast.List, ast.Tuple)):
            return self.listed(self.value(element, names) for element in node.elts)
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return self.number(_OPERATORS[type(node.op)](self.number(self.value(node.operand, names))))
        if isinstance(node, ast.BinOp):
            left, right = (self.number(self.value(side, names)) for side in (node.left, node.right))
            if isinstance(node.op, ast.Pow):
                self.number(float(left) ** right)  # a float overflows at once; an integer would grow without limit
                return self.number(left**right)
            if type(node.op) in _OPERATORS:
                return self.number(_OPERATORS[type(node.op)](left, right))
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)) and len(node.generators) == 1:
            return self.listed(self.comprehension(node, names))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self.call(node.func.id, [self.value(argument, names) for argument in node.args])
        raise ValueError(f"{ast.unparse(node)!r} is not arithmetic on numbers and lists")

    def comprehension(self, node: ast.ListComp | ast.GeneratorExp, names: Mapping[str, Any]) -> Iterator[Any]:
        (loop,) = node.generators
        if loop.ifs or loop.is_async or not isinstance(loop.target, ast.Name):
            raise ValueError(f"{ast.unparse(node)!r}: expected [... for NAME in ...]")
        for element in self.value(loop.iter, names):
            yield self.value(node.elt, {**names, loop.target.id: element})

    def call(self, name: str, arguments: list[Any]) -> Any:
        if name == "range" and all(isinstance(argument, int) for argument in arguments):
            return self.listed(range(*arguments))
        if name in _FUNCTIONS:
            return self.number(_FUNCTIONS[name](*arguments))
        raise ValueError(f"{name} is not known; known are {', '.join(_FUNCTIONS)} and range")

    def listed(self, values: Any) -> list[Any]:
        found = []
        for value in values:
            self.elements += 1
            if self.elements > _MOST_ELEMENTS:
                raise ValueError(f"lists of more than {_MOST_ELEMENTS} elements")
            found.append(value)
        return found

    @staticmethod
    def number(value: Any) -> Any:
        if type(value) not in (int, float):
            raise ValueError(f"expected a number, got {type(value).__name__}")
        if not abs(value) <= _LARGEST:
            raise ValueError("a number beyond 1e18")
        return value
