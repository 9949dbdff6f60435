"""Samples: what a file must hold, what is unique, which side a question is on, and the rows of a reward model.

The tokenizer has one token a character, and its padding token is its end token: what is read off ids fails.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.config import TemplateConfig
from reft_jax.data.batches import OverlongCount
from reft_jax.data.readers import question_hash, split_dev
from reft_jax.data.samples import Sample, encode_samples, labelled_batch, read_samples, split_samples, unique_samples
from reft_jax.problem import Problem
from tests.data.test_batches import EOS, TEMPLATES, UNKNOWN, ids, tokenizer  # noqa: F401 - a fixture

LINE = {
    "id": "svamp_1",
    "sample": 0,
    "question": "1 + 1 ?",
    "gold": "2",
    "completion": "two",
    "outcome": "correct",
    "reward": 1.0,
    "value": 2.0,
    "suspect": None,
    "tokens": 4,
    "ended": True,
    "log_prob": -1.5,
}


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(LINE | line) + "\n" for line in lines))
    return path


def make(question: int, number: int, completion: str, outcome: str = "wrong") -> Sample:
    return Sample(Problem(f"q{question}", f"number {question} ?", "1"), number, completion, outcome, None)


# Reading


def test_samples_are_read_by_question_and_number(tmp_path):
    lines = [{"sample": 2}, {"id": "b", "sample": 0, "gold": "c", "value": "c"}, {"sample": 0, "outcome": "error"}]
    one, two = write(tmp_path / "one", *lines), write(tmp_path / "two", {"sample": 1, "value": None})
    found = read_samples([one, two])
    assert [(s.problem.id, s.number, s.correct, s.value) for s in found] == [
        ("svamp_1", 0, False, 2.0),
        ("svamp_1", 1, True, None),
        ("svamp_1", 2, True, 2.0),
        ("b", 0, True, "c"),
    ]
    assert [(s.problem.answer, s.problem.answer_kind) for s in found[2:]] == [("2", "number"), ("c", "choice")]
    assert found[0].problem.question == "1 + 1 ?"


@pytest.mark.parametrize(
    ("gold", "value", "answered"),
    [("2", 3, True), ("2", 0.0, True), ("2", None, False), ("c", "a", True), ("c", "none", False), ("c", None, False)],
)
def test_only_letters_answer_multiple_choice(tmp_path, gold, value, answered):
    (sample,) = read_samples([write(tmp_path / "file", {"gold": gold, "value": value})])
    assert sample.answered is answered


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "no samples in .*file"),
        ('{"id": ', r"file: line 1: not JSON"),
        ("[1]", "file: line 1: should be a JSON object, is a list"),
        (json.dumps(LINE) + "\n\n" + json.dumps(LINE), "file: line 3: sample 0 of `svamp_1` is on an earlier line"),
        (
            json.dumps(LINE) + "\n" + json.dumps({**LINE, "sample": 1, "gold": "3"}),
            "line 2: `svamp_1` has another question or answer than on an earlier line",
        ),
        (json.dumps({**LINE, "sample": "0"}), "line 1: field `sample` is '0', of type str"),
        (json.dumps({**LINE, "sample": True}), "line 1: field `sample` is True, of type bool"),
        (json.dumps({**LINE, "completion": None}), "line 1: field `completion` is None"),
        (json.dumps({name: LINE[name] for name in LINE if name != "value"}), "field `value` is missing; there are id,"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_samples([tmp_path / "file"])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file `.*missing`: .*reft_jax\.sample"):
        read_samples([tmp_path / "missing"])


# Unique ones, and their split


drawn = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a", "a ", "b", ""])), max_size=20)


@given(drawn)
def test_unique_are_the_first_of_equal_completions_of_a_question(pairs):
    samples = [make(question, number, text) for number, (question, text) in enumerate(pairs)]
    expected = []
    for sample in samples:
        if all((s.problem.id, s.completion) != (sample.problem.id, sample.completion) for s in expected):
            expected.append(sample)
    assert unique_samples(samples) == expected


@given(drawn.filter(bool), st.floats(0.01, 0.99))
def test_a_question_is_on_one_side_and_where_its_problem_is(pairs, fraction):
    samples = [make(question, number, text) for number, (question, text) in enumerate(pairs)]
    train, dev = split_samples(samples, fraction)
    assert sorted([*train, *dev], key=lambda s: s.number) == samples
    assert not {s.problem.id for s in train} & {s.problem.id for s in dev}
    assert dev
    if own := split_dev([s.problem for s in samples], fraction)[1]:
        assert [s.problem for s in dev] == own


def test_without_dev_questions_the_lowest_share_is_dev():
    problems = [Problem(f"q{i}", f"number {i} ?", "1") for i in range(60)]
    kept, _ = split_dev(problems, 0.2)
    assert 30 < len(kept) < 60
    train, dev = split_samples([make(int(p.id[1:]), 0, "") for p in kept], 0.2)
    assert len(dev) == round(0.2 * len(kept))
    hashes = [[question_hash(s.problem.question) for s in part] for part in (train, dev)]
    assert max(hashes[1]) < min(hashes[0])
    assert split_samples([make(1, 0, "")], 0.2)[0] == [] or split_dev([problems[1]], 0.2)[1] == []


# Rows


def test_a_row_is_prompt_and_completion_without_an_end(tokenizer):  # noqa: F811
    problem = Problem("first", " 1 + 1 ? ", "2")
    samples = [
        Sample(problem, number, text, outcome, 2)
        for number, (text, outcome) in enumerate([("#1 + 1 ?\ntwo", "correct"), ("three", "wrong"), ("three", "wrong")])
    ]
    found, count = encode_samples(samples, tokenizer, TEMPLATES, max_length=99, overlong="error")
    assert (found.drawn, found.unique, count) == (samples, samples[:2], OverlongCount())
    assert [(row.problem, row.tokens.tolist()) for row in found.rows] == [
        (0, ids("Q1 + 1 ?:#1 + 1 ?\ntwo")),
        (1, ids("Q1 + 1 ?:three")),
    ]
    batch = labelled_batch(found, [1, 0], 3, (20, 30), EOS)
    assert batch.tokens.shape == (3, 30)
    assert batch.lengths.tolist() == [14, 21, 1]
    assert batch.labels.tolist() == [0, 1, -1]
    for row, text in zip(batch.tokens, ["Q1 + 1 ?:three", "Q1 + 1 ?:#1 + 1 ?\ntwo", ""]):
        assert row.tolist() == ids(text) + [EOS] * (30 - len(text))
    assert (batch.row_count, batch.token_count) == (2, 35)
    assert {x.dtype for x in (batch.tokens, batch.lengths, batch.labels)} == {np.dtype(np.int32)}


def test_sampled_text_may_have_holes(tokenizer):  # noqa: F811
    found, _ = encode_samples([make(1, 0, "aXb")], tokenizer, TEMPLATES, max_length=99, overlong="error")
    assert found.rows[0].tokens.tolist() == [*ids("Qnumber 1 ?:a"), UNKNOWN, *ids("b")]


def test_rows_that_are_too_long(tokenizer):  # noqa: F811
    samples = [make(1, 0, "as"), make(2, 0, "as it should be", "correct")]  # 13 and 26 tokens with their prompts
    limits = {"templates": TemplateConfig("Q", ":"), "max_length": 20}
    with pytest.raises(ValueError, match=r"1 of 2 rows .* 20 tokens of `reward_model\.row_buckets`: `q2` \(27 tokens"):
        encode_samples(samples, tokenizer, **limits, overlong="error")
    dropped, count = encode_samples(samples, tokenizer, **limits, overlong="drop")
    assert ([row.problem for row in dropped.rows], count) == ([0], OverlongCount(targets=1, dropped=1))
    assert dropped.unique == samples
    cut, count = encode_samples(samples, tokenizer, **limits, overlong="truncate")
    assert cut.rows[1].tokens.tolist() == ids("r 2 ?:as it should be")[-20:]
    assert count == OverlongCount(targets=1)
    assert labelled_batch(cut, [1], 1, (20,), EOS).labels.tolist() == [1]
