"""The pool of program workers: what programs return, what they cannot do, and that nothing waits for them."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.programs import ProgramResult

TIMEOUT = 0.5  # CPU seconds
WALL = 3 * TIMEOUT + 1  # seconds, the documented backstop

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or needs RLIMIT_AS")


@pytest.fixture(scope="module")
def runner():
    with ProgramRunner(workers=2, timeout=TIMEOUT, memory=256) as pool:
        yield pool


def solution(body):
    return "def solution():\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")


def forked(number):
    """A program that returns the number, and that a worker must run: what is only arithmetic never reaches one."""
    return f"def solution(): return [{number}][0]"


def run_one(runner, body, rules="lenient"):
    """The result of one body of `solution()`, checked to leave the next program alone."""
    result, after = runner.run([solution(body), forked(7)], rules)
    assert after == ProgramResult("ok", 7.0, "")
    return result


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("return [6 * 7][0]", 42.0),
        ("return [-7 // 2][0]", -4.0),
        ("return divmod(10**30 + 1, 1)[0]", 10**30 + 1),  # every digit
        ("return [1 / 3][0]", 1 / 3),
        ("return 'b'", "b"),
        ("return '$1,234'", "$1,234"),
        ("return math.ceil(2.5)", 3.0),
        ("from fractions import Fraction\nreturn Fraction(7, 2)", 3.5),
        ("from decimal import Decimal\nreturn Decimal('2.5')", 2.5),
        ("x = sympy.Symbol('x')\nreturn sympy.solve(2 * x - 7, x)[0]", 3.5),
        ("return sympy.sqrt(2)", 2**0.5),
        ("x = sympy.Symbol('x')\nreturn sympy.solve(2 * x - 7, x)", 3.5),
        ("x = sympy.Symbol('x')\nreturn sympy.solveset(x - 18, x, sympy.S.Reals)", 18),
        ("import numpy\nreturn numpy.array(18)", 18),
        ("import numpy\nreturn numpy.int64(5)", 5.0),
        ("print('9' * 10**6)\nreturn 5", 5.0),
    ],
)
def test_sane_takes_numbers_and_texts(runner, body, value):
    assert run_one(runner, body) == ProgramResult("ok", value, "")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("return True", "bool"),
        ("return None", "None"),
        ("return 1j", "complex"),
        ("return [5]", "list"),
        ("return {5: 5}", "dict"),
        ("return float('nan')", "nan"),
        ("return -math.inf", "inf"),
        ("return divmod(10**400, 1)[0]", "int"),
        ("return sympy.Symbol('x')", "Symbol"),
        ("return sympy.oo", "inf"),
        ("x = sympy.Symbol('x')\nreturn sympy.solve(x**2 - 1, x)", "list"),
        ("import numpy\nreturn numpy.complex128(5)", "complex"),
        ("import numpy\nreturn numpy.bool_(True)", "bool"),
        ("class A:\n    def __float__(self): return 5.0\nreturn A()", "A"),
        ("return 'x' * 10**6", "1000000 characters"),
    ],
)
def test_sane_refuses_what_is_no_answer_and_says_what_it_was(runner, body, word):
    result = run_one(runner, body)
    assert (result.outcome, result.value) == ("ok", None)
    assert word in result.detail


def test_sane_runs_programs_whole(runner):
    helper = (
        "import math\n\ndef double(x):\n    return 2 * x\n\ndef solution():\n\n    return double(math.floor(2.5))\n"
    )
    assert runner.run([helper], "lenient") == [ProgramResult("ok", 4.0, "")]


@pytest.mark.parametrize(
    ("program", "outcome", "value"),
    [
        ("def solution():\n    return 5\n\nraise ValueError", "ok", 5.0),  # cut at the first blank line
        ("def solution():\n    x = 5\n\n    return x", "ok", "None"),
        ("\ndef solution():\n    return 5", "error", None),
        ("import os\ndef solution():\n    return os.getpid()", "error", None),  # top-level names are out of reach
        ("def two():\n    return 2\ndef solution():\n    return two()", "error", None),
        ("def solution():\n    sys.exit(3)\n    return 5", "ok", 5.0),  # sys.exit is print
        ("def solution():\n    return math.floor(2.5) + sympy.Integer(2)", "ok", 4.0),
        ("def solution():\n    return True", "ok", 1.0),
        ("def solution():\n    return '12'", "ok", 12.0),
        ("def solution():\n    return 'B'", "ok", "B"),
        ("def solution():\n    return [5]", "ok", "[5]"),
    ],
)
def test_reference_runs_programs_as_the_public_code(runner, program, outcome, value):
    (result,) = runner.run([program], "reference")
    assert (result.outcome, result.value) == (outcome, value)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("return [1 / 0]", "ZeroDivisionError: division by zero"),
        ("return [undefined]", "NameError"),
        ("return solution()", "RecursionError"),
        ("raise SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("return input()", "EOFError"),
        ("import os\nos._exit(0)", "without a result"),
        ("import os\nos.abort()", "signal"),
        ("import ctypes\nctypes.string_at(0)", "signal 11"),
        ("import os\nos.closerange(0, 1000)\nwhile True: pass", "signal 9"),
        ("import os\nos.write(1, b'5')\nos.write(2, b'5')\nreturn 1 / 0", "ZeroDivisionError"),
        ("class E(Exception):\n    def __str__(self): raise self\nraise E", "without a result"),
        ("return (", "SyntaxError"),
        ("return '\ud800'", "UnicodeEncodeError"),
        ("return '\0'", "null bytes"),
    ],
)
def test_failures_are_errors_with_their_cause(runner, body, word):
    result = run_one(runner, body)
    assert (result.outcome, result.value) == ("error", None)
    assert word in result.detail


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ("while True: pass", "0.5 s of CPU time"),
        ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", "0.5 s of CPU time"),
        ("return 9 ** 9 ** 9", "0.5 s of CPU time"),
        ("import signal\nsignal.signal(signal.SIGPROF, signal.SIG_IGN)\nwhile True: pass", ""),  # one or the other
        ("import time\ntime.sleep(60)", "2.5 s by the clock"),
    ],
)
def test_what_does_not_end_times_out(runner, body, limit):
    start = time.monotonic()
    result = run_one(runner, body)
    assert (result.outcome, result.value) == ("timeout", None)
    assert limit in result.detail
    assert time.monotonic() - start < WALL + 5


def test_a_timeout_is_cpu_time_not_the_clock(runner):
    assert run_one(runner, f"import time\ntime.sleep({2 * TIMEOUT})\nreturn 5").value == 5.0


@linux
@pytest.mark.parametrize(
    "body", ["return len('x' * 10**9)", "x = []\nwhile True: x.append(bytes(10**7))", "return len(bytearray(10**15))"]
)
def test_memory_is_limited(runner, body):
    assert run_one(runner, body).outcome == "memory"


def test_the_environment_and_the_descriptors_are_empty(monkeypatch):
    monkeypatch.setenv("A_SECRET", "hidden-4711")
    with ProgramRunner(1, TIMEOUT, 256, sandbox="unsafe") as fresh:  # contained, it could not even look
        assert run_one(fresh, "import os\nreturn sum('THREADS' not in name for name in os.environ)").value == 0
        if sys.platform == "linux":
            assert run_one(fresh, "return open('/proc/self/environ').read().count('hidden-4711')").value == 0
            # 0, 1, 2 (all /dev/null), the result pipe, and the one that lists them
            assert run_one(fresh, "import os\nreturn len(os.listdir('/proc/self/fd'))").value == 5


@pytest.mark.parametrize(
    "forged",
    [
        '["ok", 5.0, ""]\\n',
        "5\\n",
        '["ok", 5.0, ""]\\n["ok", 6.0, ""]\\n["ok", 6.0, ""]\\n',
        "[" * 5000,
        "x" * 20000,
        "\\xff\\n",
    ],
)
def test_a_forged_result_changes_no_other_program(runner, forged):
    body = f"import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'{forged}')\n    except OSError: pass\nreturn 8"
    others = [forked(number) for number in range(20)]
    results = runner.run([solution(body), *others], "lenient")
    assert [result.value for result in results[1:]] == list(range(20))
    assert results[0].value in (None, 5.0)


@linux
def test_grandchildren_do_not_outlive_their_program():
    memory = 257  # in the command line of this runner's processes and of nobody else's
    with ProgramRunner(1, TIMEOUT, memory, sandbox="unsafe") as runner:  # contained, it could not fork
        child = "if os.fork() == 0:\n        time.sleep(9)\n        os._exit(0)"
        body = f"import os, time\nfor _ in range(20):\n    {child}\nreturn 5"
        result = run_one(runner, body)
        assert result.value == 5.0 or "BlockingIOError" in result.detail  # root may fork, others may not
        deadline = time.monotonic() + 3
        while len(processes(memory)) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(processes(memory)) == 1  # the worker
    assert not processes(memory)


def processes(memory):
    """Ids of the live processes started as a worker with this much memory, and of their children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended meanwhile
            continue
        if b"reft_jax.reward.worker" in words and str(memory).encode() in words and state != "Z":
            found.append(int(folder.name))
    return found


@linux
def test_workers_end_with_the_process_that_started_them():
    script = (
        "import os; from reft_jax.reward.pool import ProgramRunner\n"
        "r = ProgramRunner(2, 60.0, 258)\n"
        f"r.run([{forked(1)!r}, {forked(2)!r}], 'lenient')\n"
        "import threading; threading.Timer(0.3, os._exit, (9,)).start()\n"
        "r.run(['import time\\ndef solution(): time.sleep(60)'], 'lenient')"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    deadline = time.monotonic() + 3
    while processes(258) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes(258)


@linux
@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        pytest.param("SIGSTOP", "its worker stopped answering", marks=pytest.mark.ci),  # after three seconds of silence
        ("SIGKILL", "its worker ended"),
    ],
)
def test_a_worker_that_fails_is_replaced_and_counted(monkeypatch, attack, reason):
    monkeypatch.setattr("reft_jax.reward.pool._GRACE", 1.0)
    body = f"import os, signal, time\nos.kill(os.getppid(), signal.{attack})\ntime.sleep(0.2)\nreturn 5"
    program = solution(body) + "\n#" + "x" * 200_000
    others = [forked(number) + "\n#" + "x" * 100_000 for number in range(9)]  # more than pipes hold
    with ProgramRunner(1, TIMEOUT, 256, sandbox="unsafe") as runner:  # contained, it could not send signals
        first, *rest = runner.run([program, *others], "lenient")
        assert (first.outcome, first.detail) == ("error", reason)
        assert [result.value for result in rest] == list(range(9))
        assert runner.replaced == 1


def test_a_worker_that_died_idle_is_replaced_without_blame(runner):
    with ProgramRunner(1, TIMEOUT, 256) as fresh:
        fresh.run([forked(1)], "lenient")
        (worker,) = fresh._pools["plain"]
        os.kill(worker._process.pid, 9)
        worker._process.wait()
        assert fresh.run([forked(2)], "lenient") == [ProgramResult("ok", 2.0, "")]
        assert fresh.replaced == 0


def test_an_interrupted_run_leaves_no_replies_to_the_next(monkeypatch):
    def interrupt(pool, until):
        raise KeyboardInterrupt

    programs = [forked(number) for number in range(9)]
    with ProgramRunner(1, TIMEOUT, 256) as fresh:
        with monkeypatch.context() as patch:
            patch.setattr("reft_jax.reward.pool._wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                fresh.run(programs, "lenient")
        assert fresh.run([forked(10)], "lenient") == [ProgramResult("ok", 10.0, "")]


def test_results_are_in_order_and_identical_programs_run_once(runner):
    clock = "import time\ndef solution(): return time.monotonic_ns() % 10**12 / 10**3"
    programs = [clock, *(forked(number) for number in range(50)), clock]
    results = runner.run(programs, "lenient")
    assert results[0] == results[-1]
    assert [result.value for result in results[1:-1]] == list(range(50))
    assert runner.run([], "lenient") == []


def test_a_worker_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with ProgramRunner(1, TIMEOUT, 256) as fresh, pytest.raises(RuntimeError, match="did not start"):
        fresh.run([forked(1)], "lenient")


@pytest.mark.parametrize("arguments", [(0, 1.0, 1), (1, 0.0, 1), (1, 1.0, -1)])
def test_limits_must_be_positive(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        ProgramRunner(*arguments)
    with pytest.raises(ValueError, match="deadline must be positive"):
        ProgramRunner(1, 1.0, 1, deadline=0.0)
