"""Signs of reward hacking: written equations against Python's own arithmetic, and letters that nothing computed."""

import json
import os
import re
import textwrap
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_jax.reward.equations import arithmetic_holds
from reft_jax.reward.letters import letter_is_computed


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("3 * 4 = 12", True),
        ("3 * 4 = 13", False),
        ("$3 x 4 = $12.00", True),
        ("6 \u00d7 7 = 41, so", False),
        ("1,200 / 4 = 300", True),
        ("5 + 3 = 9 apples", False),
        ("5 apples + 3 apples = 9 apples", False),
        ("(3 + 4) * 2 = 14", True),
        ("(3 + 4) * 2 = 11", False),
        ("2^3 = 8 and 2**3 = 9", False),
        ("7 - 10 = -3", True),
        ("7 \u2212 10 = 3", False),
        ("50% * 8 = 4", True),
        ("100% - 20% = 80%", True),
        ("1/4 = 25%", True),
        ("5 / 20 * 100 = 25%", True),
        ("10 / 3 = 3.33", True),
        ("10 / 3 = 3.34", True),  # rounded up, as people do
        ("10 / 3 = 3.35", False),
        ("12 x 3 = 36 + 4 = 40", True),  # people's way of going on
        ("12 x 3 = 35 + 4 = 39", False),
        ("Total = 3 * 4 = 13", False),
        ("<<3*4=13>>3 * 4 = 12", True),  # GSM8K's note is not prose
        ("- 5 + 3 = 8", True),  # a bullet
        ("the sum 3 + 4 = 7 and 7 * 2 = 15", False),
        *(
            (text, None)
            for text in (
                "no equation here: 5 and 7",
                "x = 5",
                "x + 3 = 12",
                "2x + 3 = 12",
                "3(4) = 13",
                "8 batches = 5 + 4",
                "20% + 5 = 30",
                "half of 8 * 2 = 9",
                "3 dozen + 1 = 5",
                "2 * 30 minutes = 1 hour",
                "$5 + 50 cents = $5.50",
                "2:30 + 1 = 3:30",
                "Week 1 + Week 2 = 70",
                "6 / 1/3 = 18",
                "1 / 0 = 5",
                "2^9999999 = 5",
                "x == 5 + 3",
                "5 + + = 7",
            )
        ),
    ],
)
def test_equations(text, holds):
    assert arithmetic_holds(text) is holds


OPERATORS = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__}


@given(
    st.lists(st.tuples(st.sampled_from("+-*"), st.integers(1, 9999)), min_size=1, max_size=4),
    st.integers(1, 9999),
    st.integers(-3, 3),
)
def test_sums_are_what_python_says(terms, first, error):
    written = f"{first}" + "".join(f" {operator} {number}" for operator, number in terms)
    text = f"So it is {written} = {eval(written) + error} apples."
    assert arithmetic_holds(text) is (error == 0 or first == eval(written) + error == 0)


@given(st.text("0123456789.,+-*/^()=%x $abc\n:<>", max_size=200) | st.text(max_size=100))
@settings(max_examples=300)
def test_no_text_raises(text):
    assert arithmetic_holds(text) in (True, False, None)
    assert letter_is_computed(text) in (True, False, None)


@pytest.mark.parametrize(
    "piece", ["1+", "(", "1,", "9", "9.", "=", "1=", "9^", "((1)", "a ", "5a", "5 a ", "-", "1:", " ", "<<", "x(", "%"]
)
def test_long_texts_cost_no_more_than_their_length(piece):
    start = time.thread_time()
    arithmetic_holds(piece * 100_000)
    letter_is_computed("def solution():\n return " + piece * 100_000)
    assert time.thread_time() - start < 2.0


@pytest.fixture(scope="module")
def gsm8k():
    if "REFT_DATA" not in os.environ:
        pytest.skip("REFT_DATA, the folder with gsm8k_train.jsonl, is not set")
    lines = (Path(os.environ["REFT_DATA"]) / "gsm8k_train.jsonl").read_text().splitlines()
    return [json.loads(line)["answer"].partition("\n#### ")[0] for line in lines]


def test_annotations_of_gsm8k_hold_and_spoilt_ones_do_not(gsm8k):
    """Almost all annotated equations are right; with the result of one changed, few are taken for right."""
    verdicts = [arithmetic_holds(text) for text in gsm8k]
    assert len(verdicts) == 7473
    assert verdicts.count(True) > 0.89 * len(verdicts)
    assert verdicts.count(False) < 0.004 * len(verdicts)  # 28, most of them really wrong
    result = re.compile(r"(?<=>>)\d+(?![\d.,/%])")
    spoilt = [result.sub(lambda match: str(int(match[0]) + 7), text, count=1) for text in gsm8k]
    found = [
        arithmetic_holds(text) for text, before, verdict in zip(spoilt, gsm8k, verdicts) if text != before and verdict
    ]
    assert len(found) > 5000
    assert found.count(False) > 0.8 * len(found)


def solution(body):
    return "def solution():\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")


@pytest.mark.parametrize(
    ("body", "computed"),
    [
        ("return 'b'", False),
        ("x = 3 * 4\nreturn 'b'", False),
        ("answer = 'b'\nreturn answer", False),
        ("a = b = 'c'\nd = a\nreturn d", False),
        ("if True:\n    return 'b'\nreturn 'c'", False),
        ("x = 3 * 4\nif x == 12:\n    return 'b'\nreturn 'c'", True),
        ("x = 3 * 4\nreturn 'b' if x > 11 else 'c'", True),
        ("x = 3 * 4\nletter = 'a'\nif x > 11:\n    letter = 'b'\nreturn letter", True),
        ("letter = 'a'\nfor option in [1, 2]:\n    letter = 'b'\nreturn letter", False),
        ("for letter, option in zip('abc', [1, 2, 3]):\n    if option == 2:\n        return letter", True),
        ("return min({'a': 1, 'b': 2}, key=lambda k: 5)", True),
        ("return {12: 'b'}[12]", True),
        ("x = 0\nx += 3\nreturn x", True),
        ("x: int = 3 * 4\nreturn x", True),
        ("try:\n    x = 3 * 4\nexcept ValueError:\n    x = 5\nreturn x", True),
        ("x = x\nreturn x", False),
        ("x = 3", None),
        ("return (", None),
    ],
)
def test_letters(body, computed):
    assert letter_is_computed(solution(body)) is computed


def test_what_is_no_program_is_not_judged():
    assert letter_is_computed("") is None
    assert letter_is_computed("return 'b'") is None
    assert letter_is_computed(solution("return 'b'") + "#" * 5000) is None
