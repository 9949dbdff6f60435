"""Ahead-of-time compilation: each step once for each bucket, counted, so that no shape is ever compiled by surprise."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Bucket = tuple[int, ...]
Lowerable = tuple[Any, tuple[Any, ...]]  # a jitted function and its abstract arguments


class Step(NamedTuple):
    """A jitted step of a run, in every shape that it may be asked for."""

    build: Callable[..., Lowerable]
    """(sizes of a bucket) -> (jitted function, abstract arguments); touches no device."""
    buckets: tuple[Bucket, ...]
    """The padded lengths that a batch may have."""
    rows: int = 0
    """Rows of a batch; 0 for a step that takes none."""
    response: int = 0
    """Tokens of a response, where it is no part of the bucket."""

    @property
    def largest(self) -> Bucket:
        """The bucket with every length at its longest."""
        return tuple(map(max, zip(*self.buckets)))


class CompiledSteps:
    """The executables of a run's steps; calling one with other shapes or shardings raises.

    Args:
        steps: by name, see `algorithms.steps.steps`.
        say: told of each step that is about to be compiled, which may take minutes.
    """

    def __init__(self, steps: Mapping[str, Step], say: Callable[[str], None] = lambda _: None) -> None:
        self.steps = steps
        self.say = say
        self._compiled: dict[tuple[str, Bucket], Any] = {}

    def __len__(self) -> int:
        """Executables compiled so far."""
        return len(self._compiled)

    def __contains__(self, name: str) -> bool:
        """Whether the run has a step of this name."""
        return name in self.steps

    def get(self, name: str, *bucket: int) -> Any:
        """The executable of a step for a bucket, compiled when it is first asked for.

        Raises:
            KeyError: the run has no such step.
            RuntimeError: the step has no such bucket.
        """
        step = self.steps[name]
        if (name, bucket) not in self._compiled:
            if bucket not in step.buckets:
                raise RuntimeError(f"step {name} was asked for bucket {bucket}; the config has {step.buckets}")
            self.say(f"compiling {name}{in_words(step, bucket)}")
            jitted, args = step.build(*bucket)
            # A call has the step's name in a profile, where most programs would be called `step`.
            self._compiled[name, bucket] = jax.profiler.annotate_function(jitted.lower(*args).compile(), name=name)
        return self._compiled[name, bucket]


def in_words(step: Step, bucket: Bucket) -> str:
    """The shape that a step is compiled for, to go after its name: ` for 8 rows of 36 + 54 tokens`."""
    lengths = (*bucket, step.response) if len(bucket) == 1 and step.response else bucket
    return f" for {step.rows} rows of {' + '.join(map(str, lengths))} tokens" if lengths else ""
