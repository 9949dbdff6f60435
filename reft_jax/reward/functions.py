"""Reward functions of the user's own, in the signature that TRL's users know.

A function is called by keyword with `prompts`, `completions`, `completion_ids` and every column of the data, lists with
one entry for each completion, and returns as many floats, or None where it does not apply:

    def brevity(prompts, completions, completion_ids, **columns):
        return [-len(ids) / 100 for ids in completion_ids]
"""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

_OWN = ("prompts", "completions", "completion_ids")


class RewardFunction(NamedTuple):
    """A function that adds `weight` times its values to the rewards; `name` is what it is logged by."""

    name: str
    path: str
    weight: float
    call: Callable[..., Any]


def load_functions(functions: Mapping[str, float]) -> tuple[RewardFunction, ...]:
    """The functions at import paths such as `my_rewards.brevity`, named as their paths end.

    Raises:
        ValueError: naming the path, for one without a module, a module or a function that is not there, what cannot
            be called in this way, a weight that is not finite, or two functions of one name.
        ImportError: from within a user's module, as it was raised.
    """
    loaded = []
    for path, weight in functions.items():
        module, _, name = path.rpartition(".")
        if not module:
            raise ValueError(
                f"reward.functions: `{path}` names no module; give an import path such as my_rewards.{path}"
            )
        try:
            call = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
                raise  # one that the user's module asks for
            raise ValueError(f"reward.functions: `{path}`: there is no module `{error.name}` to import") from error
        if not callable(call) or inspect.iscoroutinefunction(call):
            kind = "there is none" if call is None else f"it is {call!r}"
            raise ValueError(f"reward.functions: `{path}` must be a function, not asynchronous; {kind}")
        if not math.isfinite(weight):
            raise ValueError(f"reward.functions: the weight of `{path}` is {weight}: it must be finite")
        loaded.append(RewardFunction(name, path, weight, call))
    if len({function.name for function in loaded}) < len(loaded):
        raise ValueError(f"reward.functions: two functions have the same name: {', '.join(functions)}")
    return tuple(loaded)


def call_functions(
    functions: Sequence[RewardFunction],
    *,
    prompts: Sequence[str],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> dict[str, list[float | None]]:
    """What each function says of each completion, by its name.

    Lists are made anew for each function, so that none sees what another did to them.

    Raises:
        ValueError: naming the function, for a result that is not one finite number or None for each completion, and
            for a data column that has the name of an argument.
        RuntimeError: naming the function, where it raised an exception, which is the cause.
    """
    if clashes := sorted(set(columns) & set(_OWN)):
        raise ValueError(
            f"reward.functions: the data has a column `{clashes[0]}`, which functions get already: rename it"
        )
    values = {}
    for function in functions:
        try:
            result = function.call(
                prompts=list(prompts),
                completions=list(completions),
                completion_ids=[list(ids) for ids in completion_ids],
                **{name: list(column) for name, column in columns.items()},
            )
        except Exception as error:
            raise RuntimeError(f"reward function `{function.path}` failed: {type(error).__name__}: {error}") from error
        values[function.name] = _checked(result, function.path, len(completions))
    return values


def _checked(result: Any, path: str, count: int) -> list[float | None]:
    """The result as floats and None, or an error that says what it was."""
    try:
        found = list(result)
    except TypeError:
        raise ValueError(f"reward function `{path}` returned a {type(result).__name__}, not a list of floats") from None
    if len(found) != count:
        raise ValueError(f"reward function `{path}` returned {len(found)} values for {count} completions")
    values: list[float | None] = []
    for row, value in enumerate(found):
        try:
            number = None if value is None else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if number is not None and not (math.isfinite(number) and not isinstance(value, str)):
            raise ValueError(
                f"reward function `{path}` returned {value!r} for completion {row}: no finite number, no None"
            )
        values.append(number)
    return values


def weighted_sum(functions: Sequence[RewardFunction], values: Mapping[str, Sequence[float | None]]) -> list[float]:
    """The sum of weight times value over the functions, for each completion; None counts as nothing."""
    columns = [[function.weight * (value or 0.0) for value in values[function.name]] for function in functions]
    return [math.fsum(row) for row in zip(*columns)]
