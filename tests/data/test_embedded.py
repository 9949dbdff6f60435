import ast
import collections
import hashlib
import itertools
import random
import re
import statistics
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from reft_jax.config import TemplateConfig
from reft_jax.data.embedded import problems as generated
from reft_jax.data.embedded.stories import FAMILIES, Step, Story
from reft_jax.data.embedded.wording import SENTENCES
from reft_jax.problem import Problem

SPLITS: tuple[Literal["train", "test", "pretrain"], ...] = ("train", "test", "pretrain")
TEMPLATES = TemplateConfig()


@pytest.fixture(scope="module")
def problems() -> dict[str, list[Problem]]:
    return {split: generated.generate_problems(split) for split in SPLITS}


@pytest.fixture(scope="module")
def everything(problems) -> list[Problem]:
    return [problem for split in SPLITS for problem in problems[split]]


@pytest.fixture(scope="module")
def tokenizer():
    return generated.build_tokenizer()


def parts(problem: Problem) -> tuple[str, str, str]:
    """Prompt, forced header and body; they are the whole text that the model sees."""
    prompt = TEMPLATES.instruction + problem.question + TEMPLATES.cot_trigger
    header = f'def solution():\n    """{problem.question}"""\n'
    assert problem.cot is not None
    assert problem.cot.startswith(header)
    return prompt, header, problem.cot.removeprefix(header)


def numbers(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", text))


def run(problem: Problem) -> float:
    namespace: dict = {}
    exec(problem.cot or "", namespace)
    return namespace["solution"]()


def step_values(problem: Problem) -> list[float]:
    """The value of every line, by a small interpreter of its own."""
    values: dict[str, float] = {}
    for line in parts(problem)[2].splitlines()[:-1]:
        match = re.fullmatch(r"    (\w+) = (\w+) ([-+*/]) (\w+)", line)
        assert match, line
        name, left, op, right = match.groups()
        x, y = (values[word] if word in values else int(word) for word in (left, right))
        values[name] = {"+": x + y, "-": x - y, "*": x * y, "/": x / y}[op]
    assert list(values)[-1] == "result"
    return list(values.values())


@pytest.mark.parametrize("split", ["test", "pretrain"])
def test_programs_are_right_and_every_step_is_whole_and_in_range(problems, split):
    for problem in problems[split]:
        values = step_values(problem)
        assert all(value == int(value) and 1 <= value <= 199 for value in values), problem
        assert values[-1] == run(problem) == int(problem.answer), problem


def test_training_programs_slip_at_the_stated_rate_while_their_labels_stay_in_range(problems):
    right = [run(problem) == int(problem.answer) for problem in problems["train"]]
    assert abs(statistics.mean(right) - 0.77) < 0.02  # of the slips, 25 %, some leave the answer right
    assert all(1 <= int(problem.answer) <= 199 for problem in problems["train"])


def test_sizes_and_format(problems):
    assert {split: len(problems[split]) for split in SPLITS} == {"train": 2500, "test": 1000, "pretrain": 12_800}
    for split in SPLITS:
        for i, problem in enumerate(problems[split]):
            assert problem.id == f"generated_{split}_{i}"
            assert problem.answer_kind == "number"
            assert re.fullmatch(r"[A-Z][^?]*\?", problem.question), problem.question
            assert problem.cot.endswith("\n    return result")
            ast.parse(problem.cot)


def test_no_question_occurs_twice_and_no_numbers_cross_splits(problems, everything):
    assert len({problem.question for problem in everything}) == len(everything)
    real = [numbers(problem.question) for split in ("train", "test") for problem in problems[split]]
    assert len(set(real)) == len(real)
    assert not set(real) & {numbers(problem.question) for problem in problems["pretrain"]}


def test_mixture_of_steps_families_and_distractions(problems):
    test = problems["test"]
    steps = collections.Counter(len(step_values(problem)) for problem in test)
    assert set(steps) == {2, 3, 4}
    assert abs(steps[2] / len(test) - 0.62) < 0.05
    assert abs(steps[3] / len(test) - 0.30) < 0.05
    money = [problem for problem in test if re.search("dollars|cost", problem.question)]
    compared = [problem for problem in test if re.search("than|Compared|times|half as", problem.question)]
    assert abs(len(money) / len(test) - 0.23) < 0.04
    assert abs(len(compared) / len(test) - 0.22) < 0.04
    unused = [set(numbers(p.question)) - set(numbers(parts(p)[2])) for p in test]
    assert abs(statistics.mean(map(bool, unused)) - 0.3) < 0.05
    assert {len(step_values(problem)) for problem in problems["pretrain"]} == {1}


def test_annotators_skip_steps_as_often_as_stated():
    # Four lines in full; a step done in the head hides all before it.
    chain = Step("+", Step("+", Step("+", Step("+", 1, 2), 3), 4), 5)
    rng = random.Random(0)
    draws = 4000
    lengths = collections.Counter(len(generated._annotated_lines("1 2 3 4 5", chain, rng)) for _ in range(draws))
    expected = {1: 0.25 * 0.5 + 0.2, 2: 0.25 * 0.5**2, 3: 0.25 * 0.5**3, 4: 0.55 + 0.25 * 0.5**3}
    assert {n: lengths[n] / draws for n in expected} == pytest.approx(expected, abs=0.025)


def test_a_slip_is_one_operation_or_one_number_of_the_question():
    solution = Step("-", Step("*", 3, 4), 5)
    right = {2: [("3", "*", "4"), ("a", "-", "5")], 1: [("12", "-", "5")]}
    rng = random.Random(0)
    slips = []
    for _ in range(4000):
        lines = generated._annotated_lines("3 of 4, not 5 or 77?", solution, rng)
        pairs = [(was, now) for old, new in zip(right[len(lines)], lines) for was, now in zip(old, new) if was != now]
        assert len(pairs) <= 1
        slips += pairs
    assert abs(len(slips) / 4000 - 0.25) < 0.02
    assert {now for _, now in slips} == {"+", "-", "*", "/", "3", "4", "5", "77"}


def test_questions_and_bodies_are_short_in_tokens(problems, tokenizer):
    for split, mean_question, mean_body in (("train", 28, 10), ("test", 28, 12), ("pretrain", 21, 5)):
        questions = [len(ids) for ids in tokenizer([p.question for p in problems[split][:2500]])["input_ids"]]
        bodies = [len(ids) for ids in tokenizer([parts(p)[2] for p in problems[split][:2500]])["input_ids"]]
        assert max(questions) <= 34
        assert statistics.mean(questions) < mean_question
        assert max(bodies) <= 24
        assert statistics.mean(bodies) <= mean_body


def test_tokens_never_straddle_the_parts(problems, tokenizer):
    for problem in [*problems["train"], *problems["pretrain"][:500]]:
        apart = [tokenizer.encode(text) for text in parts(problem)]
        assert list(itertools.chain(*apart)) == tokenizer.encode("".join(parts(problem)))


def test_no_token_is_unknown_and_decoding_gives_the_text_back(everything, tokenizer):
    texts = [problem.cot for problem in everything]
    ids = tokenizer(texts)["input_ids"]
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}
    assert tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == texts


@given(st.randoms(use_true_random=False), st.sampled_from(list(FAMILIES)))
def test_every_story_that_could_be_drawn_is_covered(tokenizer, rng, family):
    story = Story(rng)
    family(story)
    story.tell("distraction")
    question = " ".join([story.sentences.pop(), *story.sentences])
    ids = tokenizer.encode(question, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == question


operand = st.integers(0, 199).map(str) | st.sampled_from("abc")
line = st.tuples(operand, st.sampled_from("+-*/"), operand).map(" ".join)


@given(st.lists(line, min_size=1, max_size=4))
@settings(max_examples=200)
def test_any_program_of_the_format_is_read_back_in_four_tokens_a_line(tokenizer, lines):
    names = [*"abc"[: len(lines) - 1], "result"]
    body = "".join(f"    {name} = {text}\n" for name, text in zip(names, lines)) + "    return result"
    ids = tokenizer.encode(body, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    assert len(ids) == 4 * len(lines) + 1
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == body


def test_special_tokens_are_distinct_and_skipped(tokenizer):
    special = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert tokenizer.convert_ids_to_tokens(special) == ["<pad>", "<eos>", "<unk>"]
    assert (
        tokenizer.decode([*tokenizer.encode("Tom has 12 eggs."), *special], skip_special_tokens=True)
        == "Tom has 12 eggs."
    )
    assert tokenizer.unk_token_id in tokenizer.encode("Tom has 200 eggs.")


def test_a_saved_tokenizer_is_loaded_unchanged(everything, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    texts = [problem.cot for problem in everything[:500]]
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert [loaded.decode(ids, skip_special_tokens=True) for ids in loaded(texts)["input_ids"]] == texts


def test_problems_and_vocabulary_are_the_published_ones(everything, tokenizer):
    """If wording or drawing was changed on purpose, put the new digests here and say in the changelog that all results
    on the embedded problems are void."""
    text = "\n".join(f"{problem.id}\n{problem.question}\n{problem.answer}\n{problem.cot}" for problem in everything)
    vocabulary = "\n".join(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get))
    digests = [hashlib.sha256(published.encode()).hexdigest() for published in (text, vocabulary)]
    assert digests == [
        "a704c497dfa7a6adb73dcac6b8360f5296bb6280c2f314d58bb0d32a9b303122",
        "1dc3dcdbd6df20bc3628f4775ea429c9acf488547d6c20be8e2b9e7332a58b55",
    ]


def test_every_wording_is_used(everything):
    questions = "\n".join(problem.question for problem in everything)
    for sentence in SENTENCES.values():
        for wording in sentence.wordings:
            pattern = re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(wording))
            assert re.search(pattern, questions), wording
