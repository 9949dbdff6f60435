"""Keeping devices busy: what is computed next is dispatched before the host reads what was computed last."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def one_ahead(dispatched: Iterable[T]) -> Iterator[T]:
    """Yields each item when the next one has been drawn, so that drawing an item, which dispatches it, is one ahead."""
    waiting: deque[T] = deque()
    for item in dispatched:
        waiting.append(item)
        if len(waiting) == 2:
            yield waiting.popleft()
    yield from waiting
