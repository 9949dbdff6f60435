"""`reft init`: what it writes is read, judged right, and overwrites nothing."""

import json
import re

import pytest

from docs.own_model import write_model
from reft_jax.config import RewardConfig, SourceConfig, load_config
from reft_jax.data.prompts import target_text
from reft_jax.data.readers import read_problems, split_dev
from reft_jax.init import CONFIG, ROWS, main
from reft_jax.models.hf.tensors import FAMILIES
from reft_jax.reward.parse import likely_cot
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.verdicts import verdicts_of
from tests.runs import complete


def test_its_config_loads_from_anywhere_and_is_short(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["mine"]) == 0
    assert "--config mine/config.yaml" in capsys.readouterr().out
    text = (tmp_path / "mine/config.yaml").read_text()
    assert 20 <= len(text.splitlines()) <= 28
    assert all(len(line) <= 120 for line in CONFIG.splitlines())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(["--config", str(tmp_path / "mine/config.yaml")])
    assert config.run_dir == str(tmp_path / "mine/run")
    assert config.data.train == SourceConfig(kind="jsonl", path=str(tmp_path / "mine/text.jsonl"))
    with pytest.raises(SystemExit) as left:
        load_config(["--config", str(tmp_path / "mine/config.yaml"), "--print_config"])
    assert left.value.code == 0


def test_its_config_names_every_family_and_the_templates_of_chat_models():
    """By `FAMILIES`, so that a new one is not forgotten."""
    comment = re.sub(r"[^a-z0-9,]", "", next(line for line in CONFIG.splitlines() if " path: Qwen" in line).lower())
    assert set(FAMILIES) <= set(comment.partition("hubid")[2].split(","))
    assert re.search(r"^  templates: strings  # .*`chat`", CONFIG, re.MULTILINE)


@pytest.mark.parametrize("kind", ["text", "program"])
def test_its_rows_are_of_their_kind_and_give_their_answers(kind, tmp_path):
    assert main([str(tmp_path / "mine")]) == 0
    config = load_config(["--config", str(tmp_path / "mine/config.yaml")])
    problems = read_problems(SourceConfig(kind="jsonl", path=str(tmp_path / f"mine/{kind}.jsonl")))
    assert len({problem.question for problem in problems}) == len(problems) == 60
    train, dev = split_dev(problems, config.data.dev_fraction)
    assert len(train) >= config.sft.batch_size
    assert len(dev) >= 4
    assert likely_cot([problem.cot for problem in problems]) == kind
    texts = [target_text(problem, config.data.templates, kind) for problem in problems]
    with ProgramRunner(1, 5.0, 512) as runner:
        trigger = config.data.templates.answer_trigger
        told = verdicts_of(problems, texts, cot=kind, answer_trigger=trigger, config=RewardConfig(), runner=runner)
    assert {verdict.outcome for verdict in told} == {"correct"}


@pytest.mark.compiles
@pytest.mark.ci
def test_what_it_wrote_is_trained_on_with_any_model(tmp_path, capsys):
    assert main([str(tmp_path / "mine")]) == 0
    assert "--model.path FOLDER" in capsys.readouterr().out
    write_model(tmp_path / "model", [row["question"] + row["cot"] for row in ROWS["text.jsonl"]])
    shape = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**shape, "max_position_embeddings": 1024}))
    short = "--sft.schedule_epochs 1 --sft.warmup_epoch 1 --sft.stop_epoch 1 --sft.prompt_buckets 128 "
    short += "--sft.response_buckets 128 --rl.epochs 1 --generation.prompt_buckets 128 --generation.max_new_tokens 9"
    line = ["--config", str(tmp_path / "mine/config.yaml"), "--model.path", str(tmp_path / "model"), *short.split()]
    complete(line)
    assert {"warmup", "rl_best"} <= set(json.loads((tmp_path / "mine/run/summary.json").read_text()))


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is there and not an empty folder: name a fresh one\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert main([str(tmp_path / "notes.txt")]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_a_path_that_yaml_would_read_otherwise_is_kept(tmp_path):
    folder = tmp_path / "a: b #1"
    assert main([str(folder)]) == 0
    assert load_config(["--config", str(folder / "config.yaml")]).run_dir == str(folder / "run")
    assert re.search(r"^run_dir: \"", (folder / "config.yaml").read_text(), re.MULTILINE)
    assert all(json.loads(line)["answer"] for line in (folder / "text.jsonl").read_text().splitlines())
