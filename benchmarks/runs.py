"""Commands that are run once, with what they cost, and what finished runs say: for pages that commands write."""

import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import options


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds by the clock and of processors, of all attempts at something."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)


def once(log: Path, module: str, *arguments: object, allowed: Sequence[int] = (0,)) -> None:
    """Runs `python -m module arguments` unless it was done before; its output is appended to `log`.

    What each attempt cost is a line of the file beside the log, see `costs`.

    Raises:
        RuntimeError: it ended with a code that is not `allowed`.
    """
    line = [module, *map(str, arguments)]
    if any(record["command"] == line and record["code"] in allowed for record in _attempts(log)):
        return
    start = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-m", *line], stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    seconds, cpu_seconds = time.monotonic() - start, usage.ru_utime + usage.ru_stime
    record = {"command": line, "code": code, "seconds": seconds, "cpu_seconds": cpu_seconds}
    with _costs_of(log).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    if code not in allowed:
        raise RuntimeError(f"exit code {code}, see {log}: {' '.join(line)}")
    print(f"{log.with_suffix('')}: {seconds:.0f} s, {cpu_seconds:.0f} s of a core", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to go on from the warm-up: its run, and what it changes in the config."""

    run: str
    label: str
    overlays: tuple[str, ...] = ()
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def told(self) -> str:
        """What it changes, as the config has it."""
        changed = [f"`{key}: {value}`" for key, value in self.changes.items()]
        return ", ".join([*(f"`configs/{name}.yaml`" for name in self.overlays), *changed])


def choose(arms: Sequence[Arm], names: Sequence[str]) -> list[Arm]:
    """The arms of so many names.

    Raises:
        SystemExit: there is none of a name.
    """
    known = {arm.run: arm for arm in arms}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--arms names {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names]


def data_folder(named: Path | None) -> Path:
    """The folder of downloaded files: that which was named, else REFT_DATA, else `data`."""
    return named or Path(os.environ.get("REFT_DATA") or "data")


def train(folder: Path, run: str, configs: Sequence[str | Path], changes: Mapping[str, Any]) -> None:
    """Trains a run in FOLDER/RUN, its log beside it, once; one that was ended early counts as it stands."""
    files = [part for name in configs for part in ("--config", name)]
    given = options({"run_dir": folder / run, **changes})
    once(folder / f"{run}.log", "reft_jax.train", *files, *given, allowed=(0, 3))


def costs(log: Path) -> Costs:
    """What all commands with this log cost until now."""
    return sum((Costs(record["seconds"], record["cpu_seconds"]) for record in _attempts(log)), Costs())


def _costs_of(log: Path) -> Path:
    return log.with_suffix(".costs.jsonl")


def _attempts(log: Path) -> list[dict[str, Any]]:
    path = _costs_of(log)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(run: Path) -> dict[str, Any] | None:
    """A run's `summary.json`; None where it is not finished."""
    path = run / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def iterations(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run's iterations of reinforcement."""
    return [record for record in read_lines(run / "metrics.jsonl") if "reward/mean" in record]


def mean_with_interval(values: Sequence[float]) -> str:
    """Mean of seeds with its 95 % interval by Student's t, where there are two or more."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.1f}"
    from scipy.special import stdtrit  # the quantile of t

    half = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]


def arms_told(arms: Iterable[Arm]) -> list[tuple[str, str]]:
    """Rows of a table that says what the arms are."""
    return [(arm.label, arm.told) for arm in arms]


def paragraph(*texts: str) -> Iterator[str]:
    """Yields a paragraph; of several texts a list."""
    for text in texts:
        mark = "- " if len(texts) > 1 else ""
        yield textwrap.fill(
            mark + text, 120, subsequent_indent=" " * len(mark), break_long_words=False, break_on_hyphens=False
        )
    yield ""


def processor() -> str:
    """What the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
