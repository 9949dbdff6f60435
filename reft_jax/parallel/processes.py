"""The processes of a run: how they find each other, share what one of them knows, and end together.

Every process runs the same program on its own devices and has to take the same decisions at the same place: `gather`
and `on_process_zero` are where they speak, and all must call them alike. One process alone pays nothing for any of
this.
"""

import contextlib
import hashlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reft_jax.config import Config, DistributedConfig, ModelConfig
from reft_jax.parallel.sharding import fake_cpu_devices

T = TypeVar("T")

REFUSED = 2
"""Exit code of a run that cannot work with its settings and files: trying again will not help."""

COLLAPSED = 3
"""Exit code of a run whose reinforcement went wrong and was ended early; its models and its summary are there."""

STOPPED = 75
"""Exit code of a run that was asked to stop and can go on (sysexits' EX_TEMPFAIL)."""

ASKED = "asked to stop: finishing what is under way, then saving; a second signal ends at once, without saving\n"
"""What a run answers at once to a signal that it will heed when it can save."""

_LEAST_MESSAGE = 1 << 12  # bytes; messages grow in powers of two, so that few programs are compiled


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, by SIGTERM or Ctrl-C; every process of it raises this at the same place.

    It is no Exception: a signal may raise it in code of others, whose handlers would take it for a failure.
    """


def configure_jax(config: Config) -> None:
    """Settings of JAX that must be made before any device is asked for."""
    if config.mesh.fake_cpu_devices:
        fake_cpu_devices(config.mesh.fake_cpu_devices)
    if config.compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache_dir)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    enable_x64(config.model)


def enable_x64(model: ModelConfig) -> None:
    """Has JAX keep float64 where a model asks for it: without, it would be float32."""
    if "float64" in (model.dtype, model.param_dtype):
        jax.config.update("jax_enable_x64", True)


_alone = False  # JAX has looked for other processes, and there are none


def connect(config: DistributedConfig) -> None:
    """Joins the processes of the run, before anything has asked for a device.

    Without a coordinator JAX looks for SLURM, Open MPI, Kubernetes and Cloud TPU; where there is none of them, this
    process is the whole run, and does not look again. A process that has not been heard of for
    `config.heartbeat_timeout_seconds` seconds is dead, and the others end with an error.
    """
    global _alone
    detected = _alone and not config.coordinator_address
    if jax.distributed.is_initialized() or detected or not (config.coordinator_address or config.detect):
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which `StopRequest` handles
    try:
        jax.distributed.initialize(
            config.coordinator_address or None,
            config.num_processes or None,
            config.process_id if config.coordinator_address else None,
            cluster_detection_method="deactivate" if config.coordinator_address else None,
            heartbeat_timeout_seconds=config.heartbeat_timeout_seconds,
            shutdown_timeout_seconds=config.heartbeat_timeout_seconds,
        )
    except ValueError as error:
        if config.coordinator_address or "coordinator_address" not in str(error):
            raise
        _alone = True
    except RuntimeError as error:  # JAX has been at work in this process
        raise ValueError(f"{error} Where this process is the whole run, set distributed.detect to false.") from error


def gather(item: T) -> list[T]:
    """The item of every process, on every process, in the order of their indices.

    Items are pickled: only what this run's own processes made is ever read.
    """
    if jax.process_count() == 1:
        return [item]
    data = np.frombuffer(pickle.dumps((jax.process_index(), item)), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    message = np.zeros(max(_LEAST_MESSAGE, 1 << (int(np.max(sizes)) - 1).bit_length()), np.uint8)
    message[: data.size] = data
    messages = multihost_utils.process_allgather(message)
    return [item for _, item in sorted((pickle.loads(row.tobytes()) for row in messages), key=lambda pair: pair[0])]


def to_host(arrays: T) -> T:
    """Arrays on the devices as numpy's, whole on every process; all must call it alike."""
    if jax.process_count() == 1:
        return jax.device_get(arrays)
    return multihost_utils.process_allgather(arrays, tiled=True)


def on_process_zero(work: Callable[[], T]) -> T:
    """What `work` returns on process 0, on every process; an exception that it raises there is raised on all."""
    outcome: tuple[T | None, BaseException | None] = (None, None)
    if jax.process_index() == 0:
        try:
            outcome = (work(), None)
        except (Exception, Interrupted) as error:
            outcome = (None, error)
    result, failure = gather(outcome)[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def digest(values: Iterable[object]) -> str:
    """The sha256 of what `repr` says of values, one after the other."""
    found = hashlib.sha256()
    for value in values:
        found.update(repr(value).encode() + b"\n")
    return found.hexdigest()


def require_equal(values: Mapping[str, object]) -> None:
    """Compares what all processes must have alike, by name and as `repr` says it.

    Raises:
        ValueError: naming the first thing that differs, and the process.
    """
    digests = {name: digest([value]) for name, value in values.items()}
    for process, others in enumerate(gather(digests)):
        for name, own in digests.items():
            if others[name] != own:
                raise ValueError(
                    f"process {process} has other {name} than process {jax.process_index()}: all processes need the "
                    "same command and the same files"
                )


@contextlib.contextmanager
def exit_without_waiting() -> Iterator[None]:
    """Inside, an error ends this process on the spot where it is one of several.

    An orderly end would wait for the others, which wait for this one. Its connections are closed by the kernel, which
    is how they learn of it; those that are not waiting for it notice after `distributed.heartbeat_timeout_seconds`.
    """
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        exit_with(f"error: process {jax.process_index()} of {jax.process_count()}: {error}")


def exit_with(message: str, code: int = 1, *, together: bool = False) -> NoReturn:
    """Ends this process with a message: in order where it is alone or all leave `together`, else waiting for nobody."""
    print(message, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized() and not together:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


class StopRequest:
    """SIGTERM and Ctrl-C while a run is at work; a context manager that gives the signals back.

    At first a signal raises `Interrupted` on the spot: there is nothing to save yet. After `defer` it is only noted,
    and the run asks at places where it can save. A second signal ends the process at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._asked = False
        self._mesh: Mesh | None = None

    def defer(self, mesh: Mesh) -> None:
        """From now on signals wait for `ask`; `mesh` has the devices of all processes."""
        self._mesh = mesh

    @property
    def deferred(self) -> bool:
        """Whether processes decide together: before, each stops for itself."""
        return self._mesh is not None

    def ask(self) -> Any:
        """Whether any process has been asked to stop: something true or false that need not be known yet.

        It is computed behind what the devices have been given so far; read later, it makes nobody wait.
        """
        if self._mesh is None or jax.process_count() == 1:
            return self._asked
        everywhere = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        asked = np.full(self._mesh.size, self._asked)
        flags = jax.make_array_from_callback(asked.shape, everywhere, lambda index: asked[index])
        return jax.jit(_any, out_shardings=NamedSharding(self._mesh, PartitionSpec()))(flags)

    def check(self) -> None:
        """Waits for all processes.

        Raises:
            Interrupted: one of them was asked to stop.
        """
        if self.ask():
            raise Interrupted

    def _note(self, *_: object) -> None:
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        self._asked = True
        if self._mesh is None:
            raise Interrupted
        # Not by print, which the signal may have interrupted; below the progress line of a terminal.
        os.write(2, ("\n" if os.isatty(2) else "").encode() + ASKED.encode())

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _any(flags: jax.Array) -> jax.Array:
    return flags.any()  # a function of the module, so that it is compiled once
