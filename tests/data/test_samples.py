"""Samples: what a file must hold, what is unique, which side a question is on, and the rows of a reward model.

The tokenizer is that of `characters`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.config import TemplateConfig
from reft_jax.data.encoding import OverlongCount
from reft_jax.data.readers import question_hash, split_dev
from reft_jax.data.samples import encode_samples, labelled_batch, problem_of, read_files, split_samples, unique_samples
from reft_jax.problem import Problem
from reft_jax.samples.file import Sample
from tests.data.characters import EOS, TEMPLATES, UNKNOWN, ids

LINE = {
    "id": "svamp_1",
    "sample": 0,
    "question": "1 + 1 ?",
    "gold": "2",
    "completion": "two",
    "outcome": "correct",
    "reward": 1.0,
    "value": 2.0,
    "suspicious": None,
    "tokens": 4,
    "ended": True,
    "log_prob": -1.5,
}


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(LINE | line) + "\n" for line in lines))
    return path


def make(question: int, number: int, completion: str, correct: bool = False) -> Sample:
    return Sample(f"q{question}", number, f"number {question} ?", "1", "number", completion, correct, None)


# Reading


def test_samples_are_read_by_question_and_number(tmp_path):
    lines = [{"sample": 2}, {"id": "b", "sample": 0, "gold": "c", "value": "c"}, {"sample": 0, "outcome": "error"}]
    one, two = write(tmp_path / "one", *lines), write(tmp_path / "two", {"sample": 1, "value": None})
    found = read_files([one, two])
    assert [(s.id, s.sample, s.correct, s.value) for s in found] == [
        ("svamp_1", 0, False, 2.0),
        ("svamp_1", 1, True, None),
        ("svamp_1", 2, True, 2.0),
        ("b", 0, True, "c"),
    ]
    problems = [Problem("svamp_1", "1 + 1 ?", "2", "number"), Problem("b", "1 + 1 ?", "c", "choice")]
    assert [problem_of(sample) for sample in found[2:]] == problems
    assert found[0].question is found[1].question, "held once"


def test_lines_that_contradict_others_are_named(tmp_path):
    one = write(tmp_path / "one", {}, {"sample": 1})
    with pytest.raises(ValueError, match=r"two: sample 1 of `svamp_1` is in a file before this one too"):
        read_files([one, write(tmp_path / "two", {"sample": 2}, {"sample": 1})])
    for other in ({"gold": "3"}, {"question": "1 + 2 ?"}):
        with pytest.raises(ValueError, match=r"two: sample 7 of `svamp_1` has another question or gold answer than"):
            read_files([one, write(tmp_path / "two", {"sample": 7, **other})])


def test_a_file_that_lacks_samples_is_refused(tmp_path):
    one, two = write(tmp_path / "one.jsonl", {}), write(tmp_path / "two.jsonl", {"sample": 1})
    (tmp_path / "two.settings.json").write_text(json.dumps({"lines": 2}))
    with pytest.raises(ValueError, match=r"two\.jsonl: holds 1 of 2 samples"):
        read_files([one, two])


# Unique ones, and their split


drawn = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a", "a ", "b", ""])), max_size=20)


@given(drawn)
def test_unique_are_the_first_of_equal_completions_of_a_question(pairs):
    samples = [make(question, number, text) for number, (question, text) in enumerate(pairs)]
    expected = []
    for sample in samples:
        if all((s.id, s.completion) != (sample.id, sample.completion) for s in expected):
            expected.append(sample)
    assert unique_samples(samples) == expected


@given(drawn.filter(bool), st.floats(0.01, 0.99))
def test_a_question_is_on_one_side_and_where_its_problem_is(pairs, fraction):
    samples = [make(question, number, text) for number, (question, text) in enumerate(pairs)]
    train, dev = split_samples(samples, fraction)
    assert sorted([*train, *dev], key=lambda s: s.sample) == samples
    assert not {s.id for s in train} & {s.id for s in dev}
    assert dev
    if own := split_dev([problem_of(s) for s in samples], fraction)[1]:
        assert [problem_of(s) for s in dev] == own


@given(drawn.filter(bool), st.floats(0.01, 0.99), st.lists(st.integers(0, 5), min_size=1))
def test_questions_of_a_dev_source_are_dev(pairs, fraction, asked):
    """Told by their text, as everywhere; where there is none of them, dev is a share of the samples' questions."""
    samples = [make(question, number, text) for number, (question, text) in enumerate(pairs)]
    train, dev = split_samples(samples, fraction, [Problem(f"d{i}", f" NUMBER {i}?", "1") for i in asked])
    assert sorted([*train, *dev], key=lambda s: s.sample) == samples
    own = [sample for sample, (question, _) in zip(samples, pairs) if question in asked]
    if own:
        assert dev == own
    else:
        count = len({sample.id for sample in samples})
        assert len({sample.id for sample in dev}) == max(1, round(fraction * count))
        assert not {s.id for s in train} & {s.id for s in dev}


def test_without_dev_questions_the_lowest_share_is_dev():
    problems = [Problem(f"q{i}", f"number {i} ?", "1") for i in range(60)]
    kept, _ = split_dev(problems, 0.2)
    assert 30 < len(kept) < 60
    train, dev = split_samples([make(int(p.id[1:]), 0, "") for p in kept], 0.2)
    assert len(dev) == round(0.2 * len(kept))
    hashes = [[question_hash(s.question) for s in part] for part in (train, dev)]
    assert max(hashes[1]) < min(hashes[0])
    assert split_samples([make(1, 0, "")], 0.2)[0] == [] or split_dev([problems[1]], 0.2)[1] == []


# Rows


def test_a_row_is_prompt_and_completion_without_an_end(tokenizer):
    texts = [("#1 + 1 ?\ntwo", True), ("three", False), ("three", False)]
    samples = [Sample("first", i, " 1 + 1 ? ", "2", "number", text, right, 2) for i, (text, right) in enumerate(texts)]
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


def test_sampled_text_may_have_holes(tokenizer):
    found, _ = encode_samples([make(1, 0, "aXb")], tokenizer, TEMPLATES, max_length=99, overlong="error")
    assert found.rows[0].tokens.tolist() == [*ids("Qnumber 1 ?:a"), UNKNOWN, *ids("b")]


def test_rows_that_are_too_long(tokenizer):
    samples = [make(1, 0, "as"), make(2, 0, "as it should be", True)]  # 13 and 26 tokens with their prompts
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
