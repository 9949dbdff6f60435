"""The command behind `pool.ProgramRunner`: reads programs, runs each in a child of its own, writes what came out.

    python -m reft_jax.reward.worker CPU_SECONDS MEGABYTES plain|sympy|math_verify|TASKS|FUNCTION contained|unsafe

A request on stdin is `[program, rules]` as JSON behind its length in 8 digits; a reply on stdout is a line of JSON,
`[outcome, value, detail]`, in the same order. The first line tells the layers of containment: `["ready", ["limits",
"landlock", "seccomp"]]`. It ends when stdin ends. Nothing of the package is imported but `sandbox`, because a fork
costs by the memory there is and touches: 50 MB of sympy make it four times as dear. Hence workers with and without it;
those with math-verify compare expressions. TASKS is a JSON list of `[name, parameters]` of reasoning-gym's tasks,
whose scorers the worker then has (`scorers`). FUNCTION is a JSON object: a reward function's import path as `function`,
and as `path` the folders that its module may be in.

A child has a session of its own, no descriptors but /dev/null and its result pipe, nothing of the user's environment,
and limits on CPU time, address space, written files, core dumps and (except for root, whom the kernel exempts) new
processes and threads; those are the layer "limits". What the others take is told in `sandbox`. When the child has
answered, ended or outstayed the clock, its whole process group is killed.
"""

import contextlib
import errno
import gc
import importlib
import json
import logging
import math
import numbers
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from reft_jax.reward import sandbox

TEXT_LIMIT = 256  # characters of a result or a message; a longer text is no answer
LINE_LIMIT = 8192  # bytes of a reply: two such texts as JSON escapes, with room to spare
_OUT_OF_MEMORY = b'["memory", null, "MemoryError"]\n'  # made beforehand: later there may be no memory to make it
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # numpy has to have it
# What programs import, taken in beforehand where no file will be opened afterwards.
_COMMON = (
    *("bisect", "calendar", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq"),
    *("itertools", "json", "numbers", "operator", "random", "re", "statistics", "string", "typing"),
)


class Bounds(NamedTuple):
    """What holds for every program of a worker; the limits are in seconds, by the clock for one that sleeps."""

    cpu: float
    wall: float
    limited: bool
    seccomp: sandbox.Seccomp | None


def main(arguments: list[str]) -> None:
    """Serve until stdin ends or the reader of stdout is gone."""
    cpu, megabytes, libraries, containment = float(arguments[0]), int(arguments[1]), *arguments[2:]
    names: dict[str, Any] = {"__name__": "program", "math": math}
    os.environ.update(_ONE_THREAD)
    if libraries == "sympy":
        import sympy

        names["sympy"] = sympy
    elif libraries == "math_verify":
        names["same_mathematics"] = _same_mathematics()
    elif libraries.startswith("["):
        from reft_jax.reward import scorers

        names["score"] = scorers.scores(json.loads(libraries))
    elif libraries.startswith("{"):
        from reft_jax.reward import functions

        wanted = json.loads(libraries)
        sys.path += [folder for folder in wanted["path"] if folder not in sys.path]
        try:
            names["call"] = functions.worker_call(wanted["function"])
        except Exception as error:  # of the user's own module, which may do anything
            sys.exit(f"{type(error).__name__}: {error}")
    requests, replies = os.dup(0), os.dup(1)
    layers, seccomp = _confine_all(megabytes, contained=containment == "contained")
    os.write(replies, json.dumps(["ready", layers]).encode() + b"\n")
    poller = select.poll()
    poller.register(replies, 0)  # reports only that nobody reads our replies any more
    gc.collect()
    gc.freeze()  # a collection in a child must not touch, and so copy, the worker's pages
    bounds = Bounds(cpu, 3 * cpu + 1, "limits" in layers, seccomp)
    with contextlib.suppress(BrokenPipeError):
        while request := _read_request(requests):
            os.write(replies, _run_in_child(request, names, bounds, requests, replies, poller))


def _read_request(requests: int) -> bytes:
    """The next request, and not a byte of the one after: it would be in the memory of this one's child."""
    return _read_exactly(requests, int(_read_exactly(requests, 8) or 0))


def _read_exactly(requests: int, size: int) -> bytes:
    """So many bytes; none where stdin ends before."""
    parts = []
    while size:
        parts.append(os.read(requests, size))
        if not parts[-1]:
            return b""
        size -= len(parts[-1])
    return b"".join(parts)


def _confine_all(megabytes: int, *, contained: bool) -> tuple[list[str], sandbox.Seccomp | None]:
    """Give up, once and for all children, what neither they nor this process need; the layers, and one for later."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.environ.clear()
    os.environ.update(_ONE_THREAD)
    sys.dont_write_bytecode = True
    layers = ["limits"] if _limit_all(megabytes) else []
    seccomp = None
    if contained:
        filtered = sandbox.seccomp_is_granted()
        if sandbox.restrict_files():
            layers.append("landlock")
        elif filtered:
            for name in _COMMON:
                importlib.import_module(name)
        if filtered:
            layers.append("seccomp")
            seccomp = sandbox.Seccomp(files="landlock" in layers)
    return layers, seccomp


def _limit_all(megabytes: int) -> bool:
    """Sets the limits that all children have in common; whether this system can, with those of `_confine_one`."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with contextlib.suppress(FileNotFoundError), open("/proc/self/statm", encoding="ascii") as statm:  # Linux only
            used = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)
        return {"RLIMIT_CPU", "RLIMIT_NPROC"} <= set(dir(resource))
    except (OSError, ValueError):
        return False


def _run_in_child(
    request: bytes, names: dict[str, Any], bounds: Bounds, requests: int, replies: int, poller: select.poll
) -> bytes:
    """Fork, let the child run the program, and return the line about it."""
    result, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(requests)
            os.close(replies)
            os.close(result)
            _confine_one(bounds)
            _answer(request, names, child_end)
        finally:
            os._exit(1)
    os.close(child_end)
    line, in_time = _read_line(result, time.monotonic() + bounds.wall, poller, replies)
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
        return _line("timeout", None, f"no result after {bounds.wall:g} s by the clock")
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if ended_by in (signal.SIGPROF, signal.SIGXCPU) or usage.ru_utime + usage.ru_stime >= bounds.cpu:
        return _line("timeout", None, f"more than {bounds.cpu:g} s of CPU time")
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


def _confine_one(bounds: Bounds) -> None:
    """Give up, in the child, what the worker still needed."""
    os.setsid()
    # SIGPROF decides, in fractions of a second; SIGXCPU and SIGKILL follow for a program that blocks it. The alarm
    # ends a child whose worker was killed.
    signal.setitimer(signal.ITIMER_PROF, bounds.cpu)
    signal.setitimer(signal.ITIMER_REAL, bounds.wall + 1)
    if bounds.limited:
        seconds = math.ceil(bounds.cpu)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds + 1, seconds + 2))
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if bounds.seccomp is not None:
        bounds.seccomp.install()


def _answer(request: bytes, names: dict[str, Any], result: int) -> NoReturn:
    """Run the program in the child and send what came out."""
    try:
        program, rules = json.loads(request)
        value, detail = plain_value(_execute(program, rules, names), rules)
        line = _line("ok", value, detail)
    except MemoryError:
        line = _OUT_OF_MEMORY
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: whatever it was, it is told
        line = _line("forbidden" if _is_refusal(error) else "error", None, message(error))
    os.write(result, line)
    os._exit(0)


def _is_refusal(error: BaseException) -> bool:
    """Whether the sandbox stopped the program; for a thread, Python does not pass on the kernel's answer."""
    refused = isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES)
    return refused or error.args == ("can't start new thread",)


def message(error: BaseException) -> str:
    """An exception as a result's detail."""
    return f"{type(error).__name__}: {error}"[:TEXT_LIMIT]


def _line(outcome: str, value: str | int | float | None, detail: str) -> bytes:
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


def plain_value(value: Any, rules: str) -> tuple[str | int | float | None, str]:
    """The result as a number or a short text, or None and why; objects never leave the child."""
    if rules == "reference":
        try:
            return float(value), ""
        except Exception:  # the reference's own: any failure of float() means that it is not a number
            return str(value)[:TEXT_LIMIT], ""
    value = _only(value)
    if isinstance(value, str):
        return (value, "") if len(value) <= TEXT_LIMIT else (None, f"returned a text of {len(value)} characters")
    if _is_real(value):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # symbols, signalling nan, 10**400
            number = float(value)
            if not math.isfinite(number):
                return None, f"returned {number}"
            return (int(value) if isinstance(value, numbers.Integral) else number), ""
    return None, f"returned a {type(value).__name__}"[:TEXT_LIMIT]


def _same_mathematics() -> Callable[[str, str], int]:
    """Whether two LaTeX expressions are equal for math-verify, as 1 or 0; loaded, and its parser warm, before any fork.

    Only its LaTeX grammar is used, which executes nothing. Its time limits are off: they use signals, and the child has
    limits of its own.
    """
    logging.disable()
    from math_verify import LatexExtractionConfig, parse, verify

    def parsed(expression: str) -> list[Any]:
        config = [LatexExtractionConfig()]
        return parse(f"${expression}$", config, fallback_mode="no_fallback", parsing_timeout=None)

    def same(gold: str, answer: str) -> int:
        return int(verify(parsed(gold), parsed(answer), timeout_seconds=None))

    same(r"\frac{1}{2}x", r"\sqrt{2}+\{1,2\}")
    return same


def _only(value: Any) -> Any:
    """The one solution that sympy's solvers return in a list or set, or the number of a 0-d array; else `value`."""
    sympy = sys.modules.get("sympy")
    if sympy and isinstance(value, list | sympy.FiniteSet) and len(value) == 1:
        (solution,) = value
        return solution if isinstance(solution, sympy.Basic) else value
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _is_real(value: Any) -> bool:
    """Whether `value` is a real number by its type: int, float, Fraction, Decimal, numpy's scalars, sympy's terms."""
    if isinstance(value, numbers.Complex):
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    sympy = sys.modules.get("sympy")
    return isinstance(value, numbers.Number) or (sympy is not None and isinstance(value, sympy.Expr))


if __name__ == "__main__":
    main(sys.argv[1:])
