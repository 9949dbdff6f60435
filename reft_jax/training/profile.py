"""JAX's trace of some steps of a run: what devices and host were at while nothing was compiled any more."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

FOLDER = "profile"
"""In a run's folder; each trace has a folder of its own in it, named by the time."""

PERFETTO = "perfetto_trace.json.gz"


class Profile:
    """Traces steps of one stage, the first ones behind a step that compiled nothing.

    A trace has an event for each step, by its stage's name and its number, and in it those of the compiled steps that
    it called, by theirs, and `rollout` and `reward`; on an accelerator what its devices did, too.

    Args:
        run_dir: where the trace goes.
        stage: whose steps are traced.
        steps: how many; 0 traces none.
        say: told what was traced, and how to open it.
    """

    def __init__(self, run_dir: Path, stage: str, steps: int, say: Callable[[str], None]) -> None:
        self._folder = run_dir / FOLDER
        self._stage = stage
        self._steps = steps
        self._say = say
        self._traced: list[int] = []
        self._compiled: int | None = None
        self._tracing = False

    @contextlib.contextmanager
    def step(self, stage: str, number: int, compiled: int) -> Iterator[None]:
        """Inside, a step of a stage is done.

        Args:
            stage: its name.
            number: of the step.
            compiled: executables compiled before it.
        """
        if stage != self._stage or len(self._traced) >= self._steps:
            yield
            return
        if not self._tracing and compiled == self._compiled:
            self._begin()
        self._compiled = compiled
        if not self._tracing:
            yield
            return
        self._traced.append(number)
        with jax.profiler.StepTraceAnnotation(stage, step_num=number):
            yield
        if len(self._traced) == self._steps:
            self._end()

    def wait(self, arrays: Any) -> None:
        """Lets a step that is traced end where its devices do."""
        if self._tracing:
            jax.block_until_ready(arrays)

    def close(self) -> None:
        """Ends a trace that is being made, and says so where there are fewer steps than asked for."""
        if self._tracing:
            self._end()
        elif self._compiled is not None and not self._traced:
            self._say(
                f"profile: no step of {self._stage} was traced, for there was none behind one that compiled nothing"
            )

    def _begin(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each call of each function, which slows the host down and hides the rest
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
        self._tracing = True

    def _end(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
        made = max(self._folder.glob(f"plugins/profile/*/{PERFETTO}"))
        first, last = self._traced[0], self._traced[-1]
        self._say(
            f"profile: {self._stage} {first} to {last} of {self._steps} steps asked for: open {made} at "
            f"https://ui.perfetto.dev, or `pip install xprof` and `xprof --logdir {self._folder}`"
        )

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
