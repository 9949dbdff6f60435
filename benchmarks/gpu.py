"""What to run where a GPU is at hand for ten minutes: its tests, speed beside torch, sampling traced, a short run.

    python -m benchmarks.gpu OUT [--learn true] [--tiny true]

One part after the other, each with a time limit, at most eight minutes together; a part that fails or takes too long
holds up no other. OUT gets a log of each part, the runs with their traces, and `summary.txt`, which is also printed.

    tests    tests/models/test_gpu.py
    speed    benchmarks.throughput in SmolLM2-135M's shape, beside torch where it is installed
    profile  the recipe for SmolLM2-135M on one GPU, ten iterations of PPO, of which one is traced
    learn    on request: the same with few annotations and overlays/steady

The last two need REFT_MODEL, a directory of SmolLM2-135M-Instruct, and REFT_DATA, a folder with SVAMP in the
reference's layout. `tiny` does all this in miniature on a CPU, with the embedded problems: figures mean nothing then.
"""

import dataclasses
import gzip
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from benchmarks.runs import data_folder, iterations, table
from benchmarks.study import options

ROOT = Path(__file__).resolve().parents[1]
KERNELS = 12
"""Kernels that are named, those that take longest."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A command, and what of its outcome is told."""

    name: str
    limit: float
    """Seconds by the clock, then it is killed."""
    command: Sequence[object]
    """Behind `python -m`."""
    tell: Callable[[Path], Iterable[str]]
    """Lines of the summary, from the folder of all parts."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: Sequence[Path] = ()
    """Without these it is left out."""

    def run(self, out: Path) -> Iterator[str]:
        """Runs it, its output going to OUT/NAME.log; yields what became of it."""
        if missing := [str(path) for path in self.needs if not path.exists()]:
            yield f"## {self.name}: left out, there is no {', no '.join(missing)} (REFT_MODEL, REFT_DATA)"
            return
        log, start = out / f"{self.name}.log", time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, self.command)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment,
                cwd=ROOT,
                start_new_session=True,
            )
            try:
                code = process.wait(self.limit)
                became = f"exit code {code}" if code else "done"
            except subprocess.TimeoutExpired:
                became = "killed at its time limit"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        yield f"## {self.name}: {became}, {time.monotonic() - start:.0f} s"
        try:
            yield from self.tell(out) if became == "done" else last_lines(log, 6)
        except Exception as error:  # what is left of it stays in OUT
            yield f"its outcome cannot be read: {error!r}"


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log."""
    return log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-count:]


def tell_run(run: Path) -> Iterator[str]:
    """Seconds of an iteration by its phases, the median of those after the first, and the mean reward."""
    first, *rest = iterations(run)
    times = [name for name in first if name.startswith("time/")]
    medians = {name: statistics.median(each[name] for each in rest) for name in times}
    parts = ", ".join(f"{name[5:-2]} {medians[name]:.3f}" for name in sorted(times))
    yield f"seconds of an iteration: {parts}"
    rewards = " ".join(f"{each['reward/mean']:.2f}" for each in (first, *rest))
    yield f"mean reward by iteration: {rewards}"


def tell_sampling(run: Path) -> Iterator[str]:
    """What host and devices were at in the rollouts that were traced, see `sampling_of`."""
    for file in sorted(run.glob("profile/**/perfetto_trace.json.gz")):
        yield from sampling_of(json.loads(gzip.decompress(file.read_bytes()))["traceEvents"])
        yield f"trace: {file}"


def sampling_of(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How long rollouts took, their calls, the share of them in which a stream of a device was at work, and at what.

    Args:
        events: of a trace in the Trace Event Format, times in microseconds.
    """
    named = {
        (e["name"], e["pid"], e.get("tid")): e["args"]["name"]
        for e in events
        if e.get("ph") == "M" and "name" in e["args"]
    }
    process = lambda e: named.get(("process_name", e["pid"], None), "")
    thread = lambda e: named.get(("thread_name", e["pid"], e["tid"]), "")
    spans = [e for e in events if e.get("ph") == "X"]
    rollouts = [(e["ts"], e["ts"] + e["dur"]) for e in spans if e["name"] == "rollout"]
    within = lambda e: any(start <= e["ts"] < end for start, end in rollouts)
    taken = sum(end - start for start, end in rollouts)
    calls = Counter(e["name"] for e in spans if e["name"] in ("prefill", "decode") and within(e))
    yield (
        f"{len(rollouts)} rollouts, {taken / 1e6:.3f} s in all: {calls['prefill']} calls of prefill, "
        f"{calls['decode']} of decode, one of these every {taken / max(calls['decode'], 1) / 1e3:.2f} ms"
    )
    # Other lines of a device, such as `XLA Modules`, are made of its streams' and cover what is between kernels.
    work = [e for e in spans if process(e).startswith("/device:") and thread(e).startswith("Stream") and within(e)]
    if not work:
        yield "no stream of a device in the trace"
        return
    busy, known = 0.0, 0.0
    for start, end in sorted((e["ts"], e["ts"] + e["dur"]) for e in work):
        busy += max(0.0, end - max(start, known))
        known = max(known, end)
    yield f"a stream was at work in {100 * busy / taken:.0f} % of that time, in {len(work):,} kernels and copies:"
    seconds, counts = Counter[str](), Counter(e["name"] for e in work)
    for e in work:
        seconds[e["name"]] += e["dur"] / 1e6
    rows = [(name[:70], f"{counts[name]:,}", f"{each:.4f}") for name, each in seconds.most_common(KERNELS)]
    yield from table(("kernel", "times", "seconds"), rows)


def parts(out: Path, learn: bool, tiny: bool) -> Iterator[Part]:
    """What is run, in order."""
    platform = {"JAX_PLATFORMS": "cpu" if tiny else "cuda,cpu"}
    # Else tests are compiled without optimisation, see tests/conftest.py.
    tests = ["pytest", "-p", "no:cacheprovider", "tests/models/test_gpu.py"]
    yield Part("tests", 60, tests, lambda _: last_lines(out / "tests.log", 1), {"XLA_FLAGS": "", **platform})
    shape: dict[str, object] = {
        "embed_dim": 64,
        "num_layers": 2,
        "mlp_dim": 128,
        "batch": 16,
        "prompt": 16,
        "response": 16,
        "repeats": 1,
    }
    if not tiny:
        shape = {"vocab_size": 49152, "embed_dim": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3}
        shape |= {"mlp_dim": 1536, "batch": 256, "microbatch": 64, "prompt": 64, "response": 128, "repeats": 2}
        shape |= {"dtype": "bfloat16", "remat": "dots"}
    speed = ["benchmarks.throughput", *options({f"shape.{name}": value for name, value in shape.items()})]
    room = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"}  # torch needs some
    yield Part("speed", 150, speed, lambda _: last_lines(out / "speed.log", 12), {"COLUMNS": "100", **room, **platform})

    model, data = Path(os.environ.get("REFT_MODEL") or "smollm2").absolute(), data_folder(None).absolute()
    train, test = data / "svamp_python_sdp.json", data / "svamp_test_set.json"
    if tiny:
        configs, needs = ["quickstart"], []
        common: dict[str, object] = {"pretrain.source.limit": 256, "data.train.limit": 1200, "data.test.limit": 50}
    else:
        configs, needs = ["svamp_pcot_smollm2_135m", "overlays/one_gpu"], [model / "config.json", train, test]
        common = {"model.path": model, "data.train.path": train, "data.test.path": test, "data.test.limit": 200}
    common |= {"evaluation.dev_limit": 50, "sft.evaluate_every": 100, "sft.save_every": 100}

    def training(
        name: str, limit: float, overlays: Sequence[str], epochs: tuple[int, int], *tell: Any, **more: Any
    ) -> Part:
        run = out / name
        sft = {f"sft.{key}": epochs[0] for key in ("schedule_epochs", "warmup_epoch", "stop_epoch")}
        changes = {"run_dir": run, **common, **sft, "rl.epochs": epochs[1], **more}
        files = [word for config in (*configs, *overlays) for word in ("--config", config)]
        told = lambda _: (line for each in (tell_run, *tell) for line in each(run))
        return Part(name, limit, ["reft_jax.train", *files, *options(changes)], told, platform, needs)

    yield training("profile", 185, (), (1, 1), tell_sampling, **{"logging.profile": 1})
    if learn:
        few = ("overlays/few_annotations", "overlays/steady")
        yield training("learn", 80, few, (1, 1) if tiny else (10, 1))


def main(out: str, learn: bool = False, tiny: bool = False) -> None:
    """Runs all parts and prints the summary.

    Args:
        out: folder that is made.
        learn: a short run with few annotations, too.
        tiny: in miniature, on a CPU.
    """
    folder = Path(out).absolute()
    folder.mkdir(parents=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))  # the runs have steps in common
    with (folder / "summary.txt").open("w", encoding="utf-8") as summary:
        for part in parts(folder, learn, tiny):
            for line in part.run(folder):
                print(line, file=summary, flush=True)
                print(line, flush=True)


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=True)
