"""Programs that are nothing but arithmetic, computed here: what most of P-CoT is, without a fork for each.

`programs.ProgramRunner` asks `evaluate` first and sends its workers only what comes back as None. This runs in the
process that trains, so a program is bounded before Python's parser sees it, nothing in it is executed, and whatever is
not plainly harmless and plainly computed as the workers' children compute it is left to them.
"""

import ast
import builtins
import operator
import re
from collections.abc import Callable
from typing import Any, Literal

from reft_jax.reward.answers import Rules
from reft_jax.reward.worker import message, plain_value, reference_source

# What the parser sees is bounded so that it needs less than 512 KB of the C stack and at worst about 0.1 s.
_LENGTH = 4000  # characters
_BRACKETS = 40  # of the opening kinds, in the whole text
# Backslashes and numbers run into a keyword (hexadecimal ones end in letters) make the parser warn, and what a warning
# does is up to this process's settings. So are long integers; the lowest limit that can be set is 640 digits.
_ODD = re.compile(r"\\|0[xX]|[\d.][jJ]?(?:and|else|for|i[fns]|not|or)|[\d_]{300}")
_DEPTH = 50  # of an expression
_BITS = 2048  # of an integer, 617 digits

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_SIGNS: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_VISIBLE = {*dir(builtins), "math", "sympy", "solution"}  # to a program that assigns nothing


class _NotOurs(Exception):
    """The program needs a worker."""


def evaluate(program: str, rules: Rules) -> tuple[Literal["ok", "error"], str | float | None, str] | None:
    """What a worker would answer for a program, where that is plain to see.

    That is: broken syntax, no program at all, and a `solution()` that consists of an optional docstring, assignments of
    arithmetic (`+ - * / // % **`) over numbers and names, and at most one `return`, at the end. It takes about three
    times as long as parsing the text, and raises nothing.

    Args:
        program: Python source, trusted in nothing.
        rules: as in `programs.ProgramRunner.run`.

    Returns:
        Outcome, value and detail, as in `programs.ProgramResult`; None where a worker must run the program.
    """
    if len(program) > _LENGTH or sum(map(program.count, "([{")) > _BRACKETS or "sympy" in program:
        return None
    if _ODD.search(program):
        return None
    try:
        # [1:] is without the `import math` that the reference adds
        body = _parse(reference_source(program))[1:] if rules == "reference" else _parse(program)
        value, detail = plain_value(_run(_steps(body)), rules)
    except (SyntaxError, ArithmeticError, NameError) as error:
        return "error", None, message(error)
    except (_NotOurs, ValueError, RecursionError, MemoryError, SystemError):
        return None  # the parser's: unencodable text, depth, depth, and two threads that build trees at once
    return "ok", value, detail


def _parse(source: str) -> list[ast.stmt]:
    tree = compile(source, "<program>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    return tree.body


def _steps(body: list[ast.stmt]) -> list[tuple[str | None, ast.expr | None]]:
    """The statements of `solution()` below its docstring as names and what they are given.

    None stands for the `return`, the empty name for an expression alone.
    All are looked at before the first is computed, because a later one could change what an earlier one means.
    """
    if not body:
        raise NameError("name 'solution' is not defined")
    function = body[0]
    if len(body) > 1 or not isinstance(function, ast.FunctionDef) or function.name != "solution":
        raise _NotOurs
    extras = function.decorator_list, function.returns, getattr(function, "type_params", None)  # the last: Python 3.12
    if any(extras) or any(vars(function.args).values()):
        raise _NotOurs
    steps: list[tuple[str | None, ast.expr | None]] = []
    for statement in function.body[ast.get_docstring(function, clean=False) is not None :]:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                steps.append((name, value))
            case ast.AugAssign(ast.Name(id=name), op, value):
                steps.append((name, ast.BinOp(ast.Name(name), op, value)))
            case ast.Return(value) if statement is function.body[-1]:
                steps.append((None, value))
            case ast.Expr(value):  # what a program cut off in a statement ends with
                steps.append(("", value))
            case _:
                raise _NotOurs
    if not all(value is None or _is_arithmetic(value, _DEPTH) for _, value in steps):
        raise _NotOurs
    return steps


def _is_arithmetic(node: ast.expr, depth: int) -> bool:
    """Whether an expression is made of our operators, numbers and names only, and not too deep."""
    if isinstance(node, ast.BinOp):
        below = depth > 0 and _is_arithmetic(node.left, depth - 1) and _is_arithmetic(node.right, depth - 1)
        return below and type(node.op) in _OPERATORS
    if isinstance(node, ast.UnaryOp):
        return depth > 0 and _is_arithmetic(node.operand, depth - 1) and type(node.op) in _SIGNS
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)  # not bool, not complex
    return isinstance(node, ast.Name) and not node.id.startswith("_")


def _run(steps: list[tuple[str | None, ast.expr | None]]) -> float | None:
    """What `solution()` returns; raises what it raises."""
    local = {name for name, _ in steps}
    if any(name and name.startswith("_") for name in local):  # `__debug__` is no name to assign to
        raise _NotOurs
    names: dict[str | None, float] = {}
    for name, value in steps:
        if value is not None:
            names[name] = _compute(value, names, local)
    return names.get(None)


def _compute(node: ast.expr, names: dict[str | None, float], local: set[str | None]) -> float:
    """The value of an expression that `_is_arithmetic`."""
    result: Any  # what operators return
    match node:
        case ast.Constant(value):
            result = value
        case ast.UnaryOp(op, operand):
            result = _SIGNS[type(op)](_compute(operand, names, local))
        case ast.BinOp(left, op, right):
            first, second = _compute(left, names, local), _compute(right, names, local)
            if isinstance(op, ast.Pow) and isinstance(first, int) and isinstance(second, int):
                _refuse_long(first.bit_length() * abs(second))
            result = _OPERATORS[type(op)](first, second)
        case ast.Name(id=name) if name in names:
            result = names[name]
        case ast.Name(id=name) if name not in local and name not in _VISIBLE:
            raise NameError(f"name {name!r} is not defined")
        case _:
            raise _NotOurs
    if isinstance(result, int):
        _refuse_long(result.bit_length())
    elif isinstance(result, complex):
        raise _NotOurs
    return result


def _refuse_long(bits: int) -> None:
    if bits > _BITS:
        raise _NotOurs
