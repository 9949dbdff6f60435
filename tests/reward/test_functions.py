"""Reward functions of the user's own: found by import path, called as TRL calls them, and believed only when sound."""

import math

import pytest

from reft_jax.reward.functions import RewardFunction, call_functions, load_functions, weighted_sum

MODULE = """
import math
def brevity(prompts, completions, completion_ids, **columns): return [-len(ids) for ids in completion_ids]
def level(completions, level, **kwargs): return [None if x is None else x / 10 for x in level]
async def later(**kwargs): return []
constant = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    package = tmp_path / "their"
    package.mkdir()
    (package / "rewards.py").write_text(MODULE)
    (package / "broken.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(str(tmp_path))


def call(function, count=2, columns=None):
    functions = [RewardFunction("f", "mine.f", 1.0, function)]
    texts = ["x"] * count
    return call_functions(
        functions, prompts=texts, completions=texts, completion_ids=[[1, 2]] * count, columns=columns or {}
    )


def test_functions_are_found_called_by_keyword_and_summed(module):
    functions = load_functions({"their.rewards.brevity": 0.5, "their.rewards.level": 2})
    assert [(function.name, function.weight) for function in functions] == [("brevity", 0.5), ("level", 2)]
    values = call_functions(
        functions,
        prompts=["a", "b"],
        completions=["c", "d"],
        completion_ids=[[1, 2, 3], []],
        columns={"level": [4, None]},
    )
    assert values == {"brevity": [-3.0, 0.0], "level": [0.4, None]}
    assert weighted_sum(functions, values) == pytest.approx([-1.5 + 0.8, 0.0])


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"brevity": 1.0}, "`brevity` names no module"),
        ({"nowhere.f": 1.0}, "`nowhere.f`: there is no module `nowhere`"),
        ({"their.nowhere.f": 1.0}, r"`their.nowhere.f`: there is no module `their\.nowhere`"),
        ({"their.rewards.f": 1.0}, "`their.rewards.f` must be a function.*there is none"),
        ({"their.rewards.constant": 1.0}, "must be a function.*it is 5"),
        ({"their.rewards.later": 1.0}, "must be a function, not asynchronous"),
        ({"their.rewards.brevity": math.nan}, "weight of `their.rewards.brevity` is nan"),
        ({"math.log": 1.0, "cmath.log": 1.0}, "same name: math.log, cmath.log"),
    ],
)
def test_what_cannot_be_loaded_is_named(module, functions, message):
    with pytest.raises(ValueError, match=message):
        load_functions(functions)


def test_an_import_error_of_their_own_is_shown_as_it_is(module):
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        load_functions({"their.broken.f": 1.0})


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], "`mine.f` returned 1 values for 2 completions"),
        ([], "returned 0 values"),
        (None, "returned a NoneType, not a list"),
        (5.0, "returned a float, not a list"),
        ([1.0, math.nan], "returned nan for completion 1"),
        ([-math.inf, 1.0], "returned -inf for completion 0"),
        (["1", 1.0], "returned '1' for completion 0"),
        ([[1.0], 1.0], r"returned \[1.0\] for completion 0"),
    ],
)
def test_results_that_are_no_rewards_are_named(result, message):
    with pytest.raises(ValueError, match=message):
        call(lambda **_: result)


def test_what_counts_as_a_number():
    import numpy as np

    assert call(lambda **_: (True, None)) == {"f": [1.0, None]}
    assert call(lambda **_: np.array([1, 2], np.int32)) == {"f": [1.0, 2.0]}


def test_an_exception_names_the_function_and_keeps_its_cause():
    with pytest.raises(RuntimeError, match=r"`mine.f` failed: ZeroDivisionError: division by zero") as caught:
        call(lambda **_: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_column_with_the_name_of_an_argument_is_refused():
    with pytest.raises(ValueError, match="column `completions`"):
        call(lambda **_: [1.0, 1.0], columns={"completions": ["a", "b"]})


def test_no_function_sees_what_another_did_to_its_lists():
    seen = []

    def spoil(completion_ids, level, **_):
        completion_ids[0].clear()
        level.clear()
        return [0.0, 0.0]

    def look(completion_ids, level, **_):
        seen.extend([completion_ids, level])
        return [0.0, 0.0]

    functions = [RewardFunction("a", "a", 1.0, spoil), RewardFunction("b", "b", 1.0, look)]
    call_functions(
        functions, prompts=["", ""], completions=["", ""], completion_ids=[[1], [2]], columns={"level": [3, 4]}
    )
    assert seen == [[[1], [2]], [3, 4]]
