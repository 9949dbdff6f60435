"""The command behind `programs.ProgramRunner`: reads programs, runs each in a child of its own, writes what came out.

    python worker.py CPU_SECONDS MEGABYTES plain|sympy

Requests and replies are lines of JSON on stdin and stdout, in the same order: `[program, rules]` in, `[outcome, value,
detail]` out, after one line `"ready"`. It ends when stdin ends. This file is started by its path and imports nothing
of the package, because a fork costs by the memory there is and touches: 50 MB of sympy make it four times as dear.
Hence workers with and without it.

A child has a session of its own, no descriptors but /dev/null and its result pipe, an empty environment, and limits on
CPU time, address space, written files, core dumps and (except for root, whom the kernel exempts) new processes and
threads. When it has answered, ended or outstayed the clock, its whole process group is killed.
"""

import contextlib
import gc
import json
import math
import numbers
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NamedTuple, NoReturn

TEXT_LIMIT = 256  # characters of a result or a message; a longer text is no answer
LINE_LIMIT = 8192  # bytes of a reply: two such texts as JSON escapes, with room to spare
_OUT_OF_MEMORY = b'["memory", null, "MemoryError"]\n'  # made beforehand: later there may be no memory to make it


class Limits(NamedTuple):
    """What one program may use, in seconds: of CPU time, and by the clock, for one that sleeps or hides its work."""

    cpu: float
    wall: float


def main(arguments: list[str]) -> None:
    """Serve until stdin ends or the reader of stdout is gone."""
    cpu, megabytes, libraries = float(arguments[0]), int(arguments[1]), arguments[2]
    names: dict[str, Any] = {"__name__": "program", "math": math}
    if libraries == "sympy":
        import sympy

        names["sympy"] = sympy
    requests, replies = os.dup(0), os.dup(1)
    os.write(replies, b'"ready"\n')
    _confine_all(megabytes)
    poller = select.poll()
    poller.register(replies, 0)  # reports only that nobody reads our replies any more
    gc.collect()
    gc.freeze()  # a collection in a child must not touch, and so copy, the worker's pages
    with open(requests, "rb") as lines, contextlib.suppress(BrokenPipeError):
        for request in lines:
            os.write(replies, _run_in_child(request, names, Limits(cpu, 3 * cpu + 1), requests, replies, poller))


def _confine_all(megabytes: int) -> None:
    """Give up, once and for all children, what neither they nor this process need."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.environ.clear()
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(FileNotFoundError), open("/proc/self/statm", encoding="ascii") as statm:  # Linux only
        used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)


def _run_in_child(
    request: bytes, names: dict[str, Any], limits: Limits, requests: int, replies: int, poller: select.poll
) -> bytes:
    """Fork, let the child run the program, and return the line about it."""
    result, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(requests)
            os.close(replies)
            os.close(result)
            _confine_one(limits)
            _answer(request, names, child_end)
        finally:
            os._exit(1)
    os.close(child_end)
    line, in_time = _read_line(result, time.monotonic() + limits.wall, poller, replies)
    os.close(result)
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it has no group yet; a Mac refuses where only the zombie is left
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)  # where it had ended before, our signal does not change how
    line, whole, _ = line.partition(b"\n")  # whatever a forger added: one request, one line
    if whole:
        return line + whole
    if not in_time:
        return _line("timeout", None, f"no result after {limits.wall:g} s by the clock")
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if ended_by in (signal.SIGPROF, signal.SIGXCPU) or usage.ru_utime + usage.ru_stime >= limits.cpu:
        return _line("timeout", None, f"more than {limits.cpu:g} s of CPU time")
    return _line("error", None, f"killed by signal {ended_by}" if ended_by else "ended without a result")


def _read_line(result: int, deadline: float, poller: select.poll, replies: int) -> tuple[bytes, bool]:
    """What the child wrote, and whether its line was whole or it ended before the deadline and our reader's end."""
    line = b""
    poller.register(result, select.POLLIN)
    try:
        while b"\n" not in line and len(line) < LINE_LIMIT:
            ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready or any(descriptor == replies for descriptor, _ in ready):
                return b"", False
            chunk = os.read(result, LINE_LIMIT)
            if not chunk:
                break
            line += chunk
    finally:
        poller.unregister(result)
    return line, True


def _confine_one(limits: Limits) -> None:
    """Give up, in the child, what the worker still needed."""
    os.setsid()
    # SIGPROF decides, in fractions of a second; SIGXCPU and SIGKILL follow for a program that blocks it. The alarm
    # ends a child whose worker was killed.
    signal.setitimer(signal.ITIMER_PROF, limits.cpu)
    signal.setitimer(signal.ITIMER_REAL, limits.wall + 1)
    seconds = math.ceil(limits.cpu)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds + 1, seconds + 2))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _answer(request: bytes, names: dict[str, Any], result: int) -> NoReturn:
    """Run the program in the child and send what came out."""
    try:
        program, rules = json.loads(request)
        value, detail = plain_value(_execute(program, rules, names), rules)
        line = _line("ok", value, detail)
    except MemoryError:
        line = _OUT_OF_MEMORY
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: whatever it was, it is told
        line = _line("error", None, message(error))
    os.write(result, line)
    os._exit(0)


def message(error: BaseException) -> str:
    """An exception as a result's detail."""
    return f"{type(error).__name__}: {error}"[:TEXT_LIMIT]


def _line(outcome: str, value: str | float | None, detail: str) -> bytes:
    return json.dumps([outcome, value, detail]).encode() + b"\n"


def _execute(program: str, rules: str, names: dict[str, Any]) -> Any:
    """What `solution()` returns: the program whole in one namespace, or as the reference runs it."""
    names = dict(names)
    if rules != "reference":
        exec(compile(program, "<program>", "exec", dont_inherit=True), names)
        return eval("solution()", names)
    # Separate globals and locals, so that solution() does not see helpers and imports at top level.
    del names["__name__"]
    local: dict[str, Any] = {}
    exec(compile(reference_source(program), "<program>", "exec", dont_inherit=True), names, local)
    return eval("solution()", names, local)


def reference_source(program: str) -> str:
    """The reference's rewriting: imports first, `sys.exit` becomes `print`, the first blank line ends the program."""
    lines = ["import math", "import sympy"] if "sympy" in program else ["import math"]
    for line in program.replace("sys.exit", "print").split("\n"):
        if not line.strip():
            break
        lines.append(line)
    return "\n".join(lines)


def plain_value(value: Any, rules: str) -> tuple[str | float | None, str]:
    """The result as a number or a short text, or None and why; objects never leave the child."""
    if rules == "reference":
        try:
            return float(value), ""
        except Exception:  # the reference's own: any failure of float() means that it is not a number
            return str(value)[:TEXT_LIMIT], ""
    if isinstance(value, str):
        return (value, "") if len(value) <= TEXT_LIMIT else (None, f"returned a text of {len(value)} characters")
    if _is_real(value):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # symbols, signalling nan, 10**400
            number = float(value)
            return (number, "") if math.isfinite(number) else (None, f"returned {number}")
    return None, f"returned a {type(value).__name__}"[:TEXT_LIMIT]


def _is_real(value: Any) -> bool:
    """Whether `value` is a real number by its type: int, float, Fraction, Decimal, numpy's scalars, sympy's terms."""
    if isinstance(value, numbers.Complex):
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    sympy = sys.modules.get("sympy")
    return isinstance(value, numbers.Number) or (sympy is not None and isinstance(value, sympy.Expr))


if __name__ == "__main__":
    main(sys.argv[1:])
