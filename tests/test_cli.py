"""`reft`: one name for every command, which imports the one that is asked for and nothing else."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import reft_jax
from reft_jax.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]


def test_the_script_of_the_package_is_this_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["reft"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_every_command_that_python_runs_is_there_with_a_line(capsys):
    """By the files: a module of the package that hands its `main` to the system is a command."""
    runs = [path for path in (ROOT / "reft_jax").rglob("*.py") if "sys.exit(main())" in path.read_text()]
    names = {path.parent.name if path.stem == "__main__" else path.stem for path in runs}
    assert {name.replace("_", "-") for name in names - {"cli"}} == set(COMMANDS)
    for asked in ([], ["--help"], ["-h"]):
        assert main(asked) == 0
        lines = capsys.readouterr().out.splitlines()
        assert {name for name in COMMANDS if any(line.startswith(f"  {name} ") for line in lines)} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_called_by_reft_is_named_so_in_its_help_and_refusals(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/reft", command])
    try:
        code = main([command, "--help"])
    except SystemExit as left:
        code = left.code
    told = capsys.readouterr().out
    assert code == 0
    assert f"reft {command}" in told
    assert "python -m" not in told
    assert len(told.splitlines()) < 100
    with pytest.raises(SystemExit) as left:
        sys.exit(main([command, "--no_such_option", "3"]))
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"usage: reft {command} ") or command == "data"
    assert len(err.splitlines()) <= 4


def test_a_command_that_is_none_is_told_which_is_meant(capsys):
    assert main(["evaluat", "x"]) == 2
    assert capsys.readouterr().err == "error: evaluat is no command of reft: did you mean `reft evaluate`?\n"
    assert main(["zzz"]) == 2
    assert "`reft --help` lists them" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"reft_jax {reft_jax.__version__}\n"


def test_underscores_do_as_well(capsys):
    assert main(["reward_model", "--help"]) == 0
    assert "rerank" in capsys.readouterr().out


def test_only_the_command_that_is_asked_for_is_imported():
    heavy = "{'jax', 'numpy', 'transformers', 'yaml'} & sys.modules.keys()"
    code = f"""
import contextlib, sys
from reft_jax.cli import main
main([]), main(["zzz"])
assert not {heavy}, {heavy}
with contextlib.suppress(SystemExit):
    main(["select", "--help"])
assert "reft_jax.select" in sys.modules and not {{"jax", "reft_jax.train", "reft_jax.sample"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
