"""Ahead-of-time compilation: each step once for each bucket, counted, so that no shape is ever compiled by surprise."""

from collections.abc import Callable
from typing import Any


class Programs:
    """The compiled programs of one kind of step, by bucket; a call with other shapes or shardings raises.

    Args:
        build: (bucket sizes) -> (jitted function, abstract arguments), such as a partial of `sft.build_step`.
        limit: how many buckets the config has.
    """

    def __init__(self, build: Callable[..., tuple[Any, tuple[Any, ...]]], limit: int) -> None:
        self._build = build
        self._limit = limit
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __len__(self) -> int:
        """Programs compiled so far."""
        return len(self._compiled)

    def __getitem__(self, bucket: tuple[int, ...]) -> Any:
        """The program of a bucket, compiled when first asked for.

        Raises:
            RuntimeError: more programs than buckets are asked for.
        """
        if bucket not in self._compiled:
            if len(self._compiled) == self._limit:
                raise RuntimeError(f"bucket {bucket} would be program {self._limit + 1} of at most {self._limit}")
            jitted, args = self._build(*bucket)
            self._compiled[bucket] = jitted.lower(*args).compile()
        return self._compiled[bucket]
