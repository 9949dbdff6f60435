"""Signs of reward hacking: equations against Python's own arithmetic, and against the calculator notes of GSM8K."""

import json
import random
import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_jax.reward.equations import arithmetic_holds
from reft_jax.reward.letters import letter_is_computed
from tests.work import least_seconds

HOLDS = """
3 * 4 = 12; $3 x 4 = $12; 1,200 / 4 = 300; 5 + 3 = 8 apples; 5 apples + 3 apples = 8 apples; (3 + 4) * 2 = 14
50% * 8 = 4; 20/50 = 40%; 20/50 * 100 = 40%; 100 - 20% = 80; 5 \u2212 3 = 2; 5 \u00d7 3 = 15; 5 · 3 = 15; 15 ÷ 3 = 5
1/2 * 8 = 4; 8 / 1/2 = 16; 2(3 + 4) = 14; 2^3 = 8; 2 ** 3 = 8; 3² + 4² = 25; -2^2 = -4; -3 + 4 = 1; 2 * -3 = -6
10 / 3 = 3.33; 10/3 = 3.3; 20 / 3 = 6.66; 20 / 3 = 7; 20 / 3 ≈ 6.7; 10000 / 3 ≈ 3300; 0.1 + 0.2 = 0.30000000000000004
12 x 3 = 36 + 4 = 40; 2 * (3 + 4) = 2 * 7 = 14; 1/3 = 0.33 and 0.33 * 300 = 100; 3 * 4 = <<3*4=12>>12
3 nuts/day * 2 days = 6 nuts; 3 * 4 = **12**; \\(3 \\times 4 = 12\\); - 3 + 4 = 7; He pays (3 + 4 = 7) dollars.
""".replace("\n", ";").split(";")  # fmt: skip
FAILS = """
3 * 4 = 13; $3 x 4 = $13; 1,200 / 4 = 301; 5 apples + 3 apples = 9 apples; 3 + 4 * 2 = 14; 10 + 5 * 2 = 30
12 x 3 = 36 + 4 = 41; 12 x 3 = 35 + 4 = 39; 20/50 * 100 = 41%; 15 ÷ 3 = 4; 10 / 3 = 3.34; 10 / 3 = 3.4; 20 / 3 = 8
0.1 * 3 = 0.2; 3 * 4 = <<3*4=13>>13; 3 * 4 = **13**; 6*2 = 12, 3*4 = 13; 6*2 = 12 and 3*4 = 13
He pays a total of 3 * 4 = 13 dollars.
$3/page * 4 pages = $13; 2 ** 3 = 9; 1/3 + 1/3 = 2/6; 1234567890123 * 2 = 2469135780247
""".replace("\n", ";").split(";")  # fmt: skip
UNCHECKED = """
x + 3 = 12; x = 5; 2x + 3 = 8; 3 x1 = 9; total - 3 + 4 = 9; 20/total * 2 = 5; 20% of 50 = 11; 20% of 3 + 4 = 1; 4 = 3
1 hour = 60 minutes; 2 * 30 minutes = 1 hour; 3 feet + 6 inches = 3.5 feet; 50 cents + 50 cents = $1; 8:30 + 2:00 = 1
twice 3 + 4 = 14; 1 and 1/4 cup = 1.25 cups; 2 1/2 = 2.6; 5! + 1 = 121; f(3 + 4) = 8; 5 / 0 = 3; 2^100000 = 7; 3 * 4
3,5 * 2 = 8; 3 * 4 >= 13; 3 * 4 = 13 - x; 3 * 4 = about 13; 4 c 2 * 3 = 18; 6 / 2 * 3 = 1
$5 + 50 cents = $5.50; $50 - 10% = $45
""".replace("\n", ";").split(";")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "verdict"),
    [(text.strip(), verdict) for texts, verdict in ((HOLDS, True), (FAILS, False), (UNCHECKED, None)) for text in texts
     if text.strip()],
)  # fmt: skip
def test_equations_as_people_write_them(text, verdict):
    assert arithmetic_holds(text) is verdict
    assert arithmetic_holds(f"Tom has apples.\nSo {text}\nThen it is done.") is verdict


def test_an_equation_goes_on_over_the_end_of_a_line_but_no_sum_does():
    assert arithmetic_holds("3 * 4\n= 13") is False
    assert arithmetic_holds("3 *\n4 = 4") is None
    assert arithmetic_holds("1) 3 + 4 = 8") is arithmetic_holds("- 3 + 4 = 8") is False


NUMBERS = st.integers(1, 9999).map(str) | st.decimals("0.01", 999, places=2).map(str)
SUMS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(lambda x: f"({' '.join(x)})"),
    max_leaves=6,
).filter(lambda text: "(" in text)


def exactly(text):
    """What Python computes, in fractions."""
    return eval(re.sub(r"[0-9]+(?:\.[0-9]+)?", r"Fraction('\g<0>')", text), {"Fraction": Fraction})


@given(text=SUMS, places=st.integers(0, 4), error=st.sampled_from([0, 2, -2, 7]))
def test_results_are_judged_as_python_computes_them(text, places, error):
    try:
        value = exactly(text)
    except ZeroDivisionError:
        return
    written = round(value * 10**places) + error
    equation = f"He gets {text} = {Decimal(written).scaleb(-places):f} apples."
    if not error:
        assert arithmetic_holds(equation) is True
    elif 10 * abs(error) + 10 < abs(written) < 10**13:  # no cents for dollars, and no float's last digits
        assert arithmetic_holds(equation) is False


PIECES = st.sampled_from(["1", "2.5", "%", "(", ")", "=", "≈", "+", "-", "*", "/", "^", " ", "x", "a ", "apples ", "\n",
                          ",", ":", ".", "**", "<<", "\\times", "$", "/day", "99999999999999999999"])  # fmt: skip


@given(st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=60))
@settings(max_examples=500)
def test_no_text_raises(text):
    assert arithmetic_holds(text) in (True, False, None)
    assert letter_is_computed(text) in (True, False, None)
    assert letter_is_computed(f"def solution():\n    return {text}") in (True, False, None)


REPEATED = ["1", "(", "=", "1=", "x", "a", "-", "- ", "1+", "*", "1/", "1^", "\n", "\n=", " ", "a/", "1%", "a-", "1,",
            ".", "<<", "\\times ", "1-a", "x 1", "rs", "(1)+", "1*(", "1)", "99999999999999999999*",
            "10/3=3.33 3.33/7%*3.33-1/3/4=8.25 ", "97^100/89^90*", "1.5/2%*7/3.25=", "2^1000*2^23/3=7 "]  # fmt: skip


@pytest.mark.parametrize("piece", REPEATED)
def test_hostile_texts_are_done_soon(piece):
    def read():
        arithmetic_holds(piece * 10**5)
        letter_is_computed("def solution():\n    return " + piece * 10**5)
        letter_is_computed("def solution():\n    return " + (piece * 4000)[:3900])

    assert least_seconds(read) < 2.0


@pytest.fixture(scope="module")
def gsm8k(real_data) -> list[str]:
    lines = (real_data / "gsm8k_train.jsonl").read_text().splitlines()
    return [json.loads(line)["answer"] for line in lines]


def test_chains_of_thought_by_people_hold(real_data, gsm8k):
    """27 of GSM8K's 7,473 are called wrong, and are: `So it cost 192 * 100 = $1920`."""
    verdicts = [arithmetic_holds(re.sub("<<.*?>>", "", text)) for text in gsm8k]
    assert len(verdicts) == 7473
    assert verdicts.count(True) >= 7200
    assert verdicts.count(False) <= 30
    rows = json.loads((real_data / "svamp_nl.json").read_text())
    verdicts = [arithmetic_holds(row["answer_cot"]) for row in rows]
    assert verdicts.count(True) >= 2900
    assert verdicts.count(False) <= 3


def test_results_that_differ_from_the_calculator_are_found(gsm8k):
    draw, found = random.Random(0), []
    for text in gsm8k:
        notes = list(re.finditer(r"<<[^<>]*=([0-9]+)>>\1(?![0-9.,])", text))
        if notes:
            end = draw.choice(notes).end()
            start = text.rindex(">>", 0, end) + 2
            wrong = text[:start] + str(int(text[start:end]) + draw.choice([-1, 1, 2, 7, 10])) + text[end:]
            found.append(arithmetic_holds(re.sub("<<.*?>>", "", wrong)))
    assert len(found) > 6500
    assert found.count(False) > 0.85 * len(found)


def solution(*lines):
    return "\n".join(["def solution():", *(f"    {line}" for line in lines)])


@pytest.mark.parametrize(
    ("program", "computed"),
    [
        (solution("x = 3 * 4", "return x"), True),
        (solution("x = 3 * 4", "y = x", "if y > 10:", "    return 'a'", "return 'b'"), True),
        (solution("x = 3 * 4", "if x:", "    a = 'b'", "else:", "    a = 'c'", "return a"), True),
        (solution("x = 3 * 4", "for i in [x]:", "    a = 'b'", "return a"), True),
        (solution("x = 2 * 3", "match x:", "    case 6:", "        return 'a'"), True),
        (solution("try:", "    x = 3 * 4", "finally:", "    y = x", "return y"), True),
        (solution("d = {}", "d['a'] = 3 * 4", "return d['a']"), True),
        (solution("l = []", "l.append(3 * 4)", "return l[0]"), True),
        (solution("x = 1", "x += 2", "return x"), True),
        (solution("if (x := 3 * 4):", "    pass", "return x"), True),
        (solution("x = 5", "return 'a' if x == 5 else 'b'"), True),
        (solution("o = {'a': 38}", "return min(o, key=o.get)"), True),
        (solution("return [k for k in 'ab'][0]"), True),
        ("n = 3 * 4\n" + solution("return n"), True),
        (solution("return 'a'") + "\n" + solution("return 3 * 4"), True),
        (solution("x = 3 * 4", "return 'b'"), False),
        (solution("x = 3 * 4", "if x > 3:", "    y = x", "a = 'b'", "return a"), False),
        (solution("a = b", "b = a", "return a"), False),
        (solution("o = {'a': 38, 'b': 27}", "return ['a', 'b'][1]"), False),
        (solution("l = []", "l.append('b')", "return l[0]"), False),
        (solution("if True:", "    return 'b'"), False),
        (solution("if 1 == 1:", "    return 'b' + ''"), False),
        (solution("return str('b').lower()"), False),
        (solution("def inner():", "    return 3 * 4", "return 'b'"), False),
        (solution("x = 3 * 4"), None),
        (solution("return"), None),
        ("class A:\n    def solution(self):\n        return 3 * 4", None),
        ("x = 3", None),
        ("def solution(:", None),
        ("", None),
        (solution("return " + "(" * 41 + "3 * 4" + ")" * 41), None),
        (solution("x = 3 * 4", "return x", *["# so much"] * 1000), None),
        (solution("if 1:1", *["elif 1:1"] * 280, "return 'b'"), False),
    ],
)
def test_letters_that_nothing_computes_are_seen(program, computed):
    assert letter_is_computed(program) is computed


def test_programs_of_svamp_compute(real_data):
    rows = json.loads((real_data / "svamp_python_sdp.json").read_text())
    assert {letter_is_computed(row["answer_cot"]) for row in rows} == {True}
