"""Reward functions of the user's own, in the signature that TRL's users know.

A function is called by keyword with `prompts`, `completions`, `completion_ids` and the data's columns, each a list with
one entry per completion. It returns as many numbers, with None where it does not apply:

    def brevity(completion_ids, **columns):
        return [-len(ids) / 100 for ids in completion_ids]

Besides the columns there is `gold`, the answer as it is compared. The weighted values are added to the rewards of
`verdicts` wherever completions are judged: in reinforcement, evaluation and `sample`.

A function is called in this process, and ends the run where it raises or hangs. A contained one is called in a child of
a worker, as programs are run, with one completion a call. What a completion can bring about there that the function
cannot catch (the limits of time and memory, what the sandbox refuses, a sudden end) makes its value None; an exception
ends the run as ever. Not contained: an answer's code that a function runs in its own process can return for it.
"""

import base64
import collections
import contextlib
import ctypes
import dataclasses
import importlib
import inspect
import math
import numbers
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from reft_jax.reward.programs import ProgramResult

_PATIENCE = 10.0  # seconds for a function that is told to end
_ARGUMENTS = ("prompts", "completions", "completion_ids")
_NONE, _RAISED = "None", "raised "  # what a worker sends in place of a number


@dataclasses.dataclass(frozen=True)
class RewardFunction:
    """A reward function and its share in the reward.

    Attributes:
        name: what its values are logged under: the last part of its path, or all of it where two end alike.
        path: where it was imported from.
        weight: what its values are multiplied by; 0 only logs them.
        call: the function.
        contained: whether it is called in workers, which have limits of their own.
    """

    name: str
    path: str
    weight: float
    call: Callable[..., Any]
    contained: bool = False


class Workers(Protocol):
    """What calls contained functions: `pool.ProgramRunner`, which workers, that import this module, need not know."""

    def start_function(self, path: str) -> None:
        """Has a worker import a function."""

    def call_function(self, path: str, arguments: Sequence[str]) -> list[ProgramResult]:
        """What a function says to each of some pickled arguments."""


def load_functions(
    functions: Mapping[str, float | Mapping[str, bool | float]], runner: Workers | None = None
) -> tuple[RewardFunction, ...]:
    """Imports functions, given as import path (`my_rewards.brevity`) to weight, or to `weight` and `contained`.

    Args:
        functions: of `reward.functions`.
        runner: its workers import contained ones, which are not imported here.

    Raises:
        ValueError: naming the path: there is no such module or function in it, its module fails to import (the
            exception is the cause), it cannot be called or is asynchronous, or the weight is not a finite number.
    """
    names = collections.Counter(path.rpartition(".")[2] for path in functions)
    loaded = []
    for path, given in functions.items():
        settings = given if isinstance(given, Mapping) else {"weight": given}
        weight, contained = settings.get("weight"), bool(settings.get("contained"))
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"reward function {path!r}: the weight {weight!r} is not a finite number")
        name = path.rpartition(".")[2]
        call = _contained(path, runner) if contained else _import(path)
        loaded.append(RewardFunction(name if names[name] == 1 else path, path, float(weight), call, contained))
    return tuple(loaded)


def _contained(path: str, runner: Workers | None) -> Callable[..., list[float | None]]:
    """A function as the workers of a pool call it, one completion a call."""
    if runner is None:
        raise ValueError(f"reward function {path!r}: contained ones need a ProgramRunner")
    try:
        runner.start_function(path)
    except RuntimeError as error:
        raise ValueError(f"reward function {path!r} cannot be imported in a worker: {error}") from error
    worked = False

    def call(**columns: Sequence[Any]) -> list[float | None]:
        nonlocal worked
        rows = [dict(zip(columns, ([entry] for entry in row))) for row in zip(*columns.values())]
        results = runner.call_function(path, [base64.b64encode(pickle.dumps(row)).decode("ascii") for row in rows])
        for result in results:
            if isinstance(result.value, str) and result.value.startswith(_RAISED):
                raise _RaisedError(result.value)
        worked = worked or any(result.outcome == "ok" for result in results)
        if results and not worked:  # as one that opens a file of its own, or imports a module late
            raise _RaisedError(
                f"returned for none of {len(results)} completions in a worker ({results[0].outcome}: "
                f"{results[0].detail}): it may have no file, network or process, its modules are imported before, and "
                "reward.program_timeout_s and program_memory_mb are its limits"
            )
        return [r.value if r.outcome == "ok" and isinstance(r.value, int | float) else None for r in results]

    return call


class _RaisedError(Exception):
    """What a contained function did that ends a run."""


def worker_call(path: str) -> Callable[[str], float | str]:
    """The function of a worker that calls another for one completion: pickled arguments in, a number or a text out."""
    function = _import(path)

    def call(entry: str) -> float | str:
        arguments = pickle.loads(base64.b64decode(entry))
        try:
            (value,) = _checked(function(**arguments), path, 1)
        except (MemoryError, PermissionError):  # the worker tells what these are
            raise
        except Exception as error:
            return f"{_RAISED}{type(error).__name__}: {error}"[:200]
        return _NONE if value is None else value

    return call


def call_functions(
    functions: Sequence[RewardFunction],
    *,
    prompts: Sequence[str],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
    timeout: float = math.inf,
) -> dict[str, list[float | None]]:
    """The values of each function by its name, one per completion; True and False count as 1 and 0.

    Each function gets lists of its own, so that it may sort or change them; the entries of columns are shared.

    Raises:
        ValueError: a column has the name of another argument or not one entry per completion, or, naming the function
            and the row, a result is no list, tuple or array of finite numbers and None, one per completion.
        RuntimeError: naming the function, where it raises, be it SystemExit; the exception is the cause.
        TimeoutError: naming the function, where it takes longer than `timeout` seconds by the clock.
    """
    arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    for name, column in (*arguments.items(), *columns.items()):
        if len(column) != len(completions):
            raise ValueError(f"{name!r} has {len(column)} entries for {len(completions)} completions")
    if clashes := [name for name in _ARGUMENTS if name in columns]:
        raise ValueError(f"the data's columns {clashes} are called as what reward functions get besides: rename them")
    values = {}
    for function in functions:
        own = {name: list(column) for name, column in {**columns, **arguments}.items()}
        own["completion_ids"] = [list(ids) for ids in completion_ids]
        try:
            with _limit(math.inf if function.contained else timeout, function.path):
                result = function.call(**own)
        except _TooSlow:
            raise TimeoutError(_too_slow(function.path, timeout)) from None
        except _RaisedError as error:
            raise RuntimeError(f"reward function {function.path!r} {error}") from error
        except KeyboardInterrupt:  # of the run
            raise
        except BaseException as error:  # SystemExit, too, whose code would be taken for the run's
            message = f"reward function {function.path!r} raised {type(error).__name__}: {error}"
            raise RuntimeError(message) from error
        values[function.name] = _checked(result, function.path, len(completions))
    return values


def weighted_sum(functions: Sequence[RewardFunction], values: Mapping[str, Sequence[float | None]]) -> list[float]:
    """What the functions add to each completion's reward; None counts as nothing. Empty without functions."""
    columns = [values[function.name] for function in functions]
    weights = [function.weight for function in functions]
    return [
        sum((weight * value for weight, value in zip(weights, row) if value is not None), 0.0) for row in zip(*columns)
    ]


class _TooSlow(BaseException):
    """Raised in a function that is to end: no Exception, which a handler of its own would take for another's."""


@contextlib.contextmanager
def _limit(timeout: float, path: str) -> Iterator[None]:
    """Raises `_TooSlow` in this thread after `timeout` seconds by the clock, and again at the end if that was caught.

    No signal is used, which the function may use itself. It is raised between two of Python's instructions: where none
    is reached in `_PATIENCE` seconds more, the process ends, having said why.
    """
    if math.isinf(timeout):
        yield
        return
    done, fired, lock = threading.Event(), threading.Event(), threading.Lock()
    thread, throw = ctypes.c_ulong(threading.get_ident()), ctypes.pythonapi.PyThreadState_SetAsyncExc

    def watch() -> None:
        if done.wait(timeout):
            return
        with lock:  # so that it does not reach what comes after
            if done.is_set():
                return
            fired.set()
            throw(thread, ctypes.py_object(_TooSlow))
        if not done.wait(_PATIENCE):
            print(f"error: {_too_slow(path, timeout)}", file=sys.stderr, flush=True)
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        try:
            with lock:
                done.set()
        finally:  # it may be raised in the line before
            done.set()
            if fired.is_set():
                throw(thread, None)
                raise _TooSlow


def _too_slow(path: str, timeout: float) -> str:
    return (
        f"reward function {path!r} did not return in {timeout:g} s: mend it, or give it longer by "
        "reward.function_timeout_s"
    )


def _import(path: str) -> Callable[..., Any]:
    module_name, _, name = path.rpartition(".")
    problem = f"reward function {path!r}: "
    if not all(part.isidentifier() for part in path.split(".")) or not module_name:
        raise ValueError(problem + "not an import path like my_rewards.brevity")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:  # of the run
        raise
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise ValueError(f"{problem}there is no module {missing!r}; is its folder on PYTHONPATH?") from error
        raise ValueError(f"{problem}importing {module_name!r} raised {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise ValueError(f"{problem}module {module_name!r} has no {name!r}")
    call = getattr(module, name)
    if not callable(call):
        raise ValueError(f"{problem}a {type(call).__name__} cannot be called")
    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None)):  # noqa: B004
        raise ValueError(f"{problem}asynchronous functions are not supported")
    return call


def _checked(result: Any, path: str, count: int) -> list[float | None]:
    """A function's result as floats and None."""
    entries = result.tolist() if hasattr(result, "tolist") else result  # of NumPy and its like
    if not isinstance(entries, list | tuple):
        raise ValueError(f"reward function {path!r} returned a {type(result).__name__}, not a list")
    if len(entries) != count:
        raise ValueError(f"reward function {path!r} returned {len(entries)} values for {count} completions")
    return [
        None if entry is None else _number(entry, f"{path!r} returned for row {row}")
        for row, entry in enumerate(entries)
    ]


def _number(entry: Any, where: str) -> float:
    scalar = entry.item() if hasattr(entry, "item") and getattr(entry, "ndim", 0) == 0 else entry
    try:
        number = float(scalar) if isinstance(scalar, numbers.Real) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        what = number if isinstance(scalar, numbers.Real) else f"a {type(entry).__name__}"
        raise ValueError(f"reward function {where} {what}: neither a finite number nor None")
    return number
