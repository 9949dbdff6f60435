"""Choosing among completions against slow loops over questions, and figures by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.reward_model.reranking import best, by_question, evaluate_choices, evaluate_classification, vote
from reft_jax.samples.file import Sample
from reft_jax.samples.statistics import wilson_interval


def make(question: str, number: int, completion: str, value, *, gold="1", choice=False) -> Sample:
    kind, correct = ("choice", value == gold) if choice else ("number", value == 1)
    return Sample(question, number, f"{question} ?", gold, kind, completion, correct, value)


@st.composite
def questions(draw, n: int):
    """Some questions of n samples; equal completions have equal answers. Scores of most, few of them different."""
    drawn, scores = [], {}
    for question in range(draw(st.integers(1, 4))):
        choice = draw(st.booleans())
        values = st.sampled_from([None, "a", "b", "none"] if choice else [None, 1, 1.0, 2, 3.5])
        texts = draw(st.dictionaries(st.sampled_from("uvwxyz"), values, min_size=1))
        for number in range(n):
            text = draw(st.sampled_from(sorted(texts)))
            gold = "a" if choice else "1"
            drawn.append(make(f"q{question}", number, text, texts[text], gold=gold, choice=choice))
        for text in texts:
            if draw(st.integers(0, 3)):
                scores[f"q{question}", text] = draw(st.sampled_from([0.1, 0.5, 0.9]))
    return drawn, scores


def slow_choices(samples, scores, k):
    """(right by rerank, by vote, by the upper bound) of one question; the reference's steps, one after the other."""
    unique, seen = [], set()
    for sample in samples[:k]:
        if sample.completion not in seen:
            seen.add(sample.completion)
            unique.append(sample)
    chosen, highest = None, -1.0
    for sample in unique:
        allowed = sample.value is not None
        if sample.answer_kind == "choice" and (sample.value is None or len(sample.value) != 1):
            allowed = False
        p = scores.get((sample.id, sample.completion))
        if allowed and p is not None and p > highest:
            chosen, highest = sample, p
    counts: list[list] = []
    for sample in samples[:k]:
        if sample.value is None or (sample.answer_kind == "choice" and len(sample.value) != 1):
            continue
        for entry in counts:
            if entry[0] == sample.value:
                entry[1] += 1
                break
        else:
            counts.append([sample.value, 1, sample.correct])
    winner = None
    for entry in counts:
        if winner is None or entry[1] > winner[1]:
            winner = entry
    right = chosen is not None and chosen.correct, winner is not None and winner[2]
    return *right, any(sample.correct for sample in unique)


@given(questions(5), st.sampled_from([1, 2, 5, None]), st.integers(0, 3))
def test_choices_equal_a_slow_loop(drawn, k, unasked):
    samples, scores = drawn
    groups = by_question(samples)
    found, total = evaluate_choices(groups, scores, k, unasked), len(groups) + unasked
    expected = [slow_choices(group, scores, k) for group in groups]
    for column, name in enumerate(("rerank", "vote", "upper_bound")):
        correct = sum(row[column] for row in expected)
        assert found[name] == {
            "accuracy": correct / total,
            "interval": list(wilson_interval(correct, total)),
            "correct": correct,
            "total": total,
        }
    assert found["rerank"]["correct"] <= found["upper_bound"]["correct"]


@given(questions(6))
def test_a_perfect_model_reaches_what_can_be_reached(drawn):
    samples, _ = drawn
    scores = {(s.id, s.completion): float(s.correct) for s in samples}
    found = evaluate_choices(by_question(samples), scores)
    assert found["rerank"] == found["upper_bound"]
    classes = evaluate_classification(samples, scores)
    assert classes["accuracy"] == 1
    worst = {name: 1 - p for name, p in scores.items()}
    assert evaluate_classification(samples, worst)["accuracy"] == 0


def test_of_equals_the_first_is_chosen():
    samples = [make("q", 0, "x", 2), make("q", 1, "y", 1), make("q", 2, "z", 1), make("q", 3, "w", 2)]
    scores = {("q", text): p for text, p in (("x", 0.1), ("y", 0.7), ("z", 0.7), ("w", 0.2))}
    assert best(samples, scores) is samples[1]
    assert vote(samples) is samples[0]
    assert vote([*samples, make("q", 4, "v", 1.0)]) is samples[1]
    assert best(samples[:1], {}) is None
    assert vote([make("q", 0, "x", None)]) is None


def test_classes_by_hand():
    samples = [make("q", number, text, value) for number, (text, value) in enumerate(zip("xyzw", (1, 2, 2, 1)))]
    scores = {("q", text): p for text, p in (("x", 0.9), ("y", 0.6), ("z", 0.2))}  # w was too long
    found = evaluate_classification(samples, scores)
    assert found == {"accuracy": 2 / 3, "majority": 2 / 3, "completions": 3, "correct": 1}


def test_too_few_samples_are_named():
    samples = [make("q", 0, "x", 1), make("r", 0, "x", 1), make("r", 1, "x", 1)]
    with pytest.raises(ValueError, match=r"1 questions have fewer than 2 samples: `q` \(1\); give a smaller --k"):
        evaluate_choices(by_question(samples), {("r", "x"): 1.0}, 2)
