"""JAX, strict for all tests: eight CPU devices, no silent rank promotion, and shapes as the annotations say."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import hypothesis
import jax
import pytest

from tests.shapes import check_shapes

# What the partitioner makes of a program stays, code for it is generated in half of the time. Inherited by all that
# tests start; what the user has set stays: `XLA_FLAGS= make test` tests the code that users run.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes --xla_cpu_use_fusion_emitters=false"
if "XLA_FLAGS" not in os.environ:
    asked = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": QUICKLY, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.DEVNULL,
    )
    os.environ["XLA_FLAGS"] = QUICKLY if asked.returncode == 0 else ""  # XLA ends where it does not know a flag

check_shapes()  # before anything imports the modules that it wraps

from reft_jax.parallel.processes import REFUSED  # noqa: E402
from reft_jax.parallel.sharding import fake_cpu_devices  # noqa: E402
from tests.runs import command_line, complete, run  # noqa: E402

hypothesis.settings.register_profile("without_clock", deadline=None)
hypothesis.settings.load_profile("without_clock")
jax.config.update("jax_numpy_rank_promotion", "raise")
fake_cpu_devices(8)
jax.devices()  # makes their threads, whose number the processes that tests start shall not inherit
del os.environ["PJRT_NPROC"]
jax.random.key(0)  # its two small programs: who asks for the shapes of a model makes a key, and compiles nothing else

compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compilations.append(event) if event.endswith("/backend_compile_duration") else None
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs a whole run; `compiles` comes first, so that the workers end with what is short."""
    for item in items:
        if {"finished", "here"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("compiles")
    items.sort(key=is_fast)


def is_fast(item: pytest.Item) -> bool:
    return not any(mark.name in ("compiles", "ci", "long") for mark in item.iter_markers())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """A test that is not marked `compiles` compiles nothing, else `make test-fast` would become slow unnoticed."""
    before = len(compilations)
    result = yield
    count = len(compilations) - before
    assert not (count and is_fast(item)), f"this test compiled {count} programs: mark it `compiles`"
    return result


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(request) -> str:
    """The folder that keeps compiled programs between sessions: what JAX is told to use, else pytest's own cache."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return jax.config.jax_compilation_cache_dir


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets, as they are published."""
    return named_by("REFT_DATA", "the folder with svamp_nl.json and the other sets")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The directory of SmolLM2 in Hugging Face's format."""
    return named_by("REFT_MODEL", "a directory with the SmolLM2 of 135 million parameters")


def named_by(variable: str, what: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"set {variable} to {what}")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def arguments(tmp_path_factory, compilation_cache):
    """Makes the command line of the tiny run, see `runs.command_line`."""
    return command_line(tmp_path_factory.mktemp("config"), compilation_cache)


@pytest.fixture(scope="session")
def finished(arguments, tmp_path_factory) -> tuple[Path, str]:
    """The tiny run, uninterrupted: its folder, to be read only, and what it printed. All workers share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    printed = folder / "finished.txt"
    with (folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            printed.write_text(complete(arguments(folder / "finished")))
    return folder / "finished", printed.read_text()


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the folder of the finished run, for what claims or changes it."""
    return shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)


@pytest.fixture
def here():
    """Runs in this process; returns what it printed, and leaves with what it says when it is refused."""

    def train(arguments: list[str], devices: int = 1) -> str:
        code, out, err = run(arguments, devices)
        if code:
            raise SystemExit(err if code in (1, REFUSED) else code)
        return out

    return train
