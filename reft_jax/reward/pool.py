"""A pool of workers that run programs which a model wrote: texts in, one `ProgramResult` each out.

A run takes some 5 ms, so programs that are only arithmetic are computed by `arithmetic` instead, with the same results.
"""

import itertools
import json
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from reft_jax.config import Containment, Rules
from reft_jax.problem import TaskItem
from reft_jax.reward.arithmetic import evaluate
from reft_jax.reward.parse import program_of
from reft_jax.reward.programs import ProgramResult, Worker

_IN_FLIGHT = 4  # programs that a worker has been sent: it never waits for us, and little queues behind a slow one
_GRACE = 30.0  # seconds beyond a program's wall clock limit before its worker is taken for dead; covers importing sympy


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
        self._pools: dict[str, list[Worker]] = {"plain": [], "sympy": [], "math_verify": []}
        self._lock = threading.Lock()

    def start(self) -> tuple[str, ...]:
        """Start a worker, have it run a program, and tell its layers of containment: `limits`, `landlock`, `seccomp`.

        Raises:
            RuntimeError: the worker did not start, cannot limit programs, or did not run this one.
        """
        with self._lock:
            (result,) = self._run_on("plain", ["def solution(): return 5"], "lenient")
            if result != ProgramResult("ok", 5, ""):
                raise RuntimeError(f"programs cannot be run on this machine: {result.outcome}, {result.detail}")
            return self._pools["plain"][0].layers

    def run(self, programs: Sequence[str], rules: Rules) -> list[ProgramResult]:
        """Run each program and call its `solution()`; identical programs run once, plain arithmetic without a worker.

        Args:
            programs: Python sources that define `solution()`; `math` and `sympy` need no import. `lenient` takes them
                out of fences (`parse.program_of`).
            rules: `lenient` runs a program whole in one namespace; `reference` cuts it at its first blank line, makes
                `sys.exit` `print`, and keeps top-level names out of `solution()`'s reach.

        Returns:
            One result per program, in order.

        Raises:
            RuntimeError: a worker did not start, or cannot limit programs.
        """
        if rules != "reference":
            programs = [program_of(text) for text in programs]
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

    def same_mathematics(self, pairs: Sequence[tuple[str, str]]) -> list[ProgramResult]:
        """Whether two LaTeX expressions are equal, by math-verify in a worker: the value 1 or 0, or why there is none.

        Equal texts are equal without being looked at.

        Args:
            pairs: gold answer and answer.

        Raises:
            RuntimeError: a worker did not start.
        """
        results = {pair: ProgramResult("ok", 1, "") for pair in pairs if pair[0] == pair[1]}
        todo = [pair for pair in dict.fromkeys(pairs) if pair not in results]
        programs = [f"def solution(): return same_mathematics({gold!r}, {answer!r})" for gold, answer in todo]
        results |= zip(todo, self._call("math_verify", programs))
        return [results[pair] for pair in pairs]

    def scores(self, answers: Sequence[tuple[TaskItem, str]]) -> list[ProgramResult]:
        """What tasks of reasoning-gym score answers to their items, from 0 to 1, by their scorers in a worker.

        The workers are those of just these tasks.

        Args:
            answers: item and answer.

        Raises:
            RuntimeError: a worker did not start.
        """
        tasks = list(dict.fromkeys(item.task for item, _ in answers))
        todo = list(dict.fromkeys(answers))
        programs = [
            f"def solution(): return score({tasks.index(item.task)}, {item.entry!r}, {answer!r})"
            for item, answer in todo
        ]
        libraries = json.dumps([[name, json.loads(config)] for name, config in tasks])
        results = dict(zip(todo, self._call(libraries, programs)))
        return [results[one] for one in answers]

    def start_function(self, path: str) -> None:
        """Has a worker import a reward function of the user's own.

        Raises:
            RuntimeError: the worker did not start, its message being on stderr.
        """
        (result,) = self._call(_function(path), ["def solution(): return 5"])
        if result != ProgramResult("ok", 5, ""):
            raise RuntimeError(f"{result.outcome}, {result.detail}")

    def call_function(self, path: str, arguments: Sequence[str]) -> list[ProgramResult]:
        """What a reward function of the user's own says, see `functions.worker_call`, in workers that have it alone.

        Args:
            path: of the function.
            arguments: of each call, pickled, in base64.

        Raises:
            RuntimeError: a worker did not start.
        """
        return self._call(_function(path), [f"def solution(): return call({entry!r})" for entry in arguments])

    def _call(self, libraries: str, programs: list[str]) -> list[ProgramResult]:
        """Runs programs of ours, on texts that are not."""
        with self._lock:
            try:
                return self._run_on(libraries, programs, "lenient") if programs else []
            except BaseException:
                self.close()
                raise

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

    def _start(self, libraries: str) -> "Worker":
        return Worker([f"{self._timeout}", f"{self._memory}", libraries, self._sandbox])

    def _run_on(self, libraries: str, programs: list[str], rules: Rules) -> list[ProgramResult]:
        """Feed the workers of one pool until every program has a result, or the deadline has come."""
        pool = self._pools.setdefault(libraries, [])
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


def _function(path: str) -> str:
    """What a worker is told to have: a reward function, and where this process would look for its module."""
    return json.dumps({"function": path, "path": [os.path.abspath(folder) for folder in sys.path]})


def _wait(pool: Sequence[Worker], until: float) -> None:
    """Sleep until a worker has written, can take more of what is queued for it, or `until` (of `time.monotonic`)."""
    poller = select.poll()
    for worker in pool:
        poller.register(worker.replies, select.POLLIN)
        if worker.outbox:
            poller.register(worker.requests, select.POLLOUT)
    poller.poll(max(0.0, until - time.monotonic()) * 1000 + 1)
