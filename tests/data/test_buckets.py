"""Buckets that are made of the data: what they hold, how long they are, and who makes them."""

import dataclasses
import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.config import (
    Config,
    DecoderConfig,
    ModelConfig,
    RewardModelConfig,
    RlConfig,
    SftConfig,
    load_config,
    to_dict,
)
from reft_jax.config.ranges import AUTO
from reft_jax.data.__main__ import main as look
from reft_jax.data.buckets import automatic, bucket_sizes, with_buckets
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.preflight.__main__ import main as preflight
from reft_jax.problem import Problem
from reft_jax.reward_model.training import reward_model_only
from reft_jax.training.directory import with_kept_buckets

SFT, GENERATION = ("sft", "prompt_buckets"), ("generation", "prompt_buckets")
PROBLEM = ["--model.tokenizer=embedded", "--data.train.kind=generated", "--data.train.path=train"]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=300), st.integers(1, 2500), st.randoms())
def test_few_buckets_hold_all_rows_under_the_limit_without_much_padding(lengths, limit, random):
    sizes = bucket_sizes(lengths, limit)
    fitting = [length for length in lengths if length <= limit]
    assert len(sizes) <= 4
    assert list(sizes) == sorted(set(sizes))
    assert max(sizes) <= limit
    if fitting:
        assert 0 <= max(sizes) - max(fitting) < (8 if max(fitting) <= 128 else 32)
        assert sum(length <= sizes[0] for length in fitting) >= len(fitting) / 2
        assert all(size % 8 == 0 or size == limit for size in sizes)
    shuffled = random.sample(lengths, len(lengths))
    assert bucket_sizes(shuffled, limit) == sizes


def test_of_evenly_spread_lengths():
    assert bucket_sizes(range(1, 101), 1000) == (56, 96, 104)  # 50, 90, 99 and 100, rounded up to whole eights
    assert bucket_sizes([40] * 5 + [700], 1000) == (40, 704)
    assert bucket_sizes([40] * 5 + [700], 600) == (40,), "the longest is for data.overlong"


def config(positions: int) -> Config:
    made = load_config(["--run_dir=r", *PROBLEM, "--generation.max_new_tokens=20"])
    model = dataclasses.replace(made.model, decoder=DecoderConfig(max_positions=positions))
    sft = dataclasses.replace(made.sft, prompt_buckets=AUTO, response_buckets=AUTO)
    return dataclasses.replace(
        made, model=model, sft=sft, generation=dataclasses.replace(made.generation, prompt_buckets=AUTO)
    )


def test_they_are_made_of_what_is_learned_and_of_what_is_asked():
    """Counted with the tokenizer alone: templates, end token, and the model's positions."""
    tokenizer = load_tokenizer("embedded", "main")
    count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
    short, long = "Tom has 12 apples.", ("Tom has 12 apples. " * 12).strip()
    body = f'def solution():\n    """{short}"""\n    result = 9 * 1\n    return result'
    sets = {
        "train": [Problem("a", short, "1", cot=body), Problem("b", long, "2")],
        "test": [Problem("c", short, "3"), Problem("d", short + " " + short, "4")],
    }
    template = "Question:\n{}\nAnswer reasoning:\n".format
    begun = lambda question: count(template(question) + f'def solution():\n    """{question}"""\n')
    up = lambda n: -(-n // 8) * 8 if n <= 128 else -(-n // 16) * 16
    made = with_buckets(config(500), tokenizer, sets)
    assert made.sft.prompt_buckets == (up(count(template(short))),), "of the row with a chain of thought alone"
    assert made.sft.response_buckets == (up(count(body) + 1),)
    longest = begun(long)
    assert made.generation.prompt_buckets == (up(begun(short)), up(longest))
    assert automatic(made) == []
    tight = with_buckets(config(longest + 20), tokenizer, sets)
    assert max(tight.generation.prompt_buckets) == longest, "no longer than the model has positions for"
    assert max(with_buckets(config(longest + 19), tokenizer, sets).generation.prompt_buckets) < longest


def test_those_of_a_reward_model_hold_its_samples(tmp_path):
    tokenizer = load_tokenizer("embedded", "main")
    row = {"id": "a", "question": "Tom has 12 apples.", "gold": "7", "outcome": "wrong", "value": 1}
    texts = ["    result = 9 * 1", "    result = 9 * 1\n" * 9]
    rows = [{**row, "sample": i, "completion": f"def solution():\n{text}"} for i, text in enumerate(texts)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards = RewardModelConfig(samples=(str(tmp_path / "s.jsonl"),), row_buckets=AUTO)
    made = reward_model_only(dataclasses.replace(config(500), reward_model=rewards))
    assert automatic(made) == [("reward_model", "row_buckets")]
    whole = [f"Question:\nTom has 12 apples.\nAnswer reasoning:\n{row['completion']}" for row in rows]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in whole]
    assert with_buckets(made, tokenizer, {}).reward_model.row_buckets == tuple(-(-n // 8) * 8 for n in lengths)


def test_only_stages_that_there_are_need_them():
    auto = config(500)
    assert automatic(auto) == [SFT, ("sft", "response_buckets"), GENERATION]
    off = dataclasses.replace(auto, sft=dataclasses.replace(auto.sft, schedule_epochs=0))
    assert automatic(off) == [GENERATION]
    gold = dataclasses.replace(off, rl=RlConfig(algorithm="self_training"))
    assert automatic(gold) == automatic(auto)
    assert automatic(Config(model=ModelConfig(), sft=SftConfig())) == []


def test_a_run_that_has_begun_keeps_its_own(tmp_path):
    made = dataclasses.replace(config(500), run_dir=str(tmp_path))
    written = to_dict(made)
    assert written["sft"]["prompt_buckets"] == "auto"
    written["sft"]["prompt_buckets"] = [40, 48]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(written))
    assert with_kept_buckets(made) == made, "it was claimed, and nothing was trained"
    (tmp_path / "checkpoints" / "warmup").mkdir(parents=True)
    kept = with_kept_buckets(made)
    assert (kept.sft.prompt_buckets, kept.generation.prompt_buckets) == ((40, 48), AUTO)
    mine = dataclasses.replace(made, sft=dataclasses.replace(made.sft, prompt_buckets=(64,)))
    assert with_kept_buckets(mine).sft.prompt_buckets == (64,), "what is asked for by number is not replaced"


def test_how_it_is_written(capsys):
    written = ["--run_dir=r", *PROBLEM, "--sft.prompt_buckets"]
    assert load_config([*written, "auto"]).sft.prompt_buckets == AUTO
    for words in ("[0]", "0"):
        with pytest.raises(SystemExit):
            load_config([*written, words])
        assert "each more than 0, or auto" in capsys.readouterr().err


def test_preflight_says_what_it_needs(capsys):
    line = [*PROBLEM, "--target=cpu:1", "--sft.response_buckets=auto", "--generation.prompt_buckets=auto"]
    assert preflight(line) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "sft.response_buckets, generation.prompt_buckets: auto is made of the data's lengths, and no data" in said


def test_the_audit_shows_those_of_a_run(capsys):
    line = [
        "--config",
        "quickstart",
        "--data.train.limit=40",
        "--data.test.limit=9",
        "--pretrain.source.limit=9",
        "--sft.prompt_buckets=auto",
    ]
    assert look([*line, "--generation.prompt_buckets=auto"]) == 0
    shown = capsys.readouterr().out
    found = re.findall(r"^(\S+): auto, made \[([\d, ]+)\]$", shown, re.MULTILINE)
    assert [key for key, _ in found] == ["sft.prompt_buckets", "generation.prompt_buckets"]
    longest = max(map(int, re.findall(r"prompt, tokens .*?(\d+) │$", shown, re.MULTILINE)))
    assert longest <= int(found[1][1].split(", ")[-1]) < longest + 16
    assert "longer than" not in shown
