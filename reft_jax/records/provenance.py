"""What a run is made with: command, versions, platform, commit, devices, and when it was at work."""

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

_PACKAGES = (
    *("reft_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("transformers", "tokenizers", "datasets", "numpy"),
)


def run_info() -> dict[str, Any]:
    """What a run is made with; neither host name nor environment.

    Returns:
        `command`, the line that began it; `versions` (package: version, None where it is not installed), `python`,
        `platform` (such as `Linux x86_64`), and of the git checkout that this package is in, None where it is in none:
        `commit`, and `dirty`, whether files differ from the commit or are not in it.
    """
    commit, dirty = git_state(Path(__file__))
    return {
        "command": command_line(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit,
        "dirty": dirty,
    }


def hardware(mesh: Mesh) -> dict[str, Any]:
    """What a run computes on: its devices, and the host of this process by its kind, without its name.

    Returns:
        `device` (kind), `devices` (count), `processes`, `mesh` (size by axis), `host` (kind of processor), `cores`, and
        `memory_gb` of the host, None where the system does not say it.
    """
    devices = mesh.devices.flatten()
    return {
        "device": devices[0].device_kind,
        "devices": int(devices.size),
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "host": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
    }


def _processor() -> str:
    """The kind of processor, as Linux names it, else as Python does."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (ValueError, OSError):
        return None


def command_line() -> str:
    """The command line of this process, as a shell takes it; a module as `python -m` names it, without its path."""
    spec = sys.modules["__main__"].__spec__
    program = [sys.argv[0]] if spec is None else ["python", "-m", spec.name.removesuffix(".__main__")]
    return shlex.join([*program, *sys.argv[1:]])


def git_state(file: Path) -> tuple[str | None, bool | None]:
    """The commit of the git checkout that tracks `file`, and whether the checkout differs from it; None without one."""
    # A file that merely lies inside a checkout, as site-packages may, is none of that checkout's.
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None, None
    commit = _git(file.parent, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, None
    return commit, _git(file.parent, "status", "--porcelain") != ""


def _git(directory: Path, *arguments: str) -> str | None:
    """What git prints, stripped; None where git is missing or says no."""
    try:
        done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
