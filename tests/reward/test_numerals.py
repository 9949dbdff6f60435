# ruff: noqa: RUF001
"""Reading a number: the oracles are what formatting wrote, and a table of what a person reads."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.reward.answers import extract_answer, parse_gold
from reft_jax.reward.numerals import read_number
from tests.work import least_seconds

READ = {
    "units": {"18kg": 18, "60 km/h": 60, "5 m/s^2": 5, "12 cm³": 12, r"12\,\text{cm}^{2}": 12, "18/hr": 18, "5-day": 5,
              "USD3": 3, "US$5": 5, "Rs.5": 5, "18€": 18, "5 °C": 5, r"90^\circ": 90, "18岁": 18, "5th": 5},
    "scales": {"$10k": 10**4, "1.2M": 1.2e6, "$3m": 3e6, "$3 bn": 3e9, "5 hundred": 500, "2 dozen eggs": 24,
               "3 crore": 3e7, "1.2-million": 1.2e6},
    "scripts": {"１２３": 123, "١٢٣": 123, "१८": 18, "𝟏𝟖": 18, "١٬٢٣٤٫٥": 1234.5, "18（9+9）": 18, "18。9+9": 18,
                "1\u202f234": 1234, "18\u200b": 18},
    "fractions": {"½%": 0.5, "3½": 3.5, "-½": -0.5, "2 ¾ cups": 2.75, r"$-\frac12$": -0.5, r"3\frac{1}{2}": 3.5,
                  r"\dfrac{9}{7}": 9 / 7, r"\frac{-1}{2}": -0.5, r"\text{about }\tfrac{3}{4}": 0.75},
    "powers": {"10³": 1000, "10^6": 10**6, "5²": 25, r"10^{-3}": 1e-3, "2**10": 1024, r"1.5 \cdot 10^{3}": 1500,
               "3 × 10⁸ m/s": 3e8, "√16": 4, r"\sqrt{16}": 4, r"-\sqrt{2}": -math.sqrt(2)},
    "LaTeX": {r"8{,}000": 8000, r"8\,000": 8000, r"8\ 000": 8000, r"10,\!000": 10**4, r"\$18": 18, r"18\%": 18,
              "$18$": 18, r"\(18\)": 18, r"\mathbf{18}": 18, r"\left(18\right)": 18, "1010_2": 1010, r"1010_{2}": 1010,
              "{18}": 18},
    "sentences": {"42 and the 2 reasonings above confirm it": 42, "18, because 9+9=18": 18, "18 - that is it": 18,
                  "5**": 5, "Therefore, the answer is <203>.": 203, "x = 5": 5, "is -5": -5, "*5*": 5},
}  # fmt: skip
NOT_READ = {
    "variables": ["2x", "2 x", "2xy", "2π", "2pi", r"2\pi", "18j", "1e", "e5", "x5", "5 n", r"2\theta", "n-5", "n - 5"],
    "operators": ["--7", "+-5", "7-", "5*", "5 +", "±2021", r"\pm 5", "> 5", "≤5", "5^x", "18(2)", "5 / x", "∞5", "5‰"],
    "functions": ["sqrt(16)", "sin(30)", r"3\sqrt{2}", r"\sqrt[3]{8}", r"\log 5", r"\frac{\pi}{2}", r"\frac{2}{-3}"],
    "separators": ["1,2,3", "12,5", "1.234,50", "1_000", "1'000", "12 34", "1,23", "1.2.3", "5:30", "1/2/3", "19_2"],
    "words": ["2 and a half", "2 thirds", "18万", "not 5", "isn't 5", "5 apples and 6 pears", "x = 5, y = 6", "five"],
    "sizes": ["1e999", "10^1000", "9^9^9", "3/0", "0^{-1}", "9" * 400, "7 " + "-" * 3000],
    "marks": ["\\", "5\u0305"],
}


@pytest.mark.parametrize(("text", "number"), [pair for pairs in READ.values() for pair in pairs.items()])
def test_what_is_certain_is_read(text, number):
    assert read_number(text) == (None if number is None else pytest.approx(number, rel=1e-14))


@pytest.mark.parametrize("text", [text for texts in NOT_READ.values() for text in texts])
def test_what_is_not_understood_is_no_number(text):
    assert read_number(text) is None


STYLES = [
    *("{:,}", "${:,}", "{:,} apples", "**{:,}**", r"\({:,}\)", "x = {:,}.", "{:,}%", "<{:,}>", "the answer is {:,}"),
    "\u200b{:,}",
]
RESPELLED = {
    "as it is": lambda text: text,
    "LaTeX commas": lambda text: text.replace(",", "{,}"),
    "thin spaces": lambda text: text.replace(",", r"\,"),
    "full width": lambda text: text.translate({ord(d): ord(d) + 0xFEE0 for d in "0123456789,.-"}),
    "Arabic-Indic": lambda text: text.translate({ord(d): 0x660 + int(d) for d in "0123456789"}),
}


@given(
    st.integers(-(10**15), 10**15), st.integers(0, 99), st.sampled_from(STYLES), st.sampled_from([*RESPELLED.values()])
)
def test_what_formatting_wrote_is_read(whole, cents, style, respell):
    assert read_number(style.replace("{:,}", respell(f"{whole:,}"))) == whole
    number = math.copysign(abs(whole) + cents / 100, whole)
    text = style.replace("{:,}", respell(f"{number:,.2f}"))
    assert read_number(text) == pytest.approx(number, rel=1e-15)


@given(st.integers(0, 99), st.integers(1, 999), st.integers(1, 999), st.sampled_from(["", "-", "$"]))
def test_mixed_numbers_are_read_alike_in_prose_and_in_latex(whole, above, below, sign):
    value = whole + Fraction(above, below)
    expected = pytest.approx(float(-value if sign == "-" else value), rel=1e-15)
    assert read_number(f"{sign}{whole} {above}/{below}") == expected
    assert read_number(rf"{sign}{whole}\frac{{{above}}}{{{below}}}") == expected


@given(st.integers(0, 10**6), st.sampled_from("xyznijepqruvwoabc*+^_\\|±π∞"))
def test_a_letter_or_an_operator_on_a_number_is_not_left_out(number, mark):
    assert read_number(f"{number}{mark}") is None
    assert read_number(f"{mark}{number}") == (number if mark == "+" else None)


@given(st.text("0123456789.,/-+$%^_ex\\{} \n½²", max_size=12))
def test_a_completion_and_a_gold_answer_are_read_alike(text):
    """But for what comes after the first line, which a completion may have and a gold answer may not."""
    line = text.strip().partition("\n")[0]
    try:
        gold = parse_gold(line, "number")
    except ValueError:
        gold = None
    assert gold == extract_answer(f"Answer: {text}", "number", "Answer:", "lenient")


PIECES = ["1", "1 ", "1,", "1,111", "1 111", "-", "- ", "$", "{", "\\frac", "\\frac{1}", "\\text{", "x", " and the",
          "*", "_1", "^1", "1/", "½", "√", "<1", "<a>", "(", "=", "= 1", "million ", "1e", "\\boxed{", "```\n",
          "$$"]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_hostile_texts_are_read_soon(piece):
    def read():
        for kind in ("number", "choice", "latex", "text"):
            extract_answer((piece * 2000)[:1990], kind, "", "lenient")
            extract_answer(piece * 10**5, kind, "", "lenient")

    assert least_seconds(read) < 2.0


@pytest.mark.parametrize("kind", ["number", "choice", "latex", "text"])
def test_an_answer_with_a_nul_or_without_an_end_is_none(kind):
    for text in ("b\0", "\0", "b" * 3000, "5 " * 3000):
        assert extract_answer(text, kind, "", "lenient") is None
