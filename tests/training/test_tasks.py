"""Reinforcement on a task of reasoning-gym: rewards are the task's, and items are the same when a run goes on."""

import json
import string

import pytest

from tests.data.characters import build_tokenizer
from tests.runs import complete


@pytest.mark.ci
@pytest.mark.compiles
def test_reinforcement_asks_a_task_and_goes_on(arguments, tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr("tests.data.characters.ALPHABET", string.printable)
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    task = {"kind": "reasoning_gym", "path": "", "name": "chain_sum", "limit": 14, "seed": 0}
    task["config"] = '{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}'
    sources = {"train": task, "test": {**task, "limit": 4, "seed": 14}}
    overrides = {f"data__{name}__{key}": value for name, source in sources.items() for key, value in source.items()}
    overrides |= {
        "model__tokenizer": tmp_path / "tokenizer",
        "data__cot": "text",
        "data__templates__answer_trigger": "1",  # which a model that knows nothing writes now and then
        "sft__schedule_epochs": 0,
        "rl__rollout_batch_size": 12,
        "generation__prompt_buckets": "[112]",
        "generation__max_new_tokens": 16,
        "model__decoder__max_positions": 128,
    }
    line = lambda epochs: arguments(tmp_path / "run", **overrides, rl__epochs=epochs)
    complete(line(1))
    complete([*line(2), "--allow_changed", "[rl.epochs]"])
    rows = [json.loads(row) for row in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in rows}) >= 2
    assert {row["answer_kind"] for row in rows} == {"scored"}
    assert {row["outcome"] for row in rows} >= {"wrong", "no_answer"}
    assert all(("score" in row) == (row["value"] is not None) for row in rows)
