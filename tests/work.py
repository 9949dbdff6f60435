"""Bounds on work that machines and collections of garbage do not move."""

import gc
import time
from collections.abc import Callable


def least_seconds(call: Callable[[], object], tries: int = 3) -> float:
    """Least processor time of `call` in seconds: what is slow is slow every time, and other noise is not."""
    seconds = []
    for _ in range(tries):
        gc.disable()
        try:
            start = time.thread_time()
            call()
            seconds.append(time.thread_time() - start)
        finally:
            gc.enable()
        if seconds[-1] < 0.1:
            break
    return min(seconds)
