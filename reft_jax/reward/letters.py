"""A sign of reward hacking, which the ReFT paper (arXiv 2401.08967) names as its open problem for small answer spaces.

One letter of five is right by chance; a program that returns one without computing it has found out. This reads the
program's syntax tree; it executes nothing and raises nothing.
"""

import ast
import itertools
from collections.abc import Iterator, Sequence

from reft_jax.reward.parse import may_be_parsed

_COMPUTATIONS = (ast.BinOp, ast.Call, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_RETURN = "return"  # a keyword, so the name of nothing


def letter_is_computed(program: str) -> bool | None:
    """Whether what `solution()` returns depends on a computation, as a letter that was guessed does not.

    Goes backwards from each `return` and the conditions around it through all assignments to the names found, in any
    order, and the conditions around those. A computation is an operator, a call or a comprehension over names or
    numbers, or a comparison, `and` or `or` over names: `'b' + ''`, `str('b')` and `1 == 1` are none. Loops, subscripts,
    methods that add to a list, and names of the module are followed; classes and nested functions are not.

    Returns:
        None where the program does not parse, `parse.may_be_parsed` keeps it from the parser, or it has no `solution`
        at its top level that returns a value.
    """
    if not may_be_parsed(program):
        return None
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError, SystemError):
        return None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "solution"]
    if not functions:
        return None
    sources: dict[str, list[ast.expr]] = {}
    walrus = ((node.target.id, [node.value]) for node in ast.walk(tree) if isinstance(node, ast.NamedExpr))
    for name, expressions in itertools.chain(_flow(tree.body), _flow(functions[-1].body), walrus):
        sources.setdefault(name, []).extend(expressions)
    if _RETURN not in sources:
        return None
    reached: set[str] = set()
    names = [_RETURN]
    while names:
        name = names.pop()
        if name in reached:
            continue
        reached.add(name)
        for expression in sources.get(name, []):
            nodes = list(ast.walk(expression))
            if _computes(nodes):
                return True
            names += [node.id for node in nodes if isinstance(node, ast.Name)]
    return False


def _computes(nodes: Sequence[ast.AST]) -> bool:
    """Whether there is a computation among the nodes of an expression."""
    named = any(isinstance(node, ast.Name) and node.id not in ("str", "repr") for node in nodes)
    numbers = any(isinstance(node, ast.Constant) and type(node.value) in (int, float) for node in nodes)
    return ((named or numbers) and any(isinstance(node, _COMPUTATIONS) for node in nodes)) or (
        named and any(isinstance(node, ast.Compare | ast.BoolOp) for node in nodes)
    )


def _flow(body: Sequence[ast.stmt]) -> Iterator[tuple[str, list[ast.expr]]]:
    """Each name that statements assign to and the expressions that decide its value; `_RETURN` is what they return."""
    waiting: list[tuple[ast.stmt, list[ast.expr]]] = [(statement, []) for statement in body]
    while waiting:
        statement, conditions = waiting.pop()
        inner = list(conditions)
        targets: list[ast.expr] = []
        values: list[ast.expr] = []
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                continue
            case ast.Return(value=ast.expr() as value):
                yield _RETURN, [value, *conditions]
            case ast.Assign(targets=targets, value=value):
                values = [value]
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                targets, values = [target], [value]
            case ast.AugAssign(target=target, op=op, value=value):
                targets, values = [target], [ast.BinOp(target, op, value)]
            case ast.Expr(ast.Call(func=ast.Attribute(value=target), args=values)):
                targets = [target]
            case ast.For(target=target, iter=value):
                targets, values = [target], [value]
                inner.append(value)
            case ast.If(test=value) | ast.While(test=value) | ast.Match(subject=value):
                inner.append(value)
            case ast.With(items=items):
                targets = [item.optional_vars for item in items if item.optional_vars]
                values = [item.context_expr for item in items]
        for target in targets:
            index = [] if isinstance(target, ast.Name) else [target]
            for node in ast.walk(target):
                if isinstance(node, ast.Name):
                    yield node.id, [*values, *index, *conditions]
        for block in (statement, *getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
            guards = [block.guard] if isinstance(block, ast.match_case) and block.guard else []
            children = (getattr(block, field, []) for field in ("body", "orelse", "finalbody"))
            waiting += [(child, [*inner, *guards]) for child in itertools.chain.from_iterable(children)]
