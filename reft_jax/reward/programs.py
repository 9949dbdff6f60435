"""Running programs that a model wrote: a pool of worker processes, texts in, one `ProgramResult` each out.

The workers are commands of their own (`worker.py`), started with `subprocess` and spoken to over pipes: the process
that trains is never forked, needs no signal handlers or threads, and its modules are not imported again. A worker forks
one child per program, which gives up what it does not need before the program starts; `worker` and `sandbox` say how.
That takes some 5 ms, so programs that are only arithmetic are computed by `arithmetic` instead, with the same results.

Contained everywhere, by limits: endless loops, memory (not on a Mac), output, writing to files, crashes, sudden ends,
forged results, the end of a worker. Contained by the Linux kernel, where `ProgramRunner.start` names the layers
`landlock` and `seccomp`: files of the user, network, processes, threads, signals, look at other processes.

NOT contained: faults of the kernel itself; what a program can learn by its own clock; whether a path exists; the
processor, memory and time that the limits grant. Without these two layers, programs run with the rights of the user
who trains: they can read files, use the network, delete files and create empty ones, signal the user's processes, and
under root start processes that outlive them. Gold answers are never sent to the workers.
"""

import dataclasses
import itertools
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

from reft_jax.reward.answers import Rules
from reft_jax.reward.arithmetic import evaluate

ProgramOutcome = Literal["ok", "error", "timeout", "memory", "forbidden", "deadline"]
Containment = Literal["contained", "unsafe"]
WORKER = ("-P", "-m", "reft_jax.reward.worker")

_IN_FLIGHT = 4  # programs that a worker has been sent: it never waits for us, and little queues behind a slow one
_GRACE = 30.0  # seconds beyond a program's wall clock limit before its worker is taken for dead; covers importing sympy
_INHERITED = ("HOME", "LD_LIBRARY_PATH", "PYTHONHOME")  # what finding Python's libraries may need
_FIXED = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
_ROOT = str(Path(__file__).parents[2])  # where workers find the package


@dataclasses.dataclass(frozen=True)
class ProgramResult:
    """What came out of one program.

    Attributes:
        outcome: `ok` where `solution()` returned, with or without an answer; `error` for any exception or sudden end;
            `timeout`; `memory`; `forbidden` where the sandbox stopped it; `deadline` where the batch's time was over.
        value: the returned number or text; None where there is none, or it is of a kind that is no answer.
        detail: why there is no value, for people.
    """

    outcome: ProgramOutcome
    value: str | int | float | None
    detail: str


class ProgramRunner:
    """A pool of worker processes, started when first needed and kept until `close`.

    CPU time decides what a timeout is, so that a verdict does not depend on how busy the machine is; 3 x `timeout` + 1
    seconds by the clock is the backstop. One `run` at a time: a second thread waits.

    Args:
        workers: programs that run at the same time.
        timeout: CPU seconds that one program may use.
        memory: megabytes of address space that one program may use beyond its worker's (not enforced on a Mac).
        deadline: seconds by the clock that one `run` may take; programs without a result by then have the outcome
            `deadline`. Many programs that sleep would otherwise hold up a run for hours.
        sandbox: `contained` takes all that the kernel grants, and at least the limits; `unsafe` takes only limits, and
            goes on without them.

    Attributes:
        replaced: workers that died at work and were replaced, so far.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(
        self,
        workers: int,
        timeout: float,
        memory: int,
        *,
        deadline: float = 300.0,
        sandbox: Containment = "contained",
    ) -> None:
        positive = {"workers": workers, "timeout": timeout, "memory": memory, "deadline": deadline}
        for name, number in positive.items():
            if number <= 0:
                raise ValueError(f"{name} must be positive, got {number}")
        self.replaced = 0
        self._size = workers
        self._timeout = timeout
        self._memory = memory
        self._deadline = deadline
        self._sandbox: Containment = sandbox
        self._pools: dict[str, list[_Worker]] = {"plain": [], "sympy": []}
        self._lock = threading.Lock()

    def start(self) -> tuple[str, ...]:
        """Start a worker, have it run a program, and tell its layers of containment: `limits`, `landlock`, `seccomp`.

        Raises:
            RuntimeError: the worker did not start, cannot limit programs, or did not run this one.
        """
        with self._lock:
            (result,) = self._run_on("plain", ["def solution(): return 5"], "sane")
            if result != ProgramResult("ok", 5, ""):
                raise RuntimeError(f"programs cannot be run on this machine: {result.outcome}, {result.detail}")
            return self._pools["plain"][0].layers

    def run(self, programs: Sequence[str], rules: Rules) -> list[ProgramResult]:
        """Run each program and call its `solution()`; identical programs run once, plain arithmetic without a worker.

        Args:
            programs: Python sources that define `solution()`; `math` and `sympy` need no import.
            rules: `sane` runs a program whole in one namespace; `reference` cuts it at its first blank line, makes
                `sys.exit` `print`, and keeps top-level names out of `solution()`'s reach.

        Returns:
            One result per program, in order.

        Raises:
            RuntimeError: a worker did not start, or cannot limit programs.
        """
        known = {text: evaluate(text, rules) for text in dict.fromkeys(programs)}
        results = {text: ProgramResult(*found) for text, found in known.items() if found}
        rest = [text for text, found in known.items() if not found]
        with self._lock:
            try:
                for libraries in ("plain", "sympy"):
                    todo = [text for text in rest if ("sympy" in text) == (libraries == "sympy")]
                    if todo:
                        results |= zip(todo, self._run_on(libraries, todo, rules))
            except BaseException:  # the workers hold requests whose replies nobody will read
                self.close()
                raise
        return [results[text] for text in programs]

    def close(self) -> None:
        """End all workers; a later `run` starts new ones."""
        for pool in self._pools.values():
            for worker in pool:
                worker.end()
            pool.clear()

    def __enter__(self) -> "ProgramRunner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, libraries: str) -> "_Worker":
        return _Worker([f"{self._timeout}", f"{self._memory}", libraries, self._sandbox])

    def _run_on(self, libraries: str, programs: list[str], rules: Rules) -> list[ProgramResult]:
        """Feed the workers of one pool until every program has a result, or the deadline has come."""
        pool = self._pools[libraries]
        for worker in [worker for worker in pool if worker.ended()]:  # while idle: no program of ours is to blame
            worker.end()
            pool.remove(worker)
        pool.extend(self._start(libraries) for _ in range(min(self._size, len(programs)) - len(pool)))
        results: dict[int, ProgramResult] = {}
        pending = deque(range(len(programs)))
        patience = 3 * self._timeout + 1 + _GRACE
        deadline = time.monotonic() + self._deadline
        while len(results) < len(programs) and time.monotonic() < deadline:
            for depth, worker in itertools.product(range(_IN_FLIGHT), pool):
                if pending and len(worker.sent) <= depth:
                    index = pending.popleft()
                    worker.send(index, json.dumps([programs[index], rules]))
            _wait(pool, until=min([deadline, *(worker.progress + patience for worker in pool if worker.sent)]))
            for place, worker in enumerate(pool):
                results.update(worker.receive())
                overdue = worker.sent and time.monotonic() > worker.progress + patience
                if worker.failure or overdue:
                    self.replaced += 1
                    pool[place] = self._start(libraries)
                    worker.end()
                    if worker.sent:  # it works in order: the first one ended it, the others were only in the queue
                        reason = worker.failure or "its worker stopped answering"
                        results[worker.sent.popleft()] = ProgramResult("error", None, reason)
                        pending.extendleft(reversed(worker.sent))
        for worker in [worker for worker in pool if worker.sent]:  # the deadline has come
            worker.end()
            pool.remove(worker)
        late = ProgramResult("deadline", None, f"not done in the {self._deadline:g} s of its batch")
        return [results.get(index, late) for index in range(len(programs))]


class _Worker:
    """One worker process, its two pipes, and the programs it has been sent.

    Attributes:
        layers: of containment, once it is ready.
        sent: indices of the programs without a reply yet, oldest first.
        progress: `time.monotonic()` when it last gave sign of life or had nothing to do.
        failure: why it is of no use any more; empty while it works.
    """

    def __init__(self, arguments: list[str]) -> None:
        # -P: the working directory is not searched for modules. cwd: relative paths in programs do not meet the user's
        # files. A session of its own: a keyboard interrupt reaches us alone, and we end the workers.
        self._contained = "contained" in arguments
        path = os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, *WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env={name: os.environ[name] for name in _INHERITED if name in os.environ} | {**_FIXED, "PYTHONPATH": path},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipes = (self._process.stdin, self._process.stdout)
        self.requests, self.replies = (pipe.fileno() for pipe in self._pipes)
        os.set_blocking(self.requests, False)  # a program may have stopped the worker: no write may wait for it
        os.set_blocking(self.replies, False)
        self.sent: deque[int] = deque()
        self.progress = time.monotonic()
        self.failure = ""
        self.outbox = b""
        self.layers: tuple[str, ...] = ()
        self._inbox = b""
        self._ready = False

    def send(self, index: int, request: str) -> None:
        """Queue a request and write what the pipe takes now."""
        if not self.sent:
            self.progress = time.monotonic()
        self.sent.append(index)
        body = request.encode()
        self.outbox += b"%08d" % len(body) + body
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes of the queued requests."""
        try:
            while self.outbox:
                self.outbox = self.outbox[os.write(self.requests, self.outbox) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # reading its replies will tell
            self.outbox = b""

    def receive(self) -> dict[int, ProgramResult]:
        """The results that have come in, by index; sets `failure` if the worker ended or wrote something else."""
        self.flush()
        while chunk := self._read():
            self._inbox += chunk
        *lines, self._inbox = self._inbox.split(b"\n")
        if lines and not self._ready:
            self._begin(lines.pop(0))
        if self.failure and not self._ready:
            raise RuntimeError(f"a program worker ({WORKER[-1]}) did not start; its own message is on stderr")
        results: dict[int, ProgramResult] = {}
        for line in lines:
            self.progress = time.monotonic()
            if not self.sent:
                self.failure = "its worker answered unasked"  # a program wrote into its worker's pipe
                break
            results[self.sent.popleft()] = _result(line)
        return results

    def _begin(self, line: bytes) -> None:
        """Takes a worker's first line, which names its layers of containment."""
        _, layers = json.loads(line)
        self.layers, self._ready = tuple(layers), True
        if self._contained and "limits" not in layers:
            raise RuntimeError(
                "generated programs cannot be limited on this system (processor time, files, processes); with "
                "reward.sandbox `unsafe` they run nevertheless, with all that your user may do"
            )

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Close the pipes, on which the worker and what it runs end by themselves; kill it if it does not."""
        for pipe in self._pipes:
            pipe.close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> bytes:
        """What is in the pipe now; at its end, sets `failure`."""
        try:
            chunk = os.read(self.replies, 65536)
        except BlockingIOError:
            return b""
        if not chunk:
            self.failure = "its worker ended"
        return chunk


def _result(line: bytes) -> ProgramResult:
    """A worker's line as a result; a program shares a process with what writes its own line, and may have forged it."""
    try:
        outcome, value, detail = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        outcome, value, detail = None, None, None
    if outcome in get_args(ProgramOutcome) and _is_plain(value) and isinstance(detail, str):
        return ProgramResult(outcome, value, detail)
    return ProgramResult("error", None, "its result was not readable")


def _is_plain(value: object) -> bool:
    """Whether this can be a result's value: of an int, one that a float could stand for."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, float | str | None)


def _wait(pool: Sequence[_Worker], until: float) -> None:
    """Sleep until a worker has written, can take more of what is queued for it, or `until` (of `time.monotonic`)."""
    poller = select.poll()
    for worker in pool:
        poller.register(worker.replies, select.POLLIN)
        if worker.outbox:
            poller.register(worker.requests, select.POLLOUT)
    poller.poll(max(0.0, until - time.monotonic()) * 1000 + 1)
