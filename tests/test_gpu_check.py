"""benchmarks.gpu, prepared where no GPU is: its command lines, what ends a part, and what it reads off a trace."""

import jsonargparse
import pytest

from benchmarks import gpu, throughput
from reft_jax.config import load_config


@pytest.mark.parametrize("tiny", [False, True])
def test_every_part_is_a_command_line_that_is_taken(tiny, tmp_path):
    tests, speed, profile, learn = gpu.parts(tmp_path, learn=True, tiny=tiny)
    assert (gpu.ROOT / tests.command[-1]).exists()
    parser = jsonargparse.auto_parser(throughput.main, as_positional=False)
    shape = parser.parse_args([str(word) for word in speed.command[1:]]).shape
    assert (shape.embed_dim, shape.num_layers, shape.dtype) == ((64, 2, "float32") if tiny else (576, 30, "bfloat16"))
    profiled, learned = (load_config([str(word) for word in part.command[1:]]) for part in (profile, learn))
    assert (profiled.logging.profile, profiled.rl.algorithm) == (1, "ppo")
    assert (learned.rl.algorithm, learned.data.train.cot_limit) == ("reinforce", 400)
    assert sum(part.limit for part in (tests, speed, profile, learn)) < 8 * 60


def test_a_part_that_fails_is_late_or_lacks_something_holds_up_no_other(tmp_path, monkeypatch, capsys):
    sleep = ["timeit", "-n1", "-r1", "import time; print('begun', flush=True); time.sleep(600)"]
    last = lambda name: lambda out: gpu.last_lines(out / f"{name}.log", 1)
    said = ["timeit", "-n1", "-r1", "import os; print(os.environ['SAID'])"]
    parts = [
        gpu.Part("wrong", 60, ["no_such_module"], last("wrong")),
        gpu.Part("late", 2, sleep, last("late")),
        gpu.Part("without", 60, sleep, last("without"), needs=[tmp_path / "model"]),
        gpu.Part("unread", 60, ["platform"], last("other")),
        gpu.Part("fine", 60, said, lambda out: gpu.last_lines(out / "fine.log", 2)[:1], {"SAID": "5"}),
    ]
    monkeypatch.setattr(gpu, "parts", lambda *_: parts)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    gpu.main(str(tmp_path / "out"))
    said = (tmp_path / "out/summary.txt").read_text()
    assert capsys.readouterr().out == said
    heads = [line.rpartition(",")[0] for line in said.splitlines() if line.startswith("## ")]
    assert heads[:2] == ["## wrong: exit code 1", "## late: killed at its time limit"]
    assert f"## without: left out, there is no {tmp_path / 'model'}" in said
    assert heads[-2:] == ["## unread: done", "## fine: done"]
    lines = said.splitlines()
    assert "no_such_module" in lines[1]
    assert "begun" in lines
    assert any("cannot be read: FileNotFoundError" in line for line in lines)
    assert lines[-1] == "5"


def test_sampling_is_read_off_a_trace():
    """Two rollouts of 1 ms; a stream works in 300 + 200 and in 500 microseconds of them, its kernels overlapping."""
    name = lambda kind, pid, tid, text: {"ph": "M", "name": kind, "pid": pid, "args": {"name": text}} | tid
    host, stream, modules = {"pid": 1, "tid": 1}, {"pid": 2, "tid": 13}, {"pid": 2, "tid": 20}
    event = lambda place, name, start, took: {"ph": "X", "name": name, "ts": start, "dur": took, **place}
    events = [
        name("process_name", 1, {}, "/host:CPU"),
        name("process_name", 2, {}, "/device:GPU:0"),
        name("thread_name", 1, {"tid": 1}, "python"),
        name("thread_name", 2, {"tid": 13}, "Stream #13(Compute)"),
        name("thread_name", 2, {"tid": 20}, "XLA Modules"),
        {"ph": "M", "name": "process_sort_index", "pid": 2, "args": {"sort_index": 2}},
        event(host, "rollout", 0, 1000),
        event(host, "rollout", 5000, 1000),
        event(host, "prefill", 10, 5),
        *(event(host, "decode", start, 5) for start in (100, 500, 5100, 5500)),
        event(host, "decode", 3000, 5),  # an evaluation's
        event(stream, "gemm", 100, 200),
        event(stream, "softmax", 200, 200),
        event(stream, "gemm", 600, 200),
        event(stream, "gemm", 5000, 500),
        event(stream, "backward", 2000, 900),
        event(modules, "jit_decode", 0, 1000),
    ]
    first, share, _, _, *rows = gpu.sampling_of(events)
    assert first == "2 rollouts, 0.002 s in all: 1 calls of prefill, 4 of decode, one of these every 0.50 ms"
    assert share == "a stream was at work in 50 % of that time, in 4 kernels and copies:"
    assert rows == ["| gemm | 3 | 0.0009 |", "| softmax | 1 | 0.0002 |"]
    assert list(gpu.sampling_of(events[:13]))[1:] == ["no stream of a device in the trace"]
