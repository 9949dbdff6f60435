"""How every command that computes begins and ends: processes, JAX's settings, signals and exit codes."""

import contextlib
import errno
from collections.abc import Iterator
from typing import TypeVar

import jax
from jax.sharding import Mesh

from reft_jax.config import Config
from reft_jax.parallel.processes import (
    REFUSED,
    STOPPED,
    Interrupted,
    StopRequest,
    configure_jax,
    connect,
    exit_with,
    exit_without_waiting,
)

T = TypeVar("T")

OUT_OF_MEMORY = (
    "Lower the microbatch_size of the stage or generation.slots, or set model.remat or model.logits_chunk; "
    "python -m reft_jax.preflight says how full each step makes a device"
)


class Lifecycle:
    """A command at work: what it has open, and whether it has begun."""

    def __init__(self, stop: StopRequest, stack: contextlib.ExitStack) -> None:
        self.stop = stop
        self._stack = stack

    def open(self, resource: contextlib.AbstractContextManager[T]) -> T:
        """Enters a context that is left when the command ends, in order where that is possible."""
        return self._stack.enter_context(resource)

    def begin(self, mesh: Mesh) -> None:
        """All is read and open: from now on an error is no refusal, and signals wait for a place to save."""
        self.stop.defer(mesh)


@contextlib.contextmanager
def lifecycle(config: Config, stopped: str = "stopped as asked") -> Iterator[Lifecycle]:
    """Joins the run's processes, sets up JAX, and ends this process as its exit codes say if the work inside fails.

    Until `Lifecycle.begin`, settings and files that are invalid (ValueError, FileNotFoundError) end it with
    `processes.REFUSED`; SIGTERM and Ctrl-C at any time with `processes.STOPPED` and the message `stopped`. A full disk
    or a device without memory is explained in a line, any other error is raised. One of several processes does not wait
    for the others, which would wait for it.
    """
    with StopRequest() as stop:
        try:
            with contextlib.ExitStack() as stack:
                try:
                    connect(config.distributed)
                    configure_jax(config)
                    yield Lifecycle(stop, stack)
                except BaseException as error:
                    if stop.deferred:
                        with exit_without_waiting():
                            raise
                    if isinstance(error, ValueError | FileNotFoundError):
                        exit_with(f"error: {error}", REFUSED)
                    raise
        except Interrupted:
            exit_with(stopped, STOPPED, together=stop.deferred)
        except OSError as error:
            full = f"; the disk of {config.run_dir} is full" if error.errno == errno.ENOSPC and config.run_dir else ""
            exit_with(f"error: {error}{full}")
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            exit_with(f"error: the devices have too little memory: {str(error).splitlines()[0]}\n{OUT_OF_MEMORY}")
