"""JAX, strict for all tests: eight CPU devices, no silent rank promotion, and shapes as the annotations say."""

import os

import hypothesis
import jax
import pytest

from tests.shapes import checked_shapes

with checked_shapes():  # before anything imports the modules that it wraps
    from reft_jax.parallel.processes import REFUSED
    from reft_jax.parallel.sharding import fake_cpu_devices
    from reft_jax.train import main
    from tests.runs import command_line, complete

hypothesis.settings.register_profile("without_clock", deadline=None)
hypothesis.settings.load_profile("without_clock")
jax.config.update("jax_numpy_rank_promotion", "raise")
fake_cpu_devices(8)
jax.devices()  # makes their threads, whose number the processes that tests start shall not inherit
del os.environ["PJRT_NPROC"]


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(request) -> str:
    """The folder that keeps compiled programs between sessions: what JAX is told to use, else pytest's own cache."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return jax.config.jax_compilation_cache_dir


@pytest.fixture(scope="session")
def arguments(tmp_path_factory, compilation_cache):
    """Makes the command line of the tiny run, see `runs.command_line`."""
    return command_line(tmp_path_factory.mktemp("config"), compilation_cache)


@pytest.fixture(scope="session")
def finished(arguments, tmp_path_factory):
    """The tiny run, uninterrupted: its folder and what it printed."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    return run_dir, complete(arguments(run_dir))


@pytest.fixture
def here(monkeypatch, capfd):
    """Runs in this process on one device; returns what it printed, and leaves with what it says when it is refused."""
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)

    def run(arguments: list[str]) -> str:
        try:
            main([*arguments, "--distributed.detect", "false"])  # JAX is at work here already
        except SystemExit as left:
            raise SystemExit(capfd.readouterr().err if left.code in (1, REFUSED) else left.code) from None
        return capfd.readouterr().out

    return run
