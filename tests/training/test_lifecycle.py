"""How a command ends: by which exit code, saying what, and with all that it had open closed before."""

import contextlib
import os
import signal

import jax
import pytest
from jax.errors import JaxRuntimeError

from reft_jax.config import Config, DistributedConfig
from reft_jax.parallel.processes import REFUSED, STOPPED, Interrupted
from reft_jax.parallel.sharding import make_mesh
from reft_jax.training.directory import lock_run_dir
from reft_jax.training.lifecycle import Lifecycle, lifecycle
from reft_jax.training.sampler import Sampler
from tests.runs import run

ALONE = Config(distributed=DistributedConfig(detect=False))
FULL = JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")


def work(error: BaseException | None, *, begun: bool) -> list[str]:
    """A command that fails with an error, before or after it began; returns what was closed."""
    closed: list[str] = []

    @contextlib.contextmanager
    def resource(name: str):
        try:
            yield name
        finally:
            closed.append(name)

    def body(command: Lifecycle) -> None:
        assert [command.open(resource(name)) for name in ("first", "second")] == ["first", "second"]
        if begun:
            command.begin(make_mesh(ALONE.mesh, jax.devices()))
        if error is not None:
            raise error

    try:
        with lifecycle(ALONE, "stopped here") as command:
            body(command)
    finally:
        assert closed == ["second", "first"], "in order, whatever happened"
    return closed


@pytest.mark.parametrize(
    ("error", "begun", "code", "said"),
    [
        (ValueError("rl.epochs is odd"), False, REFUSED, "error: rl.epochs is odd"),
        (FileNotFoundError("no file x"), False, REFUSED, "error: no file x"),
        (FileNotFoundError("no file x"), True, 1, "error: no file x"),
        (OSError("disk full"), False, 1, "error: disk full"),
        (OSError("disk full"), True, 1, "error: disk full"),
        (Interrupted(), False, STOPPED, "stopped here"),
        (Interrupted(), True, STOPPED, "stopped here"),
        (
            FULL,
            True,
            1,
            "error: the devices have too little memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.",
        ),
    ],
)
def test_what_is_expected_to_go_wrong_ends_with_its_code_and_a_line(error, begun, code, said, capsys):
    with pytest.raises(SystemExit) as left:
        work(error, begun=begun)
    assert left.value.code == code
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(("error", "begun"), [(ValueError("a bug"), True), (KeyError("a bug"), False)])
def test_what_is_not_expected_is_raised(error, begun):
    with pytest.raises(type(error), match="a bug"):
        work(error, begun=begun)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_run_dir_that_cannot_be_a_folder_is_refused_by_its_key(tmp_path, name):
    (tmp_path / "file").touch()
    told = rf"run_dir {tmp_path}/{name} (is a file|cannot be made).*: name a"
    with pytest.raises(OSError, match=told), lock_run_dir(tmp_path / name):
        pytest.fail("it was made")
    assert (tmp_path / "file").is_file()


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    assert work(None, begun=True)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("begun", [False, True])
def test_a_signal_before_the_beginning_stops_on_the_spot_and_one_after_it_when_asked(begun, capsys):
    def work() -> None:
        with lifecycle(ALONE, "stopped here") as command:
            if begun:
                command.begin(make_mesh(ALONE.mesh, jax.devices()))
            os.kill(os.getpid(), signal.SIGTERM)
            assert begun, "the line above does not return before the beginning"
            command.stop.check()

    with pytest.raises(SystemExit) as left:
        work()
    assert left.value.code == STOPPED
    assert capsys.readouterr().err == "stopped here\n"


def test_a_signal_that_waits_is_answered_at_once(capfd):
    def work() -> None:
        with lifecycle(ALONE) as command:
            command.begin(make_mesh(ALONE.mesh, jax.devices()))
            os.kill(os.getpid(), signal.SIGINT)
            assert "finishing what is under way, then saving; a second signal ends at once" in capfd.readouterr().err
            command.stop.check()

    with pytest.raises(SystemExit) as left:
        work()
    assert left.value.code == STOPPED


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_every_command_that_asks_a_model_explains_a_device_without_memory(command, finished, tmp_path, monkeypatch):
    def full(*_, **__):
        raise FULL

    monkeypatch.setattr(Sampler, "rollout", full)
    paths = [str(finished[0] / "checkpoints" / "warmup"), *([str(tmp_path / "out.jsonl")] * (command == "sample"))]
    line = [*paths, "--split", "dev", *(["--samples", "1"] if command == "sample" else [])]
    code, _, err = run(line, command=command)
    assert code == 1
    assert "the devices have too little memory" in err
    assert "generation.slots" in err
    assert "Traceback" not in err
