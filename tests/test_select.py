"""`python -m reft_jax.select`: training sets out of samples, against the reference's loop, and through the readers."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.config import SourceConfig, TemplateConfig
from reft_jax.data.prompts import target_text
from reft_jax.data.readers import question_key, read_problems, split_dev
from reft_jax.problem import Problem
from reft_jax.samples.file import Sample
from reft_jax.select import main, select

TRIGGER = TemplateConfig().answer_trigger


def sample(identity, number, text, correct, gold="7"):
    kind = "choice" if gold.isalpha() else "number"
    return Sample(identity, number, f"Question {identity}?", gold, kind, text, correct, None)


def reference(gold, sampled, limit):
    """train_sl_model.py as it reads: gold file | samples file, of these the first right ones and gold unless there."""
    rows = [(problem.id, problem.cot) for problem in gold]
    for identity, samples in sampled.items():
        texts = []
        for text, correct in samples:
            if correct and text.strip() and text.strip() not in texts:
                texts.append(text.strip())
        texts = texts[:limit]
        own = next(problem.cot for problem in gold if problem.id == identity)
        if own not in texts:
            texts.append(own)
        rows += [(identity, text) for text in texts]
    return rows


COMPLETIONS = st.lists(st.tuples(st.sampled_from(["p", "p ", "q", "\nr", "s", "t", " "]), st.booleans()), min_size=1)


@given(st.dictionaries(st.sampled_from("abc"), COMPLETIONS), st.integers(1, 4), st.integers(0, 3))
def test_both_rules_against_the_references_loop(sampled, limit, seed):
    gold = [Problem(i, f"Question {i}?", "7", cot=cot) for i, cot in zip("abcd", ["p", "x", "s", "y"])]
    samples = [sample(i, n, text, right) for i, own in sampled.items() for n, (text, right) in enumerate(own)]
    rows = select(samples, gold, limit=limit, rules="reference")
    assert [(row.id.partition("/")[0], row.cot) for row in rows] == reference(gold, sampled, limit)
    assert len({row.id for row in rows}) == len(rows)
    assert all((row.question, row.answer) == (f"Question {row.id[0]}?", "7") for row in rows)

    everything = select(samples, gold, limit=0)
    drawn = select(samples, gold, limit=limit, seed=seed)
    for identity in sampled:
        chosen, unique = (
            [row.cot for row in rows if row.id.startswith(f"{identity}/sample_")] for rows in (drawn, everything)
        )
        assert len(chosen) == min(limit, len(unique))
        assert [text for text in unique if text in chosen] == chosen, "in their order"
    shuffled = {i: sampled[i] for i in sorted(sampled, reverse=True)}
    again = [sample(i, n, text, right) for i, own in shuffled.items() for n, (text, right) in enumerate(own)]
    assert Counter(select(again, gold, limit=limit, seed=seed)) == Counter(drawn), "no question depends on another"


def test_the_draw_is_even():
    """Each of 8 texts is among 2 of them equally often, over 4,000 seeds: within 5 standard errors."""
    samples = [sample("a", n, f"text {n}", True) for n in range(8)]
    found = Counter(row.cot for seed in range(4000) for row in select(samples, limit=2, seed=seed))
    assert sum(found.values()) == 8000
    assert all(abs(count - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5 for count in found.values())


def test_without_gold_samples_become_annotations():
    samples = [sample("a", 0, "x", False), sample("a", 1, "y", True), sample("b", 0, "z", False)]
    assert [row[:1] + row[2:] for row in select(samples)] == [("a/sample_1", "7", "y")]


def test_gold_questions_without_a_chain_of_thought_have_no_row():
    gold = [Problem("a", "Question a?", "7", cot="gold"), Problem("b", "Question b?", "7")]
    samples = [sample("a", 0, "x", True), sample("b", 0, "y", True)]
    rows = [(row.id, row.cot) for row in select(samples, gold)]
    assert rows == [("a", "gold"), ("a/sample_0", "x"), ("a/gold", "gold"), ("b/sample_0", "y")]


def test_prose_ends_in_the_gold_answer_once():
    """A sampled completion already holds the answer's line, which the data code appends to every chain of thought."""
    completion = "It is 3 + 4.\nTherefore, the answer is <7>." + TRIGGER + "7.0"
    twice = "It is 3 + 4.\nTherefore, the answer is <7>. " + TRIGGER + "$7"
    (row,) = select([sample("a", 0, completion, True), sample("a", 1, twice, True)], cot="text")
    problem = Problem(row.id, row.question, row.answer, cot=row.cot)
    text = target_text(problem, TemplateConfig(), "text")
    assert text == "It is 3 + 4.\nTherefore, the answer is <7>." + TRIGGER + "7"
    assert not select([sample("a", 0, TRIGGER + "7", True), sample("a", 1, "7", True)], cot="text"), "nothing to learn"


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ([Problem("b", "Question b?", "7", cot="x")], "problem `a` of the samples is not in the gold data"),
        ([Problem("a", "Another?", "7", cot="x")], "problem `a` of the samples has another question in the gold data"),
        ([Problem("a", "Question a?", "7")], "none of the 1 problems of the gold data has a chain of thought"),
    ],
)
def test_gold_data_of_other_problems_is_refused(gold, message):
    with pytest.raises(ValueError, match=message):
        select([sample("a", 0, "x", True)], gold)


# The command


def write_samples(path, problems, texts):
    rest = {"outcome": "correct", "value": None}
    rows = [
        {"id": p.id, "sample": i, "question": p.question, "gold": p.answer, "completion": text.format(p.cot), **rest}
        for p in problems
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_samples_of_train_questions_stay_in_train(tmp_path, capsys):
    """Dev of the training set that is made is the run's own, so that nothing of it has been trained on."""
    source = SourceConfig(kind="generated", path="train", limit=200)
    train, dev = split_dev(read_problems(source), 0.2)
    samples, out = tmp_path / "samples.jsonl", tmp_path / "out.jsonl"
    write_samples(samples, train, ["{}", "{}\n", "{}\n    # b", "{}\n    # c"])
    gold = ["--gold.kind", "generated", "--gold.path", "train", "--gold.limit", "200"]
    main([str(samples), str(out), "--limit", "2", *gold])
    said = capsys.readouterr().out.removeprefix(str(out))
    total, given, chosen, right, asked, *again = map(int, re.findall(r"\d+", said))
    assert (given, chosen, right, asked) == (200, 2 * len(train), len(train), len(train))
    assert total == given + chosen + sum(again) == len(out.read_text().splitlines()), said
    made = read_problems(SourceConfig(kind="jsonl", path=str(out)))
    later_train, later_dev = split_dev(made, 0.2)
    assert [(p.id, p.question, p.answer, p.cot) for p in later_dev] == [
        (p.id, p.question, p.answer, p.cot) for p in dev
    ]
    keys = {question_key(problem.question) for problem in train}
    assert {question_key(problem.question) for problem in later_train} == keys
    assert {p.id.partition("/")[0] for p in later_train} == {p.id for p in train}


def test_multiple_choice_stays_multiple_choice(tmp_path):
    problems = [Problem(f"m_{i}", f"Which? a ) {i} , b ) 2", "ab"[i % 2], "choice", "return 'a'") for i in range(4)]
    main([write_samples(tmp_path / "s.jsonl", problems, ["def solution(): {}"]), str(tmp_path / "o.jsonl")])
    made = read_problems(SourceConfig(kind="jsonl", path=str(tmp_path / "o.jsonl")))
    assert [(p.answer, p.answer_kind) for p in made] == [(p.answer, "choice") for p in problems]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl", "o.jsonl"], "none.jsonl"),
        (["s.jsonl", "o.jsonl", "--limit", "-1"], "--limit is -1"),
        (["s.jsonl", "full.jsonl"], "full.jsonl is not empty: name a fresh file"),
        (["s.jsonl", "gs://b/o.jsonl"], "gs://b/o.jsonl must be a path on this machine, no URL"),
        (["s.jsonl", "o.jsonl"], "s.jsonl has no right completion: there is nothing to select"),
        (["s.jsonl", "s.jsonl"], "s.jsonl is what is read: name another file to write"),
        (["s.jsonl", "o.jsonl", "--gold.kind", "jsonl", "--gold.path", "s.jsonl"], "field `answer` is missing"),
    ],
)
def test_select_refuses_what_cannot_work(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path / "s.jsonl", [Problem("a", "Q?", "7", cot="x")], ["{}"])
    wrong = [{**json.loads(line), "outcome": "wrong"} for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    (tmp_path / "full.jsonl").write_text("{}\n")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()
