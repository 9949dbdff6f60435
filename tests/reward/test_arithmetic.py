"""Programs computed without a worker: the oracle is the worker's child, which must answer exactly the same."""

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reft_jax.reward import programs as programs_module
from reft_jax.reward.arithmetic import evaluate
from reft_jax.reward.programs import ProgramResult, ProgramRunner

RULES = ["sane", "reference"]


@pytest.fixture(scope="module")
def run_forked():
    """Run programs, all of them in workers."""
    with ProgramRunner(workers=2, timeout=5.0, memory=512) as runner:

        def run(texts, rules):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(programs_module, "evaluate", lambda program, rules: None)
                return runner.run(texts, rules)

        yield run


def solution(*lines):
    return "\n".join(["def solution():", *(f"    {line}" for line in lines)])


def disagreements(texts, rules, run_forked):
    """Programs that we answer, and answer otherwise than the child; compared as texts, for nan and 0.0 against -0.0."""
    found = {text: evaluate(text, rules) for text in texts}
    ours = [text for text, result in found.items() if result is not None]
    return [
        (text, found[text], child)
        for text, child in zip(ours, run_forked(ours, rules), strict=True)
        if repr(ProgramResult(*found[text])) != repr(child)
    ]


@pytest.mark.parametrize(("rules", "step"), [("sane", 1), ("reference", 4)])  # a step of 1 takes seconds more
def test_svamp_programs_give_what_the_child_gives(rules, step, run_forked):
    if "REFT_DATA" not in os.environ:
        pytest.skip("REFT_DATA, the folder with svamp_python_sdp.json, is not set")
    rows = json.loads((Path(os.environ["REFT_DATA"]) / "svamp_python_sdp.json").read_text())
    texts = [row["answer_cot"] for row in rows]
    assert len(texts) == 3043
    assert sum(evaluate(text, rules) is not None for text in texts) >= 2950
    assert disagreements(texts[::step], rules, run_forked) == []


NAMES = st.sampled_from(["a", "b", "total", "unknown", "f", "abs", "math", "__name__", "__debug__", "é", "ﬁ"])
NUMBERS = st.one_of(
    st.integers(0, 12).map(str),
    st.integers(0, 10**40).map(str),
    st.floats(0, allow_nan=False).map(lambda number: repr(number).replace("inf", "1e999")),
    st.sampled_from(["0", "0.0", ".5", "5.", "1_000", "1e308", "1e-320", "007", "2j", "True", "'x'", "0x1F", "1__0"]),
)
OPERATORS = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "+", "-", "*", "/", "<", "@", ">>", "and", ","])
EXPRESSIONS = st.recursive(
    st.one_of(NUMBERS, NUMBERS, NAMES),
    lambda inner: st.one_of(
        st.tuples(inner, OPERATORS, inner).map(" ".join),
        st.tuples(inner, OPERATORS, inner).map("".join),
        inner.map("({})".format),
        st.tuples(st.sampled_from("-+~("), inner).map("".join),
    ),
    max_leaves=6,
)
STATEMENTS = st.one_of(
    st.builds("{} {} {}".format, NAMES, st.sampled_from(["=", "=", "=", "+=", "/=", "**=", "==", ":"]), EXPRESSIONS),
    EXPRESSIONS.map("return {}".format),
    EXPRESSIONS,
    st.sampled_from(["", "pass", "nonlocal a", "global a", "yield 1", "# '", "a = b = 1", "a, b = 1, 2", "x: int = 2"]),
)
PROGRAMS = st.one_of(
    st.builds(
        lambda lines, end: solution("a = 7", "b = 2.5", *lines, f"return {end}"),
        st.lists(STATEMENTS, max_size=4),
        st.one_of(EXPRESSIONS, st.sampled_from(["a", "total", ""])),
    ),
    st.builds(lambda text, at, more: text[:at] + more + text[at:], st.just(solution("a = (7 + 2)", "return a * 3")),
              st.integers(0, 50), st.text("()=\n \t\r\f:'\"+*#a1.\\\0é€", max_size=4)),
    st.text(max_size=30),
)  # fmt: skip


@pytest.mark.parametrize("rules", RULES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(PROGRAMS, min_size=15, max_size=30))
def test_generated_programs_give_what_the_child_gives(rules, run_forked, texts):
    assert disagreements(texts, rules, run_forked) == []


ANSWERED = [
    (solution('"""Tom has 12 apples."""', "a = 12 * 5", "result = a + 7", "return result"), 67.0),
    (solution("return 24 / 3"), 8.0),
    (solution("a = 7", "a //= 2", "return -a % 5"), 2.0),
    (solution("return 2 ** -1 + 0.1 ** 2"), 0.51),
    (solution("abs = 3", "return abs"), 3.0),
    (solution("return 10 ** 400"), "int"),
    (solution("return 1e999"), "returned inf"),
    (solution("a = 5"), "NoneType"),
    (solution("return"), "NoneType"),
    (solution("apples = 5", "app"), "NameError: name 'app' is not defined"),
    (solution("return 1 / 0"), "ZeroDivisionError: division by zero"),
    (solution("return 5 % 0"), "ZeroDivisionError"),
    (solution("return 0 ** -1"), "ZeroDivisionError"),
    (solution("return 2.0 ** 5000"), "OverflowError"),
    (solution("return 10 ** 400 / 3.0"), "OverflowError"),
    (solution("return apples + 1 / 0"), "NameError: name 'apples' is not defined"),
    (solution("return 1 +"), "SyntaxError: invalid syntax (<program>, line 2)"),
    (solution("return (1"), "'(' was never closed"),
    ("def solution():\nreturn 1", "IndentationError"),
    ("def solution():\n\treturn 1\n        return 2", "TabError"),
    (solution("return 1 # \0"), "null bytes"),
    ("The answer is 5.", "SyntaxError"),
    ("", "name 'solution' is not defined"),
]


@pytest.mark.parametrize(("program", "value"), ANSWERED)
def test_these_are_answered_here_as_the_child_answers_them(program, value, run_forked):
    result = evaluate(program, "sane")
    assert result is not None
    if isinstance(value, str):
        assert result[1] is None
        assert value in result[2]
    else:
        assert result == ("ok", pytest.approx(value, rel=1e-12), "")
    assert [disagreements([program], rules, run_forked) for rules in RULES] == [[], []]


@pytest.mark.parametrize(
    "program",
    [
        solution("return abs(5)"),
        solution("return math.pi"),
        solution("return sympy"),
        solution("return solution"),
        solution("return __name__"),
        solution("return 3 > 2"),
        solution("return 'b'"),
        solution("return True"),
        solution("return 1j"),
        solution("return (-8) ** 0.5"),
        solution("return -8 ** 0.5 * (-8) ** 0.5"),
        solution("return 9 ** 9 ** 9"),
        solution("return 2 ** 2048"),
        solution("a = 10 ** 600", "return a * a"),
        solution("return 1 << 5"),
        solution("a = 1 / 0", "import os"),
        solution("a = 1 / 0", "yield 1"),
        solution("a = 1 / 0", "global a"),
        solution("a = 1 / 0", "__debug__ = 1"),
        solution("a = a + 1", "return a"),
        solution("return 1", "a = 2"),
        solution("a = b = 2", "return a"),
        solution("f'{1}'", "return 1"),
        solution("return '\\d'"),
        solution("return 1or 2"),
        solution("return 0x1for 2"),
        "import math\n" + solution("return 1"),
        solution("return 1") + "\nsolution = 5",
        "@abs\n" + solution("return 1"),
        "async " + solution("return 1"),
        "def solution(a=1):\n    return 1",
        "def solution(*a):\n    return 1",
        "def solution() -> int:\n    return 1",
        "def other():\n    return 1",
        solution("return 1 # \ud800"),
    ],
)
def test_what_is_not_plain_arithmetic_is_left_to_the_workers(program):
    assert [evaluate(program, "sane"), evaluate(program, "reference")] == [None, None]


ADVERSARIAL = {
    "brackets": "(" * 10**5,
    "closed brackets": solution("return " + "(" * 150 + "1" + ")" * 150),
    "comprehensions": "(a for a in (" * 40,
    "dictionaries": "{a:[" * 3000,
    "signs": solution("return " + "-" * 3900 + "1"),
    "sum": solution("return " + "+".join("1" * 1950)),
    "powers": solution("return " + "**".join("1" * 1300)),
    "tower": solution("return " + "9**" * 30 + "9"),
    "squares": solution("a = 9", *["a = a * a"] * 200, "return a"),
    "nots": solution("return " + "not " * 900 + "1"),
    "lambdas": "lambda:" * 550,
    "choices": "1 if 1 else " * 330,
    "branches": "if 1:1\n" + "elif 1:1\n" * 400,
    "words": "the " * 990,
    "digits": solution("return " + "7" * 5000),
    "fewer digits": solution("return " + "7" * 3900),
    "digits and underscores": solution("return " + "7_" * 1900 + "7"),
    "hexadecimal": solution("return 0x" + "f" * 3900),
    "exponent": solution("return 1e" + "9" * 290),
    "assignments": "x = " * 900 + "1",
    "long": solution(*["a = 1"] * 10**5),
    "one number, much": solution("return 1." + "1.1" * 1300),
    "blanks": solution("return 1" + " " * 3900),
    "lines": "\n" * 3900,
}


@pytest.mark.parametrize("program", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_hostile_texts_are_done_soon_and_on_a_small_stack(program, run_forked):
    results = []
    size = threading.stack_size(2**20)
    try:
        thread = threading.Thread(target=lambda: results.extend(evaluate(program, rules) for rules in RULES))
        thread.start()
    finally:
        threading.stack_size(size)
    start = time.thread_time()
    results.append(evaluate(program, "sane"))
    seconds = time.thread_time() - start
    thread.join()
    assert len(results) == 3
    assert seconds < 1.0
    assert disagreements([program], "sane", run_forked) == []


@given(st.text("1_.0xjeandorfistl if\\'\"b\n", max_size=25))
@settings(max_examples=300)
def test_no_text_makes_the_parser_warn(text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate(text, "sane")
    assert not caught


def test_settings_of_this_process_do_not_matter():
    script = f"""
import sys
from reft_jax.reward.arithmetic import evaluate
sys.set_int_max_str_digits(640)
sys.setrecursionlimit(200)
print([evaluate(program, "reference") for program in {[program for program, _ in ANSWERED]!r}])
"""
    done = subprocess.run([sys.executable, "-Werror", "-O", "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == repr([evaluate(program, "reference") for program, _ in ANSWERED])


def test_the_runner_starts_no_worker_for_arithmetic():
    program = ANSWERED[0][0]
    with ProgramRunner(1, 1.0, 256) as runner:
        assert runner.run([program, "?", program], "sane")[::2] == [ProgramResult("ok", 67.0, "")] * 2
        assert runner._pools == {"plain": [], "sympy": []}
