"""Programs that a model wrote, what came out of one, and the worker process that runs them; `pool` keeps the workers.

The workers are commands of their own (`worker.py`), started with `subprocess` and spoken to over pipes: the process
that trains is never forked, needs no signal handlers or threads, and its modules are not imported again. A worker forks
one child per program, which gives up what it does not need before the program starts; `worker` and `sandbox` say how.

Contained everywhere, by limits: endless loops, memory (not on a Mac), output, writing to files, crashes, sudden ends,
forged results, the end of a worker. Contained by the Linux kernel, where `ProgramRunner.start` names the layers
`landlock` and `seccomp`: files of the user, network, processes, threads, signals, look at other processes.

NOT contained: faults of the kernel itself; what a program can learn by its own clock; whether a path exists; the
processor, memory and time that the limits grant. Without these two layers, programs run with the rights of the user
who trains: they can read files, use the network, delete files and create empty ones, signal the user's processes, and
under root start processes that outlive them. Gold answers are not sent with programs; with
expressions and answers to tasks they are, which is why no code out of those is run (`scorers`).
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Literal, get_args

ProgramOutcome = Literal["ok", "error", "timeout", "memory", "forbidden", "deadline"]
WORKER = ("-P", "-m", "reft_jax.reward.worker")

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


class Worker:
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
