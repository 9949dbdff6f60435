"""Programs that are nothing but arithmetic, computed here: what most of P-CoT is, without a fork for each.

`pool.ProgramRunner` asks `evaluate` first and sends its workers only what comes back as None. This runs in the
process that trains, so a program is bounded before Python's parser sees it, nothing in it is executed, and whatever is
not plainly harmless and plainly computed as the workers' children compute it is left to them.
"""

import ast
import builtins
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

from reft_jax.config import Rules
from reft_jax.reward.parse import may_be_parsed
from reft_jax.reward.worker import message, plain_value, reference_source

_DEPTH = 50  # of an expression, so that computing it needs few of Python's frames
_BITS = 2048  # of an integer, 617 digits

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Not: operator.not_}
_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (int, float, round, abs, min, max, sum)}
_VISIBLE = {*dir(builtins), "math", "sympy", "solution"}  # to a program that assigns nothing

_Step = tuple[str | None, ast.expr | None]


class _NotOurs(Exception):
    """The program needs a worker."""


def evaluate(program: str, rules: Rules) -> tuple[Literal["ok", "error"], str | float | None, str] | None:
    """What a worker would answer for a program, where that is plain to see.

    That is: broken syntax, no program at all, and a `solution()` that consists of an optional docstring, assignments of
    expressions to names, and at most one `return`, at the end. Expressions are made of numbers and names, arithmetic
    (`+ - * / // % **`), comparisons (`< <= > >= == !=`), `and`, `or`, `not`, `a if c else b`, and calls of `int`,
    `float`, `round`, `abs`, `min`, `max` and `sum`, the last three of a list or tuple too, if it is written out there.
    On usual programs it takes little longer than parsing the text does. It raises nothing.

    Args:
        program: Python source, trusted in nothing.
        rules: as in `pool.ProgramRunner.run`.

    Returns:
        Outcome, value and detail, as in `programs.ProgramResult`; None where a worker must run the program.
    """
    if not may_be_parsed(program) or "sympy" in program:
        return None
    try:
        # [1:] is without the `import math` that the reference adds
        body = _parse(reference_source(program))[1:] if rules == "reference" else _parse(program)
        value, detail = plain_value(_run(_steps(_solution(body))), rules)
    except (SyntaxError, ArithmeticError, NameError, TypeError, ValueError) as error:
        return "error", None, message(error)
    except (_NotOurs, RecursionError, MemoryError, SystemError):
        return None  # the last three are the parser's: depth, depth, and two threads that build trees at once
    return "ok", value, detail


def _parse(source: str) -> list[ast.stmt]:
    try:
        tree = compile(source, "<program>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    except UnicodeEncodeError as error:
        raise _NotOurs from error
    assert isinstance(tree, ast.Module)
    return tree.body


def _solution(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of `solution()` below its docstring."""
    if not body:
        raise NameError("name 'solution' is not defined")
    function = body[0]
    if len(body) > 1 or not isinstance(function, ast.FunctionDef) or function.name != "solution":
        raise _NotOurs
    extras = function.decorator_list, function.returns, getattr(function, "type_params", None)  # the last: Python 3.12
    if any(extras) or any(vars(function.args).values()):
        raise _NotOurs
    return function.body[ast.get_docstring(function, clean=False) is not None :]


def _steps(statements: list[ast.stmt]) -> list[_Step]:
    """Statements as names and what they are given: None stands for the `return`, the empty name and digits for values
    without a name of their own.

    All are looked at before the first is computed, because a later one could change what an earlier one means.
    """
    steps: list[_Step] = []
    for statement in statements:
        match statement:
            case ast.Assign([ast.Name(id=name)], value):
                steps.append((name, value))
            case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)) if len(targets) == len(values):
                steps += [(str(place), value) for place, value in enumerate(values)]
                steps += [(_name(target), ast.Name(str(place))) for place, target in enumerate(targets)]
            case ast.Assign(targets, value):
                steps.append(("", value))
                steps += [(_name(target), ast.Name("")) for target in targets]
            case ast.AugAssign(ast.Name(id=name), op, value):
                steps.append((name, ast.BinOp(ast.Name(name), op, value)))
            case ast.Return(value) if statement is statements[-1]:
                steps.append((None, value))
            case ast.Expr(value):  # what a program cut off in a statement ends with
                steps.append(("", value))
            case _:
                raise _NotOurs
    level: Sequence[ast.expr] = [value for _, value in steps if value is not None]
    for _ in range(_DEPTH + 1):
        level = [part for node in level for part in _parts(node)]
        if not level:
            return steps
    raise _NotOurs


def _name(target: ast.expr) -> str:
    if not isinstance(target, ast.Name):
        raise _NotOurs
    return target.id


def _parts(node: ast.expr) -> Sequence[ast.expr]:
    """What an expression is computed from, where `_compute` can."""
    match node:
        case ast.Name(id=name) if not name.startswith("_"):
            return ()
        case ast.Constant(value) if type(value) in (int, float):  # not bool, not complex
            return ()
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            return left, right
        case ast.UnaryOp(op, operand) if type(op) in _UNARY:
            return (operand,)
        case ast.Compare(left, ops, others) if all(type(op) in _COMPARISONS for op in ops):
            return left, *others
        case ast.BoolOp(values=values):
            return values
        case ast.IfExp(test, body, orelse):
            return test, body, orelse
        case ast.Call(ast.Name(id="min" | "max" | "sum"), [ast.List(elements) | ast.Tuple(elements), *others], []):
            return *elements, *others
        case ast.Call(ast.Name(id=name), arguments, []) if name in _FUNCTIONS:
            return arguments
    raise _NotOurs


def _run(steps: list[_Step]) -> float | None:
    """What `solution()` returns; raises what it raises."""
    local = {name for name, _ in steps}
    if any(name and name.startswith("_") for name in local):  # `__debug__` is no name to assign to
        raise _NotOurs
    names: dict[str | None, float] = {}
    for name, value in steps:
        if value is not None:
            names[name] = _compute(value, names, local)
    return names.get(None)


def _compute(node: ast.expr, names: dict[str | None, float], local: set[str | None]) -> Any:
    """The value of an expression that `_parts` lets pass: a number; of a display among its parts, a list or tuple."""
    match node:
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Name(id=name) if name not in local and name not in _VISIBLE:
            raise NameError(f"name {name!r} is not defined")
        case ast.Constant(value):
            return value
        case ast.BinOp(left, op, right):
            return _binary(op, _compute(left, names, local), _compute(right, names, local))
        case ast.UnaryOp(op, operand):
            return _UNARY[type(op)](_compute(operand, names, local))
        case ast.Compare(left, ops, others):
            first = _compute(left, names, local)
            for comparison, other in zip(ops, others):
                second = _compute(other, names, local)
                if not _COMPARISONS[type(comparison)](first, second):
                    return False
                first = second
            return True
        case ast.BoolOp(op, values):
            for operand in values:
                result = _compute(operand, names, local)
                if bool(result) == isinstance(op, ast.Or):
                    break
            return result
        case ast.IfExp(test, body, orelse):
            return _compute(body if _compute(test, names, local) else orelse, names, local)
        case ast.Call(ast.Name(id=name), arguments) if name not in local:
            return _call(name, [_compute(argument, names, local) for argument in arguments])
        case ast.List(elements):
            return [_compute(element, names, local) for element in elements]
        case ast.Tuple(elements):
            return tuple(_compute(element, names, local) for element in elements)
    raise _NotOurs


def _binary(op: ast.operator, left: float, right: float) -> float:
    if isinstance(op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
        _refuse_long(left.bit_length() * abs(right))
    return _bounded(_BINARY[type(op)](left, right))


def _call(name: str, arguments: list[Any]) -> float:
    if name == "round" and len(arguments) > 1 and isinstance(arguments[1], int):
        _refuse_long(4 * abs(arguments[1]))  # of 10 ** -digits, by which an integer is divided
    return _bounded(_FUNCTIONS[name](*arguments))


def _bounded(result: Any) -> float:
    if isinstance(result, int):
        _refuse_long(result.bit_length())
    elif not isinstance(result, float):
        raise _NotOurs  # complex
    return result


def _refuse_long(bits: int) -> None:
    if bits > _BITS:
        raise _NotOurs
