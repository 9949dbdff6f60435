"""What the commands of the package are called here: by `reft`, where that was called, else by `python -m`."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path


def program(command: str) -> str:
    """A command as its help and its errors name it: `reft reward-model` or `python -m reft_jax.reward_model`."""
    return f"reft {command}" if _by_console_script() else f"python -m reft_jax.{command.replace('-', '_')}"


def named(text: str) -> str:
    """A text with the commands in it called as here."""
    return re.sub(r"python -m reft_jax\.(\w+)", lambda name: program(name[1].replace("_", "-")), text)


def shell_line(command: str, arguments: Iterable[str]) -> str:
    """The line that a shell here takes for a command of the package with its arguments."""
    words = program(command).split()
    if _by_console_script():
        words[0] = _runnable("reft", sys.argv[0])
    else:
        words[0] = _runnable("python", sys.executable)
    return shlex.join([*words, *arguments])


def short_path(path: str | Path) -> str:
    """The path from the working directory, where it is in there; else as it is."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _by_console_script() -> bool:
    return Path(sys.argv[0]).name == "reft"


def _runnable(name: str, path: str) -> str:
    """The name of a program where the shell finds that program by it, else its path."""
    found, folder = shutil.which(name), os.path.dirname(os.path.abspath(path))
    same = found is not None and os.path.isdir(folder) and os.path.samefile(os.path.dirname(found), folder)
    return name if same else short_path(path)
