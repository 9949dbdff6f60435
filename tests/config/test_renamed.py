"""What earlier versions called a setting is refused by its name of today, wherever it is written."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from reft_jax import select
from reft_jax.config import Config, load_config
from reft_jax.config.renamed import RENAMED, RENAMED_VALUES
from reft_jax.reward.__main__ import main as audit_rewards
from reft_jax.training.directory import claim_directory

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/*.md")]
VALID = ["--run_dir=r", "--model.tokenizer=embedded", "--data.train.kind=generated", "--data.train.path=train"]

KEYS: dict[str, tuple[Any, str]] = {  # with a value that it could have, typed from the settings as they were
    "generation.weights": ("auto", "generation.weight_layout"),
    "generation.max_response": (400, "generation.max_new_tokens"),
    "pretrain.optimizer.ramp_fraction": (0.1, "pretrain.optimizer.lr_warmup_fraction"),
    "sft.optimizer.ramp_fraction": (0.1, "sft.optimizer.lr_warmup_fraction"),
    "rl.optimizer.ramp_fraction": (0.0, "rl.optimizer.lr_warmup_fraction"),
    "reward_model.optimizer.ramp_fraction": (0.1, "reward_model.optimizer.lr_warmup_fraction"),
    "pretrain.average": ("tokens", "pretrain.loss_aggregation"),
    "sft.average": ("tokens", "sft.loss_aggregation"),
    "rl.average": ("responses", "rl.loss_aggregation"),
    "reward.program_timeout": (10.0, "reward.program_timeout_s"),
    "reward.program_memory": (1024, "reward.program_memory_mb"),
    "reward.batch_timeout": (300.0, "reward.batch_deadline_s"),
    "evaluation.limit": (0, "evaluation.dev_limit"),
    "distributed.coordinator": ("", "distributed.coordinator_address"),
    "distributed.processes": (0, "distributed.num_processes"),
    "distributed.process": (0, "distributed.process_id"),
    "distributed.timeout": (100, "distributed.heartbeat_timeout_seconds"),
    **{f"{source}.answer_kind": ("choice", "data.answer") for source in ("data.train", "data.dev", "data.test")},
    "pretrain.source.answer_kind": ("number", "data.answer"),
    "logging.compilation_cache": ("", "compilation_cache_dir"),
    "evaluation.batch_size": (32, "generation.slots"),
    "logging.tensorboard": (True, "logging.trackers"),
}
VALUES = {  # (key as it was, key of today, old value): value of today
    ("generation.weights", "generation.weight_layout", "split"): "sharded",
    ("generation.weights", "generation.weight_layout", "copied"): "replicated",
    ("rl.average", "rl.loss_aggregation", "responses"): "sequence_mean",
    ("rl.average", "rl.loss_aggregation", "tokens"): "token_mean",
    ("sft.average", "sft.loss_aggregation", "tokens"): "token_mean",
    ("sft.average", "sft.loss_aggregation", "microbatches"): "microbatch_mean",
    ("pretrain.average", "pretrain.loss_aggregation", "tokens"): "token_mean",
    ("pretrain.average", "pretrain.loss_aggregation", "microbatches"): "microbatch_mean",
    ("reward.rules", "reward.rules", "sane"): "lenient",
    ("data.train.kind", "data.train.kind", "reft"): "reft_json",
    ("data.dev.kind", "data.dev.kind", "reft"): "reft_json",
    ("data.test.kind", "data.test.kind", "reft"): "reft_json",
    ("pretrain.source.kind", "pretrain.source.kind", "reft"): "reft_json",
}
AGAIN = "name a fresh run_dir, or finish it with the version it was begun with"


def nested(key: str, value: Any) -> dict[str, Any]:
    """The setting as a file has it."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def merged(*settings: dict[str, Any]) -> dict[str, Any]:
    together: dict[str, Any] = {}
    for part in settings:
        for key, value in part.items():
            together[key] = merged(together.get(key, {}), value) if isinstance(value, dict) else value
    return together


OLD_RUN = merged(*(nested(key, value) for key, (value, _) in KEYS.items()))
"""The sections of a run of before, of which every key had its value written."""


def refusal(capsys, *arguments: str) -> list[str]:
    """The lines that the command exits with."""
    with pytest.raises(SystemExit) as stop:
        load_config([*VALID, *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err.split("error: ")[1].splitlines()


def old_run(folder: Path, settings: dict[str, Any]) -> Path:
    """The settings of a run that has checkpoints."""
    (folder / "run" / "checkpoints").mkdir(parents=True)
    path = folder / "run" / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def everywhere(capsys, config: Config, folder: Path, key: str, value: Any, said: str) -> None:
    """On the command line, in a file and in a run directory it is refused by `said`, behind the file's name."""
    assert refusal(capsys, f"--{key}", str(value) or '""') == [said]
    file = folder / "old.yaml"
    file.write_text(yaml.safe_dump(nested(key, value)))
    assert refusal(capsys, "--config", str(file)) == [f"{file}: settings have been renamed", said]
    run = old_run(folder, nested(key, value))
    expected = [f"{run}: this run was made by an earlier version, and settings have been renamed since: {AGAIN}", said]
    assert refusal(capsys, "--config", str(run)) == expected
    with pytest.raises(ValueError) as refused:
        claim_directory(dataclasses.replace(config, run_dir=str(run.parent)), tokenizer=None)
    assert str(refused.value).splitlines() == expected


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(VALID)


def test_the_table_is_the_one_of_the_package():
    assert {key: new for key, (_, new) in KEYS.items()} == RENAMED
    of_runs = {key: values for key, values in RENAMED_VALUES.items() if key != "gold.kind"}
    pairs = {(key, old): new for key, values in of_runs.items() for old, new in values.items()}
    assert pairs == {(key, old): new for (_, key, old), new in VALUES.items()}


@pytest.mark.parametrize("key", [key for key, (value, _) in KEYS.items() if "average" not in key])
def test_an_old_key_is_refused_by_the_new_one(capsys, config, tmp_path, key):
    value, new = KEYS[key]
    everywhere(capsys, config, tmp_path, key, value, f"{key} is now {new}")


@pytest.mark.parametrize(("key", "new", "value"), VALUES)
def test_an_old_value_is_refused_by_the_new_one(capsys, config, tmp_path, key, new, value):
    now = VALUES[key, new, value]
    if key == new:
        said = f"{key}: the value `{value}` is now `{now}`"
    else:
        said = f"{key} is now {new}, and its value `{value}` is now `{now}`"
    everywhere(capsys, config, tmp_path, key, value, said)
    said = f"{new}: the value `{value}` is now `{now}`"  # also where the key has its new name already
    assert refusal(capsys, f"--{new}={value}") == [said]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("generation.max_response", 400, "generation.max_response is now generation.max_new_tokens"),
        ("data.train.kind", "reft", "data.train.kind: the value `reft` is now `reft_json`"),
    ],
)
def test_an_old_name_is_found_however_it_is_written(capsys, tmp_path, key, value, said):
    """Behind an equals sign, with dots in a file, in a section as YAML or a file, in files of files."""
    section, _, rest = key.partition(".")
    in_line = yaml.safe_dump(nested(rest, value), default_flow_style=True)
    (tmp_path / "dots.yaml").write_text(f"{key}: {value}\n")
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(nested(rest, value)))
    (tmp_path / "whole.yaml").write_text(f"{section}: part.yaml\n")
    (tmp_path / "over.yaml").write_text("config: [whole.yaml]\nseed: 3\n")
    for arguments in (
        [f"--{key}={value}"],
        [f"--{section}", in_line],
        [f"--{section}", in_line + " " * 300],  # which is too long for the name of a file
        [f"--{section}", str(tmp_path / "part.yaml")],
        ["--config", yaml.safe_dump(nested(key, value), default_flow_style=True)],
        [f"--config={tmp_path / 'dots.yaml'}"],
        ["--config", str(tmp_path / "whole.yaml")],
        ["--config", str(tmp_path / "over.yaml"), "--seed", "4"],
    ):
        assert refusal(capsys, *arguments)[-1] == said, arguments


def test_all_old_names_are_told_at_once(capsys, tmp_path):
    run = old_run(tmp_path, OLD_RUN)
    (tmp_path / "own.yaml").write_text("reward: {rules: sane}\nrl: {kl_coeff: 1}\n")
    said = refusal(capsys, "--config", str(run), "--config", str(tmp_path / "own.yaml"), "--generation.weights=split")
    assert AGAIN in said[0]
    assert len(said) == 1 + len(KEYS) + 2 + 1
    for key, (_, new) in KEYS.items():
        assert sum(line.startswith(f"{key} is now {new}") for line in said[1:-3]) == 1
    assert said[-3:] == [
        f"{tmp_path / 'own.yaml'}: settings have been renamed",
        "reward.rules: the value `sane` is now `lenient`",
        "generation.weights is now generation.weight_layout, and its value `split` is now `sharded`",
    ]


def test_commands_with_a_few_settings_of_their_own_say_the_same(capsys, tmp_path):
    commands = (
        (select.main, ["--gold.kind", "reft"], "gold.kind: the value `reft` is now `reft_json`"),
        (audit_rewards, ["--reward.program_timeout", "3"], "reward.program_timeout is now reward.program_timeout_s"),
    )
    for main, arguments, said in commands:
        with pytest.raises(SystemExit) as stop:
            main([*(str(tmp_path / name) for name in ("a", "b")[: 2 if main is select.main else 1]), *arguments])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_names_of_today_are_not_mistaken_for_old_ones():
    """Some old names are beginnings of new ones, or names of today elsewhere."""
    line = [
        "--reward.program_timeout_s=3",
        "--data.train.limit=5",
        "--distributed.process_id=0",
        "--data.train.name=reft",
    ]
    config = load_config([*VALID, *line])
    assert (config.reward.program_timeout_s, config.data.train.limit, config.data.train.name) == (3, 5, "reft")


def test_a_run_that_has_no_checkpoints_yet_is_begun_anew(tmp_path):
    """What `claim_directory` finds there was of a run that ended before its first; it is written over."""

    class Tokenizer:
        def save_pretrained(self, folder):
            pass

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(OLD_RUN))
    claim_directory(load_config([*VALID, f"--run_dir={tmp_path}"]), Tokenizer())
    assert "max_new_tokens" in yaml.safe_load((tmp_path / "config.yaml").read_text())["generation"]


def test_the_keys_that_may_change_are_keys(capsys):
    """Also a section may be named."""
    with pytest.raises(SystemExit):
        load_config([*VALID, "--allow_changed", '["rl.average", "rl.nonsense", "rl", "rl.kl_coef"]'])
    said = capsys.readouterr().err
    assert "allow_changed names rl.average, which is no setting: it is now rl.loss_aggregation" in said
    assert "allow_changed names rl.nonsense, which is no setting" in said
    assert said.count("which is no setting") == 2


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_uses_an_old_name(path):
    """But for the changelog, which has the table."""
    text = path.read_text(encoding="utf-8")
    assert not [old for old in RENAMED if re.search(rf"(?<![\w.]){re.escape(old)}(?![\w.])", text)]
    for key, values in RENAMED_VALUES.items():
        name = key.rpartition(".")[2]
        assert not [old for old in values if re.search(rf"\b{name}[:=]? {old}\b", text)], key
