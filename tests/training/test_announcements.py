"""What a run says of itself is so, and the commands that it prints do as they stand there."""

import os
import re
import shlex
from pathlib import Path

import jax
import pytest

from reft_jax import export
from reft_jax.config import Config, DecoderConfig, DistributedConfig, ModelConfig
from reft_jax.report import __main__ as report
from reft_jax.training.announcements import can_be_exported, continuation
from tests.runs import DEV, ITERATIONS, SFT_STEPS, TEST, TRAIN, complete, restore


def printed_commands(printed: str) -> dict[str, list[str]]:
    """The arguments of the commands behind `next:`, by name."""
    lines = [shlex.split(line) for line in printed.partition("\nnext:\n")[2].splitlines() if line.startswith("  ")]
    assert all(words[1] == "-m" and words[2].startswith("reft_jax.") for words in lines)
    return {words[2].removeprefix("reft_jax."): words[3:] for words in lines}


def test_a_run_says_with_what_it_begins(finished):
    folder, printed = finished
    parameters = sum(leaf.size for leaf in jax.tree.leaves(restore(folder / "checkpoints/warmup")))
    assert "devices: 1 cpu; mesh: data 1, fsdp 1, tensor 1\n" in printed
    assert f"model: made from scratch, {parameters:,} parameters, computed in float32\n" in printed
    assert f"data: train {TRAIN}, dev {DEV}, test {TEST} problems\n" in printed
    assert f"stages: sft {SFT_STEPS} steps, rl {ITERATIONS} iterations\n" in printed
    assert re.search(rf"^folder: {folder}; this continues it: \S+ -m reft_jax.train ", printed, re.MULTILINE)
    assert printed.index("compiling sft for 16 rows of 34 + 56 tokens\n") < printed.index("sft 1/66")
    assert printed.count("compiling rollout for 36 rows of 60 + 20 tokens\n") <= 1
    assert printed.count("compiling ") == len(set(re.findall("^compiling .*", printed, re.MULTILINE)))


@pytest.mark.long
def test_the_commands_that_a_finished_run_prints_do_as_they_stand_there(arguments, copied, monkeypatch):
    monkeypatch.chdir(copied.parent)
    printed = complete(arguments(Path(os.path.relpath(copied))))
    assert "copy: models in checkpoints/ (rl_best, sft_best, sft, warmup), metrics.jsonl, summary.json\n" in printed
    commands = printed_commands(printed)
    assert list(commands) == ["report", "evaluate", "sample", "export"]
    assert report.main(commands["report"]) == 0
    assert (copied / "report.html").exists()
    assert commands["evaluate"] == ["copy/checkpoints/rl_best", "--split", "test"]
    assert "accuracy" in complete(commands["evaluate"], command="evaluate")
    assert f"copy/rl_best_test.jsonl: {8 * TEST} completions" in complete(commands["sample"], command="sample")
    assert export.main(commands["export"]) == 0
    assert (copied / "exported/model.safetensors").exists()


@pytest.mark.parametrize(("decoder", "can"), [(DecoderConfig(), True), (DecoderConfig(gated_mlp=False), False)])
def test_an_export_is_offered_where_there_can_be_one(decoder, can):
    assert can_be_exported(Config(model=ModelConfig(decoder=decoder))) == can


def test_one_of_several_processes_prints_no_command_of_its_own():
    several = Config(run_dir="/r", distributed=DistributedConfig(coordinator_address="a:1", num_processes=2))
    assert (
        continuation(several, "cmd --distributed.process_id 1") == "the same command continues in /r, on every process"
    )
    assert continuation(Config(run_dir="/r"), "cmd x") == "the same command continues in /r:\n  cmd x"
