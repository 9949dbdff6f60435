"""Tasks of reasoning-gym: their items, and their scorers, which run what a model wrote (`eval`, sympy's `parse_expr`).

    python -P -m reft_jax.reward.scorers '{"name": ..., "config": {...}, "seed": ..., "size": ...}'

prints `size` items, a line of JSON each, for `data.tasks`. It is a command, and its output the same everywhere, because
a few tasks go by the order of sets, which PYTHONHASHSEED decides. An item's `entry` is what its scorer needs, pickled:
it holds tuples and sets, and only a worker opens it.

Scorers run in workers, whose limits and sandbox hold for them as for programs. That alone would leave an answer that is
executed free to write its own score. So an audit hook sees each code that is made of a text before it runs, and
raises where it has a name other than sympy's public ones and a few functions of numbers, or functions in it. Honest
answers are numbers, lists and expressions. The scorer takes it for an answer that it cannot read; one that could have
done something is `forbidden`, whatever the scorer says.

Imported by `worker` in a process of its own, and by nothing that trains.
"""

import base64
import builtins
import contextlib
import dataclasses
import difflib
import dis
import errno
import io
import json
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

_FUNCTIONS = {"abs", "max", "min", "pow", "round", "sum"}
_IMPORT = {"sympy"}  # `from sympy import *`, which parse_expr runs
_GENERATED = "monomial_"  # functions that sympy writes and runs for polynomials, of no text of the answer's
_ACTS = ("CALL", "ATTR", "METHOD", "SUBSCR", "IMPORT")  # of instructions that do something; a name alone does nothing
_NOT_FINITE = re.compile(r"(?<![a-z])(?:nan|inf(?:inity)?)[ij]?(?![a-z])", re.IGNORECASE)
_NUMBERS = re.compile(r"[0-9.,;eij*+/()\[\]{}-]*", re.IGNORECASE)
_CLOSE = 1e-4  # what coin_flip's scorer takes for equal
SHOWN = 8  # names that a refusal lists


def scores(tasks: Sequence[tuple[str, dict[str, Any]]]) -> Callable[[int, str, str], float]:
    """The scorers of some tasks as one function of a task's place, an item's `entry` and an answer.

    All is loaded and has been used once: afterwards there may be no file to be opened.

    Args:
        tasks: name and parameters of each.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # one of them prints dots
        made = [_dataset(name, config) for name, config in tasks]
        for dataset in made:
            entry = dataset[0]
            dataset.score_answer(entry["answer"], entry)
    allowed = _allowed_names()

    def score(task: int, entry: str, answer: str) -> float:
        item = pickle.loads(base64.b64decode(entry))
        refused = _refuse_code(allowed)
        found = float(made[task].score_answer(answer, item))
        if refused:
            raise PermissionError(errno.EPERM, f"the answer is code: {', '.join(refused[:SHOWN])}")
        return borne_out(found, answer, item)

    return score


def borne_out(score: float, answer: str, item: Mapping[str, Any]) -> float:
    """A task's score, where it is full for an answer that cannot be right what it should be.

    `complex_arithmetic` has min(1, e^-|answer - gold|), which is 1 where the answer has a `nan` in it: of any task, an
    answer of numbers of which one is not finite is wrong unless it is the gold answer. `coin_flip` gives the shared
    digits over the shorter of two decimals, so that `0` is right of nearly all: it is over the longer one here.

    Args:
        score: of the task's own `score_answer`.
        answer: as it was given.
        item: the task's, with its gold answer.
    """
    gold = str(item["answer"]).strip()
    if score < 1 or answer.strip() == gold:
        return score
    tight = "".join(answer.split())
    if _NOT_FINITE.search(tight) and _NUMBERS.fullmatch(_NOT_FINITE.sub("", tight)):
        return 0.0
    if item.get("metadata", {}).get("source_dataset") == "coin_flip":
        given, right = (float(Fraction(text.replace(",", ""))) for text in (answer, gold))
        lengths = sorted(len(f"{number:.10g}") for number in (given, right))
        return score if abs(given - right) <= _CLOSE else lengths[0] / lengths[1]
    return score


def items(name: str, config: dict[str, Any], seed: int, size: int) -> Iterator[dict[str, str]]:
    """The first `size` items of a task: question, answer (empty where a task has none of its own) and `entry`."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = _dataset(name, config, seed=seed, size=size)
    for i in range(size):
        with contextlib.redirect_stdout(io.StringIO()):
            entry = dataset[i]
        answer = "" if entry["answer"] is None else str(entry["answer"])
        yield {
            "question": entry["question"],
            "answer": answer,
            "entry": base64.b64encode(pickle.dumps(entry)).decode("ascii"),
        }


def _dataset(name: str, config: dict[str, Any], **given: int) -> Any:
    import reasoning_gym
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3)
        raise ValueError(f"there is no such task{', did you mean ' + ' or '.join(near) if near else ''}")
    own = [field.name for field in dataclasses.fields(DATASETS[name][1]) if field.name not in ("seed", "size")]
    if unknown := [key for key in config if key not in own]:
        raise ValueError(f"it has no parameter {', '.join(unknown)}; there are {', '.join(own)}")
    if name == "composite":
        config = {**config, "datasets": [DatasetSpec(**part) for part in config.get("datasets", [])]}
    return reasoning_gym.create_dataset(name, **{"seed": 0, "size": 1, **config, **given})


def _allowed_names() -> set[str]:
    """The names that an answer's code may have: what is public in sympy and can be called or is a term."""
    import sympy

    public = {name: getattr(sympy, name) for name in sympy.__all__}
    terms = {name for name, value in public.items() if callable(value) or isinstance(value, sympy.Basic)}
    return (terms - set(dir(builtins))) | _FUNCTIONS | _IMPORT


def _refuse_code(allowed: set[str]) -> list[str]:
    """Refuses, from now on and in this process, code made of a text; the list has what it would have done.

    Names of one letter are a task's variables. Code with a file is a module that is being imported.
    """
    refused: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event != "exec" or not args[0].co_filename.startswith("<") or args[0].co_filename.startswith("<frozen"):
            return
        names, acts = _names(args[0])
        if others := [name for name in names if name not in allowed and not name.startswith(_GENERATED)]:
            refused.extend(others if acts else [])
            raise PermissionError(errno.EPERM, "an answer's code is not run")

    sys.addaudithook(hook)
    return refused


def _names(code: types.CodeType) -> tuple[list[str], bool]:
    """The names in a code, but for those of one letter, and of the functions in it; and whether it does something."""
    names = [name for name in code.co_names if len(name) > 1]
    functions = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    for function in functions:
        names += [function.co_name, *_names(function)[0]]
    acts = any(part in instruction.opname for instruction in dis.get_instructions(code) for part in _ACTS)
    return names, acts or bool(functions)


def main(arguments: list[str]) -> int:
    """Prints items; a fault is one line on stderr and exit code 2."""
    try:
        for item in items(**json.loads(arguments[0])):
            print(json.dumps(item))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
