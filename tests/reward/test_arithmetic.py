"""Programs computed without a worker: the oracle is the worker's child, which must answer exactly the same."""

import ast
import json
import subprocess
import sys
import threading
import warnings
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reft_jax.reward import pool as pool_module
from reft_jax.reward.arithmetic import evaluate
from reft_jax.reward.parse import program_of
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.programs import ProgramResult
from tests.work import least_seconds

RULES = ["lenient", "reference"]


@pytest.fixture(scope="module")
def run_forked():
    """Run programs, all of them in workers."""
    with ProgramRunner(workers=2, timeout=5.0, memory=512) as runner:

        def run(texts, rules):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pool_module, "evaluate", lambda program, rules: None)
                return runner.run(texts, rules)

        yield run


def solution(*lines):
    return "\n".join(["def solution():", *(f"    {line}" for line in lines)])


def disagreements(texts, rules, run_forked):
    """Programs that we answer, and answer otherwise than the child; compared as texts, for nan and 0.0 against -0.0."""
    found = {text: evaluate(program_of(text) if rules == "lenient" else text, rules) for text in texts}
    ours = [text for text, result in found.items() if result is not None]
    return [
        (text, found[text], child)
        for text, child in zip(ours, run_forked(ours, rules), strict=True)
        if repr(ProgramResult(*found[text])) != repr(child)
    ]


@pytest.mark.parametrize(
    ("rules", "step"), [("lenient", 4), ("reference", 4), pytest.param("lenient", 1, marks=pytest.mark.long)]
)
def test_svamp_programs_give_what_the_child_gives(real_data, rules, step, run_forked):
    rows = json.loads((real_data / "svamp_python_sdp.json").read_text())
    texts = [row["answer_cot"] for row in rows]
    assert len(texts) == 3043
    assert sum(evaluate(text, rules) is not None for text in texts) >= 2980
    assert disagreements(texts[::step], rules, run_forked) == []


NAMES = st.sampled_from(["a", "b", "total", "unknown", "f", "abs", "math", "__name__", "__debug__", "é", "ﬁ"])
NUMBERS = st.one_of(
    st.integers(0, 12).map(str),
    st.integers(0, 10**40).map(str),
    st.floats(0, allow_nan=False).map(lambda number: repr(number).replace("inf", "1e999")),
    st.sampled_from(["0", "0.0", ".5", "5.", "1_000", "1e308", "1e-320", "007", "2j", "True", "'x'", "0x1F", "1__0"]),
)
ARITHMETIC = st.sampled_from(["+", "-", "*", "/", "//", "%", "**"])
COMPARISONS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
FUNCTIONS = st.sampled_from(["int", "float", "round", "abs", "min", "max", "sum"])
OPERATORS = st.one_of(ARITHMETIC, ARITHMETIC, COMPARISONS, st.sampled_from(["@", ">>", " and ", "or", ",", " is "]))


def wild(inner):
    """Expressions with what we compute and what looks like it."""
    some = st.lists(inner, max_size=3).map(", ".join)
    return st.one_of(
        st.tuples(inner, OPERATORS, inner).map(" ".join),
        st.tuples(inner, OPERATORS, inner).map("".join),
        inner.map("({})".format),
        st.tuples(st.sampled_from(["-", "+", "~", "(", "not ", "*", "x="]), inner).map("".join),
        st.builds("{} if {} else {}".format, inner, inner, inner),
        st.builds("{}({})".format, st.one_of(FUNCTIONS, FUNCTIONS, NAMES), some),
        st.builds("{}([{}])".format, FUNCTIONS, some),
        st.builds("{}(({},), {})".format, FUNCTIONS, some, inner),
    )


def tame(inner):
    """Expressions with what we compute, few of them with errors."""
    few = st.lists(inner, min_size=1, max_size=3).map(", ".join)
    return st.one_of(
        st.builds("({} {} {})".format, inner, ARITHMETIC, inner),
        st.builds("({} {} {})".format, inner, COMPARISONS, inner),
        st.builds("({} {} {} {} {})".format, inner, COMPARISONS, inner, COMPARISONS, inner),
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
        st.builds("({} {})".format, st.sampled_from(["-", "+", "not"]), inner),
        st.builds("{}({})".format, st.sampled_from(["int", "float", "round", "abs"]), inner),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), inner, few),
        st.builds("round({}, {})".format, inner, st.integers(-3, 3)),
        st.builds("{}([{}])".format, st.sampled_from(["min", "max", "sum"]), few),
        st.builds("sum(({},), {})".format, few, inner),
    )


WILD = st.recursive(st.one_of(NUMBERS, NUMBERS, NAMES), wild, max_leaves=6)
TAME = st.recursive(st.sampled_from(["a", "b", "c", "0", "1", "2.5", "1e999", "7e307", "10**300"]), tame, max_leaves=8)
STATEMENTS = st.one_of(
    st.builds("{} {} {}".format, NAMES, st.sampled_from(["=", "=", "=", "+=", "/=", "**=", "==", ":"]), WILD),
    WILD.map("return {}".format),
    WILD,
    st.builds("{}, {} = {}, {}".format, NAMES, NAMES, WILD, WILD),
    st.builds("{} = {} = {}".format, NAMES, NAMES, WILD),
    st.sampled_from(
        ["", "pass", "nonlocal a", "global a", "yield 1", "# '", "a, b = 1", "[a, b] = 1, 2", "x: int = 2"]
    ),
)
PROGRAMS = st.one_of(
    st.builds(
        lambda lines, end: solution("a = 7", "b = 2.5", *lines, f"return {end}"),
        st.lists(STATEMENTS, max_size=4),
        st.one_of(WILD, st.sampled_from(["a", "total", ""])),
    ),
    st.builds(
        lambda first, second, third, end: solution(
            "a = b = 7", f"c = {first}", f"a, b = {second}, {third}", f"return {end}"
        ),
        *[TAME] * 4,
    ),
    st.builds(lambda text, at, more: text[:at] + more + text[at:], st.just(solution("a = (7 + 2)", "return a * 3")),
              st.integers(0, 50), st.text("()=\n \t\r\f:'\"+*#a1.\\\0é€", max_size=4)),
    st.text(max_size=30),
)  # fmt: skip
KINDS = [ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.IfExp, ast.Call, ast.List, ast.Tuple]


def kinds(program):
    """Which of our kinds of expressions are in a program."""
    try:
        return {type(node) for node in ast.walk(ast.parse(program))} & set(KINDS)
    except (SyntaxError, ValueError):  # the second is what a null byte raises before Python 3.11.4
        return set()


@pytest.mark.parametrize("rules", RULES)
def test_generated_programs_give_what_the_child_gives(rules, run_forked):
    answered = set()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(texts=st.lists(PROGRAMS, min_size=15, max_size=30, unique=True))
    def check(texts):
        assert disagreements(texts, rules, run_forked) == []
        answered.update(text for text in texts if evaluate(text, rules))

    check()
    counts = Counter(kind for text in answered for kind in kinds(text))
    assert all(counts[kind] >= 20 for kind in KINDS), counts


ANSWERED = [
    (solution('"""Tom has 12 apples."""', "a = 12 * 5", "result = a + 7", "return result"), 67.0),
    (solution("return 24 / 3"), 8.0),
    (solution("a = 7", "a //= 2", "return -a % 5"), 2.0),
    (solution("return 2 ** -1 + 0.1 ** 2"), 0.51),
    (solution("abs = 3", "return abs"), 3.0),
    (solution("a = b = 2", "b += 1", "return a * b"), 6.0),
    (solution("a, b = 5, 3", "a, b = b, a - b", "return a * 10 + b"), 32.0),
    (solution("a = 13", "return a // 5 + (a % 5 > 0)"), 3.0),
    (
        solution("a = 1", "return (a < 1) + 2 * (a <= 1) + 4 * (a > 1) + 8 * (a >= 1) + 16 * (a == 1) + 32 * (a != 1)"),
        26.0,
    ),
    (solution("return 10 * (1 < 3 > 2 != 2.5) + (3 > 2 > 2)"), 10.0),
    (solution("return (2 ** 53 + 1 <= 2.0 ** 53) + 0"), 0.0),
    (solution("return 1 + (2 < 1 < 1 / 0)"), 1.0),
    (solution("return (3 or 1 / 0) + (0 and 1 / 0) + (0.0 or 4)"), 7.0),
    (solution("return 5 if not 0 else unknown"), 5.0),
    (solution("return int(-2.7) + float(1 > 0)"), -1.0),
    (solution("return round(2.5) + round(3.14159, 2) + round(1250, -2)"), 1205.14),
    (solution("return max(1, 2.5) - min([3, 0.5]) + abs(-2)"), 4.0),
    (solution("return sum((0.1, 0.2, 0.3)) + sum([1 > 0, 2], 0.5)"), 4.1),
    (solution("return sum([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])"), 1.0),
    (solution("return 3 > 2"), "returned a bool"),
    (solution("return 3 < 2 < 5"), "returned a bool"),
    (solution("return min(1 > 0, 1)"), "returned a bool"),
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
    (solution("return int(1e999 - 1e999)"), "ValueError: cannot convert float NaN to integer"),
    (solution("return int(1e999)"), "OverflowError: cannot convert float infinity to integer"),
    (solution("return float(10 ** 400)"), "OverflowError: int too large to convert to float"),
    (solution("return max([])"), "ValueError: max()"),
    (solution("return min(5)"), "TypeError: 'int' object is not iterable"),
    (solution("return sum(2.5)"), "TypeError: 'float' object is not iterable"),
    (solution("return min((1, 2), 3)"), "TypeError: '<' not supported between instances of 'int' and 'tuple'"),
    (solution("return abs(1, 2)"), "TypeError: abs() takes exactly one argument (2 given)"),
    (solution("return round(5, 2.0)"), "TypeError: 'float' object cannot be interpreted as an integer"),
    (solution("return abs(1 / 0, unknown)"), "ZeroDivisionError"),
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
    result = evaluate(program, "lenient")
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
        solution("return abs"),
        solution("return len([5])"),
        solution("return int('5')"),
        solution("return round(number=5)"),
        solution("return min(-5, 4, key=abs)"),
        solution("return min([-5, 4], key=abs)"),
        solution("return abs(*(5,))"),
        solution("return sum([*(5, 6)])"),
        solution("return sum(a for a in (5, 6))"),
        solution("return sum([[5]], [])"),
        solution("return max(5, [6])"),
        solution("return abs([5])"),
        solution("return [5][0]"),
        solution("return 5, 6"),
        solution("return " + "not " * 60 + "1"),
        solution("return 5 in (5, 6)"),
        solution("return 5 is 5"),
        solution("a = abs(-5)", "abs = 5", "return a"),
        solution("abs, a = 5, 6", "return abs(a)"),
        solution("return round(5, -10 ** 9)"),
        solution("return round(0.5, 10 ** 600)"),
        solution("a = 10 ** 500 * 10 ** 116", "return sum([" + "a, " * 30 + "])"),
        solution("return math.pi"),
        solution("return sympy"),
        solution("return solution"),
        solution("return __name__"),
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
        solution("a, b = 1, 2, 3"),
        solution("a, (b, c) = 1, 2"),
        solution("a, *b = 1, 2"),
        solution("a, b = c = 1, 2"),
        solution("[a, b] = 1, 2"),
        solution("if 2 > 1:", "    a = 5", "return a"),
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
    assert [evaluate(program, "lenient"), evaluate(program, "reference")] == [None, None]


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
    "comparisons": solution("a = 10 ** 500 * 10 ** 115", "return a" + "==a" * 1250),
    "conjunction": solution("return " + " and ".join("1" * 650)),
    "elements": solution("a = 10 ** 500 * 10 ** 115", "return max([" + "a," * 1900 + "])"),
    "arguments": solution("return abs(" + "1," * 1900 + ")"),
    "targets": solution(",".join("a" * 900) + "=" + ",".join("1" * 900)),
    "chain of targets": solution("a=" * 1900 + "1"),
    "nested calls": solution("return " + "abs(" * 39 + "1" + ")" * 39),
    "nested displays": solution("return " + "sum([" * 19 + "1" + "])" * 19),
    "nested choices": solution("return " + "1 if 0 else " * 50 + "1"),
    "nested nots": solution("return " + "not " * 50 + "1"),
    "rounding": solution("a = 10 ** 500 * 10 ** 115", *["a = round(a, -512) + 1"] * 37, "return a"),
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
    thread.join()
    assert len(results) == 2
    assert least_seconds(lambda: evaluate(program, "lenient")) < 1.0
    assert disagreements([program], "lenient", run_forked) == []


@given(st.text("1_.0xjeandorfistl if\\'\"b\n", max_size=25))
@settings(max_examples=300)
def test_no_text_makes_the_parser_warn(text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate(text, "lenient")
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
        assert runner.run([program, "?", program], "lenient")[::2] == [ProgramResult("ok", 67.0, "")] * 2
        assert not any(runner._pools.values())
