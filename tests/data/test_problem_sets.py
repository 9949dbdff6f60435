"""The problems of a run with their tokens: what is learned, what is asked, and what is said of the rest.

The tokenizer has one token a character, so that lengths can be counted by hand.
"""

import dataclasses
import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reft_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    PretrainConfig,
    RewardConfig,
    RlConfig,
    SftConfig,
    SourceConfig,
    TemplateConfig,
)
from reft_jax.data.problem_sets import encode_for_sampling, encode_for_training, read_problem_sets
from reft_jax.data.prompts import target_text
from reft_jax.problem import Problem

ALPHABET = "0123456789+ abcdefghijklmnopqrstuvwxyzQ:="
PROBLEMS = [
    Problem("bare", "1", "1"),
    Problem("short", "2", "2", cot="ab"),
    Problem("empty", "3", "3"),
    Problem("long", "4" * 9, "4", cot="cd"),
    Problem("wordy", "5", "5", cot="e" * 9),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokens = ["<eos>", "<unk>", *ALPHABET]
    characters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="<eos>", unk_token="<unk>")


def config(overlong="error", prompt=99, response=99, asked=99) -> Config:
    return Config(
        data=DataConfig(
            cot="text",
            overlong=overlong,
            templates=TemplateConfig(instruction="Q", cot_trigger=":", answer_trigger="="),
        ),
        sft=SftConfig(prompt_buckets=(1, prompt), response_buckets=(response,)),
        generation=GenerationConfig(prompt_buckets=(asked,)),
    )


def texts(examples, tokenizer) -> list[tuple[str, str]]:
    return [(tokenizer.decode(e.prompt), tokenizer.decode(e.response, skip_special_tokens=True)) for e in examples]


def test_what_has_a_chain_of_thought_is_learned_and_all_is_asked(tokenizer):
    said: list[str] = []
    made = config()
    examples = encode_for_training(PROBLEMS, made, tokenizer, "sft", made.sft, said.append)
    assert texts(examples, tokenizer) == [("Q2:", "ab=2"), (f"Q{'4' * 9}:", "cd=4"), ("Q5:", "eeeeeeeee=5")]
    assert [PROBLEMS[example.problem].id for example in examples] == ["short", "long", "wordy"]
    prompts = encode_for_sampling(PROBLEMS, made, tokenizer, "train", said.append)
    assert [prompt.problem for prompt in prompts] == list(range(5))
    assert said == ["sft: 3 of 5 problems have a chain of thought"]
    encode_for_training(examples and PROBLEMS[3:], made, tokenizer, "sft", made.sft, said.append)
    assert len(said) == 1, "all have one"


def test_what_is_dropped_is_told_where(tokenizer):
    said: list[str] = []
    made = config("drop", prompt=5, response=9, asked=5)
    examples = encode_for_training(PROBLEMS, made, tokenizer, "sft", made.sft, said.append)
    assert [PROBLEMS[example.problem].id for example in examples] == ["short"]
    for split in ("train", "test"):
        prompts = encode_for_sampling(PROBLEMS, made, tokenizer, split, said.append)
        assert [PROBLEMS[prompt.problem].id for prompt in prompts] == ["bare", "short", "empty", "wordy"]
    longer = "are longer than generation.prompt_buckets allow; they are dropped (data.overlong)"
    assert said[1:] == [
        "sft rows: 2 of 3 are longer than sft.prompt_buckets and response_buckets allow (1 prompts, 1 targets); they "
        "are dropped (data.overlong): `long`, `wordy`",
        f"train prompts: 1 of 5 {longer}: `long`",
        f"test prompts: 1 of 5 {longer}, and count as wrong: `long`",
    ]
    said.clear()
    many = [dataclasses.replace(PROBLEMS[3], id=f"p{i}") for i in range(7)]
    cut = dataclasses.replace(made, data=dataclasses.replace(made.data, overlong="truncate"))
    assert len(encode_for_sampling(many, cut, tokenizer, "dev", said.append)) == 7
    assert said == [
        "dev prompts: 7 of 7 are longer than generation.prompt_buckets allow; they are cut (data.overlong): "
        "`p0`, `p1`, `p2`, `p3`, `p4`, ..."
    ]


@pytest.mark.parametrize(
    ("changes", "stage", "cure"),
    [
        ({}, "sft", r"data\.train has .*\(data\.train\.cot_field\), or set sft\.schedule_epochs to 0"),
        (
            {"sft": SftConfig(schedule_epochs=0), "rl": RlConfig(algorithm="self_training")},
            "sft",
            r"data\.train has .*or set rl\.self_training\.gold_weight to 0",
        ),
        ({"pretrain": PretrainConfig(epochs=1)}, "pretrain", r"pretrain\.source has .*or set pretrain\.epochs to 0"),
    ],
)
def test_a_stage_with_nothing_to_learn_is_refused(tokenizer, changes, stage, cure):
    made = dataclasses.replace(config(), **changes)
    with pytest.raises(ValueError, match=f"^none of the 2 problems to train on of {cure}$"):
        encode_for_training([PROBLEMS[0], PROBLEMS[2]], made, tokenizer, stage, getattr(made, stage), print)
    nothing = dataclasses.replace(made, sft=SftConfig(schedule_epochs=0), rl=RlConfig(), pretrain=PretrainConfig())
    assert encode_for_training([PROBLEMS[0]], nothing, tokenizer, stage, getattr(made, stage), print) == []


def test_a_stage_whose_rows_are_all_dropped_is_refused(tokenizer):
    made = config("drop", response=4, asked=2)
    with pytest.raises(
        ValueError, match=r"all 3 sft rows are longer than sft\.prompt_buckets and response_buckets allow"
    ):
        encode_for_training(PROBLEMS, made, tokenizer, "sft", made.sft, lambda _: None)
    with pytest.raises(ValueError, match=r"all 5 dev prompts are longer than generation\.prompt_buckets allow"):
        encode_for_sampling(PROBLEMS, made, tokenizer, "dev", lambda _: None)


def without_answers(tmp_path, *, answers=0, algorithm="grpo", select_by="auto") -> Config:
    """Rewards that are functions' alone, and a file of ten questions of which some have an answer."""
    rows = [{"question": f"What is {i} and {i}?", "answer": None, "cot": "So."} for i in range(10)]
    for i in range(answers):
        rows[i]["answer"] = 2 * i
    del rows[9]["answer"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(kind="jsonl", path=str(tmp_path / "train.jsonl"))
    return Config(
        data=DataConfig(train=source, dev=source, cot="text"),
        rl=RlConfig(algorithm=algorithm),
        reward=RewardConfig(correct=0, wrong=0, functions={"my.own": 1.0}),
        evaluation=EvaluationConfig(select_by=select_by),
    )


def test_rows_need_no_answer_where_functions_alone_are_the_reward(tmp_path):
    said = []
    sets = read_problem_sets(without_answers(tmp_path), said.append)
    assert [problem.has_gold for problem in sets["train"]] == [False] * 10
    assert target_text(sets["train"][0], TemplateConfig(), "text") == "So.", "there is nothing to put behind it"
    assert "dev: 10 of 10 problems have no answer, and no accuracy is reported" in said
    sets = read_problem_sets(without_answers(tmp_path, answers=3), said.append)
    assert [(problem.answer, problem.answer_kind) for problem in sets["train"][2:4]] == [("4", "number"), ("", "none")]
    assert "dev: 7 of 10 problems have no answer, and accuracy is of those 3 alone" in said
    paid = dataclasses.replace(without_answers(tmp_path), reward=RewardConfig(functions={"my.own": 1.0}))
    with pytest.raises(ValueError, match="field `answer` is null"):
        read_problem_sets(paid, said.append)


def test_what_needs_right_answers_is_refused_where_there_are_none(tmp_path):
    asked = without_answers(tmp_path, select_by="accuracy")
    with pytest.raises(
        ValueError, match=r"none of the 10 problems of dev has .*evaluation.select_by cannot be accuracy"
    ):
        read_problem_sets(asked, print)
    with pytest.raises(
        ValueError, match=r"of train has an answer \(data.train.answer_field\).*self_training has nothing"
    ):
        read_problem_sets(without_answers(tmp_path, algorithm="self_training"), print)
    some = without_answers(tmp_path, answers=1, select_by="accuracy", algorithm="self_training")
    assert len(read_problem_sets(some, print)["dev"]) == 10
