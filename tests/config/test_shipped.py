"""The configs of the package run on 1, 2, 4 and 8 devices: every batch can be split evenly."""

import dataclasses
import re

import pytest

from reft_jax.config import load_config
from reft_jax.config.files import SHIPPED
from reft_jax.config.validation import check_batches

RUNS = [(path,) for folder in (SHIPPED, SHIPPED / "paper") for path in sorted(folder.glob("*.yaml"))]
OVERLAYS = [
    (SHIPPED / re.match(r"# Over (\S+\.yaml)[:,]", path.read_text())[1], path)
    for path in sorted((SHIPPED / "overlays").glob("*.yaml"))
]


@pytest.mark.parametrize("paths", [*RUNS, *OVERLAYS], ids=lambda paths: paths[-1].stem)
def test_a_config_runs_on_every_number_of_devices(paths):
    config = load_config([*(f"--config={path}" for path in paths), "--run_dir=r"])
    for devices in (1, 2, 4, 8):
        check_batches(config, devices)
    stage = "rl" if config.rl.epochs else "sft"
    uneven = dataclasses.replace(config, **{stage: dataclasses.replace(getattr(config, stage), microbatch_size=250)})
    with pytest.raises(
        ValueError, match=rf"{stage}.microbatch_size \(250\) must be a multiple of mesh.data \* mesh.fsdp"
    ):
        check_batches(uneven, 4)
