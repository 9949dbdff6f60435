"""Users' own reward functions: what loads, what is called with what, and that each fault names its function."""

import math
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from reft_jax.parallel.processes import Interrupted
from reft_jax.reward import pool
from reft_jax.reward.functions import RewardFunction, call_functions, load_functions, weighted_sum

SOURCES = {
    "__init__": "",
    "style": "def brevity(completion_ids, **columns):\n    return [-len(ids) / 100 for ids in completion_ids]\n"
    "def tone(**columns):\n    return [0]\n"
    "async def later(**columns):\n    return [0]\n"
    "class Later:\n    async def __call__(self, **columns):\n        return [0]\n"
    "waiting = Later()\nlimit = 3\n",
    "daring": "import os, signal, socket, sys\n"
    "def run(completions, gold, level, **columns):\n"
    "    names = {'os': os, 'signal': signal, 'socket': socket, 'gold': gold[0], 'level': level[0]}\n"
    "    return [eval(text, names) for text in completions]\n"
    "def reads(**columns):\n    return [float(open('/etc/hostname').read() != '')]\n",
    "other": "def tone(**columns):\n    return [1]\n",
    "needy": "import no_such_library_at_all\n",
    "raising": "raise ImportError('their own words')\n",
    "dividing": "1 / 0\n",
    "leaving": "import sys\nsys.exit(3)\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The import name of a package of reward functions."""
    folder = tmp_path / "users_rewards"
    folder.mkdir()
    for name, source in SOURCES.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder.name
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def function(call, weight=1.0):
    return RewardFunction("f", "mine.f", weight, call)


def call(*functions, columns=None, count=2):
    return call_functions(
        functions,
        prompts=[f"p{i}" for i in range(count)],
        completions=[f"c{i}" for i in range(count)],
        completion_ids=[[i] * (i + 1) for i in range(count)],
        columns=columns or {},
    )


def test_functions_are_imported_called_and_weighed(package):
    functions = load_functions({f"{package}.style.brevity": 2, f"{package}.style.tone": 0.5})
    assert [(f.name, f.weight) for f in functions] == [("brevity", 2.0), ("tone", 0.5)]
    assert call(*functions, count=1) == {"brevity": [-0.01], "tone": [0.0]}


def test_functions_of_one_name_are_told_apart_by_their_paths(package):
    functions = load_functions({f"{package}.style.tone": 1.0, f"{package}.other.tone": 1.0})
    assert call(*functions, count=1) == {f"{package}.style.tone": [0.0], f"{package}.other.tone": [1.0]}


@pytest.mark.parametrize(
    ("path", "weight", "says"),
    [
        ("style.nothing", 1.0, "has no 'nothing'"),
        ("style.limit", 1.0, "a int cannot be called"),
        ("style.later", 1.0, "asynchronous"),
        ("style.waiting", 1.0, "asynchronous"),
        ("absent.f", 1.0, "no module '{package}.absent'"),
        ("needy.f", 1.0, "raised ModuleNotFoundError: No module named 'no_such_library_at_all'"),
        ("raising.f", 1.0, "raised ImportError: their own words"),
        ("dividing.f", 1.0, "raised ZeroDivisionError"),
        ("leaving.f", 1.0, "raised SystemExit: 3"),
        ("style..tone", 1.0, "not an import path"),
        ("style.tone", math.nan, "weight nan"),
        ("style.tone", math.inf, "weight inf"),
        ("style.tone", "1", "weight '1'"),
    ],
)
def test_reward_functions_that_cannot_be_loaded_are_named(package, path, weight, says):
    with pytest.raises(ValueError, match=re.escape(says.format(package=package))) as error:
        load_functions({f"{package}.{path}": weight})
    assert f"{package}.{path}" in str(error.value)


@pytest.mark.parametrize("path", ["brevity", "", ".style.tone", "no_such_package.f"])
def test_what_is_no_path_is_an_error_that_names_it(path):
    with pytest.raises(ValueError, match=re.escape(repr(path))):
        load_functions({path: 1.0})


def test_arguments_come_by_keyword_with_the_columns():
    seen = {}
    call(function(lambda **arguments: seen.update(arguments) or [0, 0]), columns={"level": ("easy", "hard")})
    assert seen == {
        "prompts": ["p0", "p1"],
        "completions": ["c0", "c1"],
        "completion_ids": [[0], [1, 1]],
        "level": ["easy", "hard"],
    }


def test_a_function_cannot_change_what_the_next_one_sees():
    def vandal(completions, completion_ids, level, **columns):
        completions.reverse(), completion_ids[1].clear(), level.clear()
        return [0, 0]

    def witness(completions, completion_ids, level, **columns):
        return [completions == ["c0", "c1"] and completion_ids == [[0], [1, 1]], level == [1, 2]]

    functions = [RewardFunction("a", "m.a", 1.0, vandal), RewardFunction("b", "m.b", 1.0, witness)]
    assert call(*functions, columns={"level": [1, 2]})["b"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("result", "values"),
    [
        ([1, 0.5], [1.0, 0.5]),
        ((None, True), [None, 1.0]),
        (np.array([1, 2]), [1.0, 2.0]),
        (np.float32([0.5, 2]), [0.5, 2.0]),
        ([np.float32(0.5), np.bool_(False)], [0.5, 0.0]),
    ],
)
def test_numbers_of_all_kinds_become_floats(result, values):
    found = call(function(lambda **columns: result))["f"]
    assert found == values
    assert all(type(value) in (float, type(None)) for value in found)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ([1.0], "1 values for 2"),
        ([1.0, 2.0, 3.0], "3 values for 2"),
        ([1.0, math.nan], "row 1 nan"),
        ([-math.inf, 1.0], "row 0 -inf"),
        ([0, 10**400], "row 1 inf"),
        ([0, "1"], "row 1 a str"),
        ([[0], [1]], "row 0 a list"),
        ([0, 1j], "row 1 a complex"),
        (np.zeros((2, 1)), "row 0 a list"),
        (None, "a NoneType"),
        (1.0, "a float"),
        ("12", "a str"),
        ({0: 1.0, 1: 2.0}, "a dict"),
        ({0.5, 1.5}, "a set"),
        ((i for i in range(2)), "a generator"),
    ],
)
def test_results_that_are_no_rewards_are_errors_that_name_function_and_row(result, says):
    with pytest.raises(ValueError, match=f"'mine.f' returned.*{re.escape(says)}"):
        call(function(lambda **columns: result))


@pytest.mark.parametrize("kind", [ZeroDivisionError, TimeoutError, SystemExit, GeneratorExit, BaseException])
def test_an_exception_names_its_function_and_is_the_cause(kind):
    def fail(**columns):
        raise kind

    with pytest.raises(RuntimeError, match=rf"'mine.f' raised {kind.__name__}") as error:
        call(function(fail))
    assert isinstance(error.value.__cause__, kind)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Interrupted])
def test_a_run_that_is_asked_to_stop_does_not_take_it_for_the_function_s_failure(kind):
    def stopped(**columns):
        try:
            raise kind
        except Exception:
            return [0, 0]

    with pytest.raises(kind):
        call(function(stopped))


@pytest.mark.parametrize(
    ("columns", "says"), [({"prompts": [1, 2]}, "prompts"), ({"level": [1]}, "'level' has 1 entries for 2")]
)
def test_columns_that_cannot_be_passed_on_are_errors(columns, says):
    with pytest.raises(ValueError, match=says):
        call(columns=columns)


def test_none_counts_as_nothing_in_the_sum():
    functions = [RewardFunction("a", "m.a", 2.0, min), RewardFunction("b", "m.b", -1.0, min)]
    assert weighted_sum(functions, {"a": [1.0, None, None], "b": [0.5, 3.0, None]}) == [1.5, -3.0, 0.0]
    assert weighted_sum([], {}) == []


def test_a_function_that_hangs_is_named_and_one_that_does_not_is_left_alone():
    def hang(**columns):
        while True:
            pass

    def slow(**columns):
        time.sleep(0.05)
        return [1.0, 2.0]

    def late(**columns):
        raise TimeoutError("no answer from the judge")

    arguments = {"prompts": ["", ""], "completions": ["", ""], "completion_ids": [[], []], "columns": {}}
    with pytest.raises(TimeoutError, match=r"'mine.f' did not return in 0.2 s: .* reward.function_timeout_s"):
        call_functions([function(hang)], **arguments, timeout=0.2)
    assert call_functions([function(slow)], **arguments, timeout=60.0) == {"f": [1.0, 2.0]}
    with pytest.raises(RuntimeError, match=r"'mine\.f' raised TimeoutError: no answer from the judge"):
        call_functions([function(late)], **arguments, timeout=60.0)


def _again_and_again() -> None:
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


def _whatever_happens() -> None:
    try:
        time.sleep(0.4)
        time.sleep(0)
    except:  # noqa: E722
        pass


def _by_another_error() -> None:
    try:
        time.sleep(0.4)
        time.sleep(0)
    except BaseException as error:
        raise KeyError from error


@pytest.mark.parametrize("wait", [_again_and_again, _whatever_happens, _by_another_error])
def test_a_slow_function_is_refused_whatever_it_catches(wait):
    def slow(**columns):
        wait()
        return [1.0, 2.0]

    arguments = {"prompts": ["", ""], "completions": ["", ""], "completion_ids": [[], []], "columns": {}}
    with pytest.raises(TimeoutError, match=r"'mine.f' did not return in 0.1 s: .* reward.function_timeout_s"):
        call_functions([function(slow)], **arguments, timeout=0.1)
    assert call_functions([function(lambda **columns: [1, 2])], **arguments, timeout=60.0) == {"f": [1.0, 2.0]}


def test_one_that_no_instruction_ends_ends_the_process_with_its_name():
    """It sleeps in C, where no exception reaches it."""
    script = """
import time
from reft_jax.reward import functions
functions._PATIENCE = 0.2
own = functions.RewardFunction("f", "mine.f", 1.0, lambda **columns: time.sleep(60))
functions.call_functions([own], prompts=[], completions=[], completion_ids=[], columns={}, timeout=0.2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr.count("error: reward function 'mine.f' did not return in 0.2 s")) == (1, 1)


@pytest.fixture
def runner(package):
    with pool.ProgramRunner(workers=2, timeout=0.5, memory=256) as runner:
        yield runner


def contained(path, runner, weight=1.0):
    return load_functions({path: {"weight": weight, "contained": True}}, runner)


def dare(functions, *completions):
    return call_functions(
        functions,
        prompts=["p"] * len(completions),
        completions=completions,
        completion_ids=[[i] for i in range(len(completions))],
        columns={"gold": [3] * len(completions), "level": [{"of": [1.5]}] * len(completions)},
        timeout=30,
    )


def test_a_contained_function_says_what_it_says_here(package, runner):
    texts = ["gold + 1", "level['of'][0]", "None", "True", "-1e300", "10**300", "gold + 1"]
    functions = contained(f"{package}.daring.run", runner, 0.5)
    assert [(f.name, f.weight) for f in functions] == [("run", 0.5)]
    assert "users_rewards.daring" not in sys.modules, "nothing of it is run here"
    assert dare(functions, *texts) == dare(load_functions({f"{package}.daring.run": 0.5}), *texts)
    assert dare(functions) == {"run": []}


def test_what_a_completion_brings_about_in_a_worker_is_its_own_loss(package, runner, tmp_path):
    """The function would have hung, crashed or been misused in the process that trains."""
    written = tmp_path / "written"
    hostile = [
        "[0 for _ in iter(int, 1)]",
        "len('x' * 2**40)",
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        f"open({str(written)!r}, 'w').write('x')",
        "socket.socket()",
        "os.fork()",
    ]
    functions = contained(f"{package}.daring.run", runner)
    assert dare(functions, "1", *hostile, "2") == {"run": [1.0, *[None] * len(hostile), 2.0]}
    assert not written.exists()
    assert dare(functions, *hostile[2:4]) == {"run": [None] * 2}, "it has worked before: these are the completions'"


def test_a_contained_function_that_is_broken_ends_the_run_by_its_name(package, runner):
    functions = contained(f"{package}.daring.run", runner)
    for text, says in [
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("'a'", "for row 0 a str: neither a finite number nor None"),
        ("float('nan')", "for row 0 nan: neither"),
    ]:
        with pytest.raises(RuntimeError, match=rf"reward function '{package}.daring.run' .*{re.escape(says)}"):
            dare(functions, "1", text)
    with pytest.raises(RuntimeError, match=r"daring.reads' returned for none of 2 completions in a worker \(forbidden"):
        dare(contained(f"{package}.daring.reads", runner), "1", "2")


@pytest.mark.parametrize("path", ["absent.f", "style.nothing", "dividing.f", "style.waiting"])
def test_a_contained_function_that_cannot_be_imported_is_refused_at_the_start(package, runner, path, capfd):
    with pytest.raises(ValueError, match=rf"reward function '{package}.{path}' cannot be imported in a worker"):
        contained(f"{package}.{path}", runner)
    told = capfd.readouterr().err
    assert f"reward function '{package}.{path}'" in told
    assert "Traceback" not in told
