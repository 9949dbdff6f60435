"""A profile: which steps are traced, and that JAX's own file has them by name."""

import collections
import gzip
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from reft_jax.parallel.compilation import CompiledSteps, Step
from reft_jax.training.profile import Profile
from tests.runs import complete

pytestmark = pytest.mark.compiles


def doubled(width: int):
    return jax.jit(lambda x: 2 * x), (jax.ShapeDtypeStruct((width,), np.float32),)


def work(run_dir: Path, stage: str, steps: int, widths: list[int]) -> list[str]:
    """A stage whose steps have arrays of these widths, each compiled when it first comes; returns what was said."""
    said: list[str] = []
    compiled = CompiledSteps({"double": Step(doubled, tuple((width,) for width in set(widths)))})
    with Profile(run_dir, "rl", steps, said.append) as profile:
        for number, width in enumerate(widths, start=1):
            with profile.step(stage, number, len(compiled)):
                profile.wait(compiled.get("double", width)(np.zeros(width, np.float32)))
    return said


def events(said: str) -> list[dict]:
    """What stands in the file that is named."""
    path = Path(re.search(r"open (\S+) at https://ui\.perfetto\.dev", said)[1])
    assert list(path.parent.glob("*.xplane.pb")), "what xprof reads"
    assert f"xprof --logdir {path.parents[3]}" in said
    return [event for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] if "name" in event]


def test_steps_behind_one_that_compiled_nothing_are_traced(tmp_path):
    (said,) = work(tmp_path, "rl", 3, [1, 2, 1, 2, 1, 2, 1])
    assert said.startswith("profile: rl 4 to 6 of 3 steps asked for: ")
    found = events(said)
    assert [event["args"]["step_num"] for event in found if event["name"] == "rl"] == ["4", "5", "6"]
    assert sum(event["name"] == "double" for event in found) == 3


def test_a_trace_ends_where_the_stage_does(tmp_path):
    (said,) = work(tmp_path, "rl", 3, [1, 1, 1])
    assert [event["args"]["step_num"] for event in events(said) if event["name"] == "rl"] == ["3"]


def test_nothing_is_traced_where_each_step_compiles_or_nobody_asks(tmp_path):
    (said,) = work(tmp_path, "rl", 3, [1, 2, 3])
    assert said.startswith("profile: no step of rl was traced")
    assert work(tmp_path, "rl", 0, [1, 1, 1]) == []
    assert work(tmp_path, "sft", 3, [1, 1, 1]) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ci
def test_a_run_traces_three_iterations(arguments, tmp_path):
    output = complete(arguments(tmp_path / "run", logging__profile=3, sft__stop_epoch=9))
    said = next(line for line in output.splitlines() if line.startswith("profile: rl"))
    counts = collections.Counter(event["name"] for event in events(said))
    assert counts["rl"] == counts["experience"] == 3
    assert min(counts["rollout"], counts["reward"], counts["update"]) >= 3, "evaluations between them sample, too"
    assert counts["decode"] > 3
