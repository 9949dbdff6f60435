"""What a hostile program cannot do. Each body is one attack; after it, the host and the next program are as before."""

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from reft_jax.config import RewardConfig
from reft_jax.problem import Problem
from reft_jax.reward import programs, sandbox
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.programs import ProgramResult
from reft_jax.reward.verdicts import verdicts_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has what is tested here")
TIMEOUT = 0.5  # CPU seconds
NEXT = "def solution(): return divmod(7, 8)[1]"  # no arithmetic: it needs a worker


@pytest.fixture(scope="module")
def runner():
    with ProgramRunner(workers=1, timeout=TIMEOUT, memory=256) as pool:
        if pool.start() != ("limits", "landlock", "seccomp"):
            pytest.skip("this kernel does not grant all layers; the tests of fewer layers run")
        yield pool


def attack(runner, body):
    """The result of one body of `solution()`, checked to leave the next program alone."""
    program = "def solution():\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")
    result, after = runner.run([program, NEXT], "lenient")
    assert after == ProgramResult("ok", 7, "")
    return result


FORBIDDEN = {
    "fork": "import os\nwhile True: os.fork()",
    "a subprocess": "import subprocess\nreturn subprocess.run(['true']).returncode",
    "os.system": "import os\nif os.system('true'):\n    raise OSError(1, 'it only returns -1')\nreturn 5",
    "posix_spawn": "import os\nreturn os.posix_spawn('/bin/true', ['true'], {})",
    "multiprocessing": "import multiprocessing\nreturn len(multiprocessing.Pool(2).map(abs, [1]))",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "a thread": "import threading\nthreading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()\nreturn 5",
    "a TCP socket": "import socket\nreturn socket.socket().fileno()",
    "a datagram": "import socket\nreturn socket.socket(socket.AF_INET, socket.SOCK_DGRAM).fileno()",
    "a local socket": "import socket\nreturn socket.socket(socket.AF_UNIX).fileno()",
    "a pair of sockets": "import socket\nreturn len(socket.socketpair())",
    "killing the worker": "import os\nos.kill(os.getppid(), 9)\nreturn 5",
    "stopping the worker": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nreturn 5",
    "killing everybody": "import os\nos.kill(-1, 9)\nreturn 5",
    "a new session": "import os\nreturn os.setsid()",
    "reading /etc": "return len(open('/etc/passwd').read())",
    "reading the worker": "import os\nreturn len(open(f'/proc/{os.getppid()}/mem', 'rb').read(1))",
    "its own memory": "return len(open('/proc/self/mem', 'rb').read(1))",
    "its command line": "return len(open('/proc/self/environ', 'rb').read())",
    "listing the home": "import os\nreturn len(os.listdir('/root' if os.getuid() == 0 else '/home'))",
    "a file in /tmp": "return open('/tmp/reft_jax_escape', 'w').fileno()",
    "a file in memory": "import os\nreturn os.memfd_create('x')",
    "a directory": "import os\nos.mkdir('/tmp/reft_jax_escape')\nreturn 5",
    "a link": "import os\nos.symlink('/', '/tmp/reft_jax_escape')\nreturn 5",
    "a pipe with a name": "import os\nos.mkfifo('/tmp/reft_jax_escape')\nreturn 5",
    "chmod": "import os\nos.chmod('/tmp', 0o777)\nreturn 5",
    "changing directory": "import os\nos.chdir('/tmp')\nreturn 5",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory\nreturn SharedMemory(None, True, 9).size",
    "a lower priority": "import os\nreturn os.nice(1)",
    "mounting": "import ctypes\nif ctypes.CDLL(None, use_errno=True).mount(b'x', b'/mnt', b'tmpfs', 0, None):\n"
    "    raise OSError(ctypes.get_errno(), 'mount')\nreturn 5",
    "tracing": "import ctypes, os\nif ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0):\n"
    "    raise OSError(ctypes.get_errno(), 'ptrace')\nreturn 5",
}  # fmt: skip


@pytest.mark.parametrize("body", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_the_kernel_refuses(runner, body):
    result = attack(runner, body)
    assert (result.outcome, result.value) == ("forbidden", None), result
    assert not os.path.lexists("/tmp/reft_jax_escape")


def test_what_the_sandbox_refuses_may_be_caught_and_is_no_loss_to_the_program(runner):
    assert attack(runner, "try: open('/etc/passwd')\nexcept OSError: pass\nreturn 5") == ProgramResult("ok", 5, "")


def test_files_of_the_user_stay_as_they_are(runner, tmp_path):
    gold = tmp_path / "gold.json"
    gold.write_text('{"answer": 4711}')
    for body in (
        f"return len(open({str(gold)!r}).read())",
        f"return open({str(gold)!r}, 'w').write('x')",
        f"return open({str(gold)!r}, 'r+').write('x')",
        f"import os\nos.remove({str(gold)!r})",
        f"import os\nos.truncate({str(gold)!r}, 0)",
        f"import os\nos.rename({str(gold)!r}, {str(gold) + '2'!r})",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        f"import os\nos.utime({str(gold)!r}, (0, 0))",
        f"return len(open({str(Path(__file__).parents[2] / 'README.md')!r}).read())",  # the package's own folder
    ):
        assert attack(runner, body).outcome == "forbidden", body
    assert gold.read_text() == '{"answer": 4711}'
    assert list(tmp_path.iterdir()) == [gold]


def test_nothing_arrives_at_a_listener(runner):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        attack(runner, f"import socket\nsocket.create_connection(('127.0.0.1', {port}))\nreturn 5")
        attack(runner, f"import urllib.request\nreturn urllib.request.urlopen('http://127.0.0.1:{port}').status")
        with pytest.raises(TimeoutError):
            server.accept()


def test_another_process_of_the_user_is_not_reached(runner):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        for number in ("SIGKILL", "SIGSTOP", "SIGTERM"):
            body = f"import os, signal\nos.kill({victim.pid}, signal.{number})\nreturn 5"
            assert attack(runner, body).outcome == "forbidden"
        raw = f"import ctypes\nreturn ctypes.CDLL(None).syscall(62, {victim.pid}, 9)"
        assert attack(runner, raw).value in (-1, None)
        assert victim.poll() is None
        assert Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[0] in "SR"
        victim.kill()


ENDS = {
    "output": ("for _ in range(1600): print('9' * 65536)\nreturn 5", "ok"),  # 100 MB into /dev/null
    "output past its streams": (
        "import os\nfor fd in range(3, 64):\n"
        "    try:\n        for _ in range(1600): os.write(fd, b'9' * 65536)\n    except OSError: pass\nreturn 5",
        "error",
    ),
    "a swallowed interrupt": (
        "while True:\n    try:\n        while True: pass\n    except KeyboardInterrupt: pass",
        "timeout",
    ),
    "ignored signals": (
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
        "while True: pass",
        "timeout",
    ),
    "its own timer": ("import signal\nsignal.setitimer(signal.ITIMER_PROF, 0)\nwhile True: pass", "forbidden"),
    "its own limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))\nwhile True: pass", "error"),
    "deep recursion in C": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nreturn f()", None),
    "a wild pointer": ("import ctypes\nctypes.memset(1, 0, 9)", "error"),
    "os._exit(0)": ("import os\nos._exit(0)", "error"),
    "abort": ("import os\nos.abort()", "error"),
    "memory by mmap": ("import mmap\nreturn len([mmap.mmap(-1, 10**8) for _ in range(100)])", None),
    "an endless generator": ("return sum(1 for _ in iter(int, 1))", "timeout"),
    "an endless regex": ("import re\nreturn bool(re.match('(a+)+$', 'a' * 60 + 'b'))", "timeout"),
    "an endless C loop": ("return sum(range(10**18))", "timeout"),
    "an endless destructor": (
        "class A:\n    def __del__(self):\n        while True: pass\na = A()\ndel a\nreturn 5", "timeout"),
    "an exit handler": ("import atexit\natexit.register(lambda: [None for _ in iter(int, 1)])\nreturn 5", "ok"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "outcome"), ENDS.values(), ids=ENDS.keys())
def test_everything_ends_in_time(runner, body, outcome):
    start = time.monotonic()
    result = attack(runner, body)
    assert time.monotonic() - start < 3 * TIMEOUT + 5
    assert result.outcome == outcome or (outcome is None and result.outcome != "ok"), result


PATCHES = {
    "float": "import builtins\nbuiltins.float = lambda x: 99.0\nreturn divmod(5, 8)[1]",
    "isinstance": "import builtins\nbuiltins.isinstance = lambda *a: True\nreturn divmod(5, 8)[1]",
    "json": "import json\njson.dumps = lambda x: '[\"ok\", 99.0, \"\"]'\nreturn divmod(5, 8)[1]",
    "the worker": "import sys\nmain = sys.modules['__main__']\nmain._run_in_child = main._line = lambda *a: b'99\\n'\n"
    "return 5",
    "os.write": "import os\nos.write = lambda *a: 0\nreturn 5",
    "exit": "import os\nos._exit = lambda *a: None\nreturn 5",
}  # fmt: skip


@pytest.mark.parametrize("body", PATCHES.values(), ids=PATCHES.keys())
def test_patches_die_with_their_program(runner, body):
    attack(runner, body)  # its own result is its own affair
    others = [f"def solution(): return divmod({number}, 99)[1]" for number in range(9)]
    assert [result.value for result in runner.run(others, "lenient")] == list(range(9))


@pytest.mark.parametrize(
    "lie",
    [
        "class A(float):\n    def __float__(self): return 4711.0\nreturn A(5)",
        "class A(int):\n    def __eq__(self, other): return True\n    def __sub__(self, other): return 0\nreturn A(5)",
        "class A(str):\n    def __eq__(self, other): return True\n    __hash__ = None\nreturn A('5')",
        "class A:\n    def __eq__(self, other): return True\n    def __float__(self): return 5.0\nreturn A()",
        "class A(float):\n    def __class__(self): return str\n    def __repr__(self): return '4711.0'\nreturn A(5)",
    ],
)
def test_objects_that_lie_are_not_right(runner, lie):
    """Only plain values leave the child: what an object answers to a comparison does not matter."""
    body = "def solution():\n" + textwrap.indent(lie, "    ")
    verdict, after = verdicts_of(
        [Problem("a", "?", "4710"), Problem("b", "?", "7")], [body, NEXT],
        cot="program", answer_trigger="", config=RewardConfig(), runner=runner,
    )  # fmt: skip
    assert (after.outcome, after.reward) == ("correct", 1.0)
    assert verdict.outcome in ("wrong", "no_answer", "error")


SEARCH = """
import gc, sys
found, frame, seen = [], sys._getframe(), []
while frame:
    seen += [repr(frame.f_locals), repr(frame.f_globals)]
    frame = frame.f_back
seen += [repr(x) for x in gc.get_objects() if type(x) in (str, bytes, list, dict, tuple)]
seen += [repr(x) for module in list(sys.modules.values()) for x in vars(module).values()]
"""


def test_the_gold_answer_is_nowhere(runner):
    """A program that goes through all frames, objects and modules that it can reach finds its own text only."""
    body = SEARCH + "return sum('41414'.__add__('51515') in text for text in seen)"
    program = "def solution():\n" + textwrap.indent(body.strip(), "    ")
    problems = [Problem("a", "?", "4141451515"), Problem("b", "?", "7")]
    completions = [program, "def solution(): return divmod(7, 8)[1] + 0 * 4141451515"]  # nor the next one's text
    with ProgramRunner(1, timeout=20.0, memory=1024) as patient:
        found = verdicts_of(
            problems, completions, cot="program", answer_trigger="", config=RewardConfig(), runner=patient
        )
    assert (found[0].outcome, found[0].value) == ("wrong", 0)
    assert found[1].outcome == "correct"


def test_a_sleeper_does_not_outlast_the_deadline():
    sleepers = [f"import time\ndef solution(): time.sleep({60 + number})" for number in range(8)]
    with ProgramRunner(2, timeout=10.0, memory=256, deadline=1.5) as runner:
        start = time.monotonic()
        results = runner.run([NEXT, *sleepers], "lenient")
        assert time.monotonic() - start < 5
        assert results[0] == ProgramResult("ok", 7, "")
        assert {result.outcome for result in results[1:]} == {"deadline"}
        assert runner.run([NEXT], "lenient") == [ProgramResult("ok", 7, "")]
        assert runner.replaced == 0


def test_threads_of_the_trainer_may_score_at_once(runner):
    """A reward is not bound to the main thread, as one that works by SIGALRM is."""
    results: dict[int, ProgramResult] = {}

    def ask(number):
        (results[number],) = runner.run([f"def solution(): return divmod({number}, 99)[1]"], "lenient")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: result.value for number, result in results.items()} == {0: 0, 1: 1, 2: 2, 3: 3}


# Kernels that grant less


@pytest.fixture
def weaker(monkeypatch):
    """A runner whose workers find a kernel in which the code given has run first."""
    opened = []

    def make(code, **settings):
        script = f"import resource, sys\nfrom reft_jax.reward import sandbox, worker\n{code}\nworker.main(sys.argv[1:])"
        monkeypatch.setattr(programs, "WORKER", ("-P", "-c", script))
        opened.append(ProgramRunner(1, TIMEOUT, 256, **settings))
        return opened[-1]

    yield make
    for runner in opened:
        runner.close()


NO_LANDLOCK = "sandbox.restrict_files = lambda: False\n"
NO_SECCOMP = "sandbox.seccomp_is_granted = lambda: False\n"
NO_LIMITS = "def refuse(*a): raise OSError(1, 'refused')\nresource.setrlimit = refuse\n"


def test_without_landlock_no_file_is_opened_at_all(weaker):
    runner = weaker(NO_LANDLOCK)
    assert runner.start() == ("limits", "seccomp")
    assert attack(runner, "return len(open('/etc/passwd').read())").outcome == "forbidden"
    assert attack(runner, "import wave\nreturn 5").outcome == "forbidden"
    for module in ("fractions", "decimal", "statistics", "datetime", "itertools", "random", "re"):
        assert attack(runner, f"import {module}\nreturn 5").value == 5, module


def test_without_seccomp_files_are_safe(weaker, tmp_path):
    runner = weaker(NO_SECCOMP)
    assert runner.start() == ("limits", "landlock")
    path = tmp_path / "file"
    path.write_text("x")
    for body in (f"return len(open({str(path)!r}).read())", f"import os\nos.remove({str(path)!r})"):
        assert attack(runner, body).outcome == "forbidden"
    assert path.read_text() == "x"


def test_the_minimum_is_enough_to_run_and_less_is_not(weaker):
    runner = weaker(NO_LANDLOCK + NO_SECCOMP)
    assert runner.start() == ("limits",)
    assert attack(runner, "while True: pass").outcome == "timeout"
    with pytest.raises(RuntimeError, match=r"cannot be limited.*reward\.sandbox `unsafe`"):
        weaker(NO_LANDLOCK + NO_SECCOMP + NO_LIMITS).start()
    unsafe = weaker(NO_LIMITS, sandbox="unsafe")
    assert unsafe.start() == ()
    assert attack(unsafe, "return [5][0]").value == 5
    assert attack(unsafe, "while True: pass").outcome == "timeout"  # by the timer of the process


def test_unsafe_is_limits_alone():
    with ProgramRunner(1, TIMEOUT, 256, sandbox="unsafe") as runner:
        assert runner.start() == ("limits",)
        assert attack(runner, "return min(1, len(open('/etc/passwd').read()))").value == 1


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_of_system_calls_are_those_of_the_kernels_headers(machine):
    path = Path(HEADERS[machine])
    if not path.exists():
        pytest.skip(f"{path}, of the kernel's headers, is not installed")
    text = path.read_text().replace("__NR3264_fstatat", "__NR_newfstatat").replace("__NR3264_", "__NR_")
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", text)}
    column = sandbox._MACHINES[machine][0]
    for name, pair in sandbox._CALLS.items():
        assert pair[column] == numbers.get(name), name


def test_results_cross_the_pipe_as_plain_json(runner):
    """The only thing that comes out of a child is one line; a deep or huge one is an error, not a crash."""
    for forged in ("[" * 4000, json.dumps(["ok", 10**400, ""]), '["ok", true, ""]', '["ok", {}, ""]', "9" * 8000):
        write = f"os.write(fd, {forged.encode()!r} + b'\\n')"
        body = f"import os\nfor fd in range(3, 9):\n    try: {write}\n    except OSError: pass"
        assert attack(runner, body).outcome == "error", forged[:20]
