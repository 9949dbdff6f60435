# ruff: noqa: RUF001
"""Reading and comparing answers, under both sets of rules."""

import math
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.reward.answers import extract_answer, is_correct, last_box, normalise_result, parse_gold

TRIGGER = "\nTherefore, the answer is: "


def read(text, rules="lenient", kind="number"):
    return extract_answer("3 + 4 is 7" + TRIGGER + text, kind, TRIGGER, rules)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("203.0", 203.0),
        (" 203 ", 203.0),
        ("<203>", 203.0),
        ("18.", 18.0),
        ("1,234", 1234.0),
        ("$1,234,567.50.", 1234567.5),
        ("-$5", -5.0),
        ("$-5", -5.0),
        ("\u22125", -5.0),
        ("\uff0d5 degrees", -5.0),
        ("20%", 20.0),
        ("20 percent", 20.0),
        ("18 apples", 18.0),
        ("60 km/h", 60.0),
        ("12 m^2", 12.0),
        ("12 cm3", 12.0),
        ("Tom has 5 apples.", 5.0),
        ("**5**", 5.0),
        ("x = 5", 5.0),
        ("2 + 3 = 5 apples", 5.0),
        ("5. He gave 2 away, 3 + 4 = 7", 5.0),
        ("5 (or 6)", None),
        ("5\nQuestion:\n7", 5.0),
        ("3/4", 0.75),
        ("-3/4 cup", -0.75),
        ("3 1/2", 3.5),
        ("1.5e3", 1500.0),
        ("1e-3", 0.001),
        ("1.5 x 10^3", 1500.0),
        ("1.5 \u00d7 10^{-3} m", 0.0015),
        ("1.2 million dollars", 1.2e6),
        (".5", 0.5),
        ("", None),
        ("five", None),
        ("5 or 6", None),
        ("5 + 6", None),
        ("5-6", None),
        ("5:30", None),
        ("1,23", None),
        ("1.2.3", None),
        ("12,34,567", None),
        ("3/0", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("9" * 400, None),
        ("True", None),
        ("[1, 2]", None),
    ],
)
def test_sane_reads_the_number_a_person_reads(text, number):
    assert read(text) == (None if number is None else pytest.approx(number, rel=1e-12))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *((text, "b") for text in ("b", "B.", "(b)", "b ) 27.675", "'b'", "option B", "<b>", "b: 38", "<b>B</b>")),
        *(
            (text, "b")
            for text in (r"$\mathbf{B}$", "B, not C", "B. C is wrong", "B. Vitamin C.", "B because C) is wrong")
        ),
        *((text, None) for text in ("", "f", "27.675", "a dog", "b and c", "abc", "none", "e.g. 5", "a.k.a.")),
        # Of options up to J none but a to e is read, and none of these beside another.
        *((text, None) for letter in "fghijk" for text in (letter, f"({letter.upper()})", f"option {letter}")),
        *(
            (text, None)
            for text in ("D, F", "D; F", "D, or F", "A) 5 F) 6", "D or G", "D, I mean F", "D, but actually F")
        ),
        *((text, "d") for text in ("D, not F", "D (not F)", "D, because F is wrong", "D. I am sure")),
        *((text, None) for text in ("C++", "C#", "A*", "B+", "A-", "~B", "¬B", "not F")),
        *((text, "a") for text in ("A is for apple", "A, for i = 3")),
        # Several options, of which the first is no more meant than the others.
        *((text, None) for text in ("b) 4, c) 5", "A) 5 B) 6", "A; B", "A. B. C.", "A: 5, B: 6", "(a)(b)")),
        ("b) 38 or c) 40", None),
        *(
            (f"B{denied}", None)
            for denied in (" is wrong", " is not correct", ") is wrong", ": wrong", ", which is wrong")
        ),
        *((f"B {denied}", None) for denied in ("is not the answer", "is impossible", "is one of the wrong options")),
        *(
            (f"B{other}", None)
            for other in (" is false, C is true", ". C", "... C", " is C", " as well as C", ", hmm, C")
        ),
        *((f"A{doubt}", None) for doubt in (", no, B", ", wait: B", ", or maybe B", " is close but C is right")),
        *(
            (f"B{kept}", "b")
            for kept in (" is right", ", no doubt", " is the answer", " because A is wrong", ", not 5")
        ),
    ],
)
def test_sane_reads_the_letter_a_person_reads(text, letter):
    assert read(text, kind="choice") == letter


@pytest.mark.parametrize(
    ("text", "same"),
    [
        *[
            ("(3, 4)", "(3,4)"),
            ("1 ,2", "1,2"),
            ("3 : 2", "3:2"),
            ("5 %", "5%"),
            ("x = 5", "x=5"),
            ("[1, 2 ]", "[1,2]"),
        ],
        *[(r"\{1,2\}", "{1, 2}"), (r"$\{a\}$", "{a}"), (r"\{ \}", "{}"), ("R&amp;D", "R&D"), ("~~a~~b", "b")],
        *[("\u201cParis\u201d", "Paris"), ("O\u2019Neil", "O'Neil"), ("\u5317\u4eac\u3002", "\u5317\u4eac")],
        *[("cafe\u0301", "caf\u00e9"), ("<b>Tom</b>", "Tom"), (r"$\text{Tom}$.", "tom"), ("\ufb01n!", "fin")],
    ],
)
def test_texts_are_the_same_but_for_blanks_and_typesetting(text, same):
    assert read(text, kind="text") == read(same, kind="text") == parse_gold(same, "text")


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("New York", "NewYork"),
        ("-5", "5"),
        (".5", "5"),
        (r"x \le 5", r"x \ge 5"),
        ("$5", "5"),
        (r"\{5\}", "5"),
        ("!x", "x"),
        ("C++", "C"),
    ],
)
def test_other_texts_differ(text, other):
    assert read(text, kind="text") != read(other, kind="text")


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"So $\boxed{5}$, then \boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"$\boxed{5}$ or \boxed{\frac{1}{2}}$.", ""),
        ("\\boxed{a\n b}", "a b"),
        *((text, None) for text in ("5", r"\boxed{5", r"\boxed{5} and \boxed{{6}", "")),
    ],
)
def test_the_last_box_of_a_solution(text, inside):
    assert last_box(text) == inside


BOX = "\\boxed{"


@pytest.mark.parametrize(
    ("trigger", "text", "kind", "value"),
    [
        (BOX, r"so \boxed{18}$ dollars, which is 9 a day.", "number", 18),
        (BOX, r"\boxed{\frac{9}{\text{3}}} or 7", "number", 3),
        (BOX, r"\boxed{18", "number", 18),  # taught without its brace
        (BOX, "\\boxed{18\n7}", "number", None),
        (BOX, r"\boxed{\text{(B)}}. It is the only one.", "choice", "b"),
        (BOX, r"\boxed{\{1, 2\}}$ and so on", "latex", r"\{1, 2\}"),
        ("####", "2+40=42\n#### 42 and the 2 reasonings above confirm it\n7", "number", 42),
        ("####", "####9", "number", 9),
        (TRIGGER, TRIGGER + "\n$$\n42\n$$\n7 a day", "number", 42),
        (TRIGGER, TRIGGER + "\n\\[\nx = \n42\n\\]\n7", "number", 42),
        (TRIGGER, TRIGGER + "```text\n18\n```\n7", "number", 18),
        (TRIGGER, TRIGGER + r"so $\boxed{7}$, no, $\boxed{18}$ it is", "number", 18),
        *((TRIGGER, TRIGGER + text, "number", None) for text in (r"2\boxed{18}", r"not $\boxed{18}$", r"\boxed{1}8")),
        *((TRIGGER, TRIGGER + text, "number", None) for text in (r"\boxed{18}^2", r"3 * \boxed{6}", r"\boxed{6} / 2")),
        (TRIGGER, TRIGGER + r"$\boxed{18}$ and $\boxed{20}$", "number", None),
        (TRIGGER, TRIGGER + r"not \boxed{B}", "choice", None),
        (TRIGGER, TRIGGER + r"-\boxed{18}", "number", -18),
        *(
            (TRIGGER, TRIGGER + text, "number", 18)
            for text in (
                r"**\boxed{18}**",
                r"x = \boxed{18}$.",
                r"(2) \boxed{18}",
                r"- \boxed{18}",
                r"Step 2: \boxed{18}",
            )
        ),
        (TRIGGER, TRIGGER + r"first \boxed{3}, then \boxed{5}", "number", 5),
        (TRIGGER, TRIGGER + r"$\frac{1}{2}$.", "latex", r"\frac{1}{2}"),
        (TRIGGER, TRIGGER + r"\frac{1}{2", "latex", None),
        (TRIGGER, TRIGGER + "$90°$", "latex", r"90^\circ"),
        (TRIGGER, TRIGGER + r"$x^{2}+1$", "latex", "x^{2}+1"),
        (TRIGGER, TRIGGER + '  "New\u00a0 York." \nfor', "text", "new york"),
        (TRIGGER, TRIGGER + r"\boxed{\textbf{Ｎｅｗ York}}", "text", "new york"),
        (TRIGGER, TRIGGER + " . ", "text", None),
        (TRIGGER, TRIGGER + "1 B\n2  C \n\nCheck: \n3", "scored", "1 B\n2  C"),
        (TRIGGER, TRIGGER + "\n```text\n1 B\n2 C\n```\nDone.", "scored", "1 B\n2 C"),
        (TRIGGER, TRIGGER + "\\boxed{1 B\n{2} C}.", "scored", "1 B\n{2} C"),
        ("\\boxed{", "is \\boxed{1 B\n{2} C}.", "scored", "1 B\n{2} C"),
        (TRIGGER, TRIGGER + " \n \n", "scored", None),
        *((TRIGGER, TRIGGER + text, "choice", "b") for text in ("Ｂ", "<answer>B</answer>", "B, because C is wrong")),
        *((TRIGGER, TRIGGER + text, "choice", None) for text in ("(B) and (C)", "B, C", "B / C", "(B), (C) or (D)")),
    ],
)
def test_an_answer_ends_where_it_is_delimited(trigger, text, kind, value):
    assert extract_answer(text, kind, trigger, "lenient") == value


@pytest.mark.parametrize(
    ("gold", "kind", "value"),
    [
        *((text, "number", number) for text, number in (("$18", 18), ("18%", 18), ("3/4", 0.75), ("\u22125", -5))),
        *((text, "number", None) for text in ("1,2,3", "12,5", "about 5", "5\n6", "1_000")),
        *((text, "choice", "b") for text in ("(B)", "B.", "'b'")),
        ("$x+1$", "latex", "x+1"),
        ("{1", "latex", None),
        ("New  York", "text", "new york"),
        ("a\nb", "text", None),
    ],
)
def test_gold_is_read_as_a_completion_is_and_stands_on_one_line(gold, kind, value):
    if value is None:
        with pytest.raises(ValueError, match="is not"):
            parse_gold(gold, kind)
    else:
        assert parse_gold(gold, kind) == value == extract_answer("####" + gold, kind, "####", "lenient")


PARTS = [*("2{}", "2.{}", "0.{}", "x{}", "2-{}", "x - {}", "5 / {}", "3 * {}", "10^{{{}}}"),
         *(r"\sqrt{{{}}}", r"\frac{{{}}}{{2}}", r"\frac{{1}}{{{}}}", r"\pi{}", r"3 \cdot {}", r"\log {}"),
         *("{}^2", "{}9", "{}/2", "{} + 1", "{} * 2", "{}x", "{}_2", r"{}\pi", r"{} \cdot 2", r"{}\sqrt2"),
         *("not {}", r"\text{{not }}{}", "isn't {}", "< {}", "x > {}", r"\neq {}", r"x \not= {}", r"\le {}", r"\pm {}"),
         *("≥ ${}$", "{} is wrong", "${}$ is not the answer", "{} isn't it"),
         *("{}, but this is wrong", "{} (wrong)", "{}. No, that is not it.", "{}, which cannot be right"),
         *("{}. Wait, no", "{}. Oops.", "no {}"),
         *("cannot be {}", "not exactly {}", "more than {}", "half of {}", "twice {}", "{} squared"),
         *("{} 1/2", "{} and a half", r"\boxed{{1}} and {}", r"$\boxed{{1}}$, ${}$", r"\boxed{{1}}{}")]  # fmt: skip
WHOLES = ["{}", "x = {}", "**{}**", "*{}*", "is ${}$.", "{}!", "- {}", "Final answer - {}", "Step 2: {}", "{} cm",
          "{}cm", "{}m", r"\textbf{{Answer: {}}}", r"\textcolor{{red}}{{{}}}", r"{}^\circ", r"{}\%", "{}, not 20",
          r"\therefore {}", r"first \boxed{{1}}, then {}", r"S_{{10}} = {}", "2 + 3 = {}", "{} - the total",
          r"{}\text{{ cm}}^2"]  # fmt: skip


@pytest.mark.parametrize("trigger", [TRIGGER, BOX])
@pytest.mark.parametrize(("text", "value"), [*((text, None) for text in PARTS), *((text, 18) for text in WHOLES)])
def test_a_box_is_the_answer_unless_it_is_a_part_or_denied(trigger, text, value):
    solution = f"So 3 + 4 is 7.\n{text.format(BOX + '18}')}"
    assert (parse_gold(found, "number") if (found := last_box(solution)) else None) == value
    completion = (TRIGGER if trigger == TRIGGER else "So 3 + 4 is 7.\n") + text.format(r"\boxed{18}")
    assert extract_answer(completion, "number", trigger, "lenient") == value
    assert extract_answer(completion.replace("18", "B"), "choice", trigger, "lenient") == (value and "b")


@pytest.mark.parametrize("trigger", [TRIGGER, BOX])
@pytest.mark.parametrize(
    ("between", "value"),
    [
        *(
            (text, None)
            for text in (" hours and ", " for Tom and ", " apples, ", "; ", " & ", r" \quad ", " to ", " (b) ")
        ),
        *((text, None) for text in (" and $y=$", ", y = ", ", Ann: ", " cm and ")),
        *(
            (text, 18)
            for text in (", then ", ". Finally ", ", no, ", " apples, so the answer is ", ", total: ", " eggs. ")
        ),
    ],
)
def test_of_two_boxes_one_is_the_answer_unless_they_stand_side_by_side(trigger, between, value):
    text = rf"\boxed{{7}}{between}\boxed{{18}}"
    assert extract_answer((TRIGGER if trigger == TRIGGER else "") + text, "number", trigger, "lenient") == value
    assert last_box(text) == ("" if value is None else "18")


@pytest.mark.parametrize("text", [r"$-\fbox{5}$", r"$-\boxed {5}$"])
def test_a_trigger_that_is_a_box_takes_every_box(text):
    assert [extract_answer(text, "number", trigger, "lenient") for trigger in (BOX, r"\fbox{")] == [-5, -5]


OPTION_TEXTS = ["No", "no solution", "Not possible", "not enough information", "Wrong", "Incorrect", "Impossible", "5",
                "False", "Never", "None of the above", "Maybe", "Actually true", "It is a dog"]  # fmt: skip


@pytest.mark.parametrize("text", OPTION_TEXTS)
@pytest.mark.parametrize("form", ["B) {}", "(B) {}", "[B] {}", "B. {}", "the answer is (B) {}."])
def test_a_letter_in_the_form_of_an_option_is_read_whatever_its_text_says(form, text):
    assert read(form.format(text), kind="choice") == "b" == parse_gold(form.format(text), "choice")
    assert read(form.format(text) + ", wait, C", kind="choice") is None
    assert read(form.format(text) + " C) Yes", kind="choice") is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *((text, "b") for text in ("B - 38", "B – 38", "B — 38", "B - yes", "I think B", "I choose B.", "I'd say (B)")),
        *((text, "b") for text in ("definitely B", "I think it's B", "It must be B", "So, B", "I'll go with B.")),
        *((text, "b") for text in ("B: False", "B: not enough information", "B: No")),
        *((text, None) for text in ("A is 5, B is 6", "B - C", "B - 5 = 3", "B - wrong", "B-", "B -5", "B: wrong")),
        *(
            (text, None)
            for text in ("I don't think B", "I think not B", "definitely not B", "B) is wrong", "I think a dog")
        ),
    ],
)
def test_a_letter_is_read_behind_what_states_it_and_before_a_dash(text, letter):
    assert read(text, kind="choice") == letter


HTML = {"&minus;5": -5, "&ndash;5": -5, "&#8722;5": -5, "&#53;": 5, "&#x35;": 5, "&frac12;": 0.5, "5&nbsp;000": 5000,
        "&pound;5": 5, "5 &times; 10^2": 500, "&lt; 5": None, "&plusmn;5": None, "5 &amp; 6": None, "&amp;lt; 5": None,
        "<del>5</del>": None, "<s>5</s>": None, "~~5~~": None, "~~5~~ 6": 6}  # fmt: skip


@pytest.mark.parametrize(("text", "number"), HTML.items())
def test_html_is_read_as_its_characters(text, number):
    assert read(text) == number
    assert gold_or_none(text, "number") == number


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        *((rf"5 \{group}{{ {said}}}", None) for group in ("text", "mathrm", "mbox") for said in (
            "is incorrect", "(wrong)", "is not it", "or more", "squared", "apples and 6 pears", ", wait, 6")),
        *((text, None) for text in (r"(1,2) \text{ excluded}", r"x = 5 \text{ is not right}", r"\text{not } (1,2)")),
        *((rf"5 \text{{ {scale}}}", str(value)) for scale, value in (("dozen", 60), ("million", 5000000))),
        *((text, text) for text in (r"5 \text{ cm}^2", r"x = 5 \text{ or } x = 6", r"\text{no solution}",
                                    r"\pi \text{ cm}", r"\text{Not B}", r"\text{6 or 7}", r"36^\text{th}")),
    ],
)  # fmt: skip
def test_text_beside_mathematics_is_read_with_it(text, expression):
    assert read(text, kind="latex") == expression == gold_or_none(text, "latex")


@pytest.mark.parametrize("hedge", ["maybe {}", "possibly {}", "probably {}", "estimated {}", "{} (estimate)",
                                   "likely {}", "just about {}", "nearly {}", "{}, perhaps"])  # fmt: skip
def test_a_gold_answer_is_exact(hedge):
    assert gold_or_none("18", "number") == 18
    assert gold_or_none(hedge.format(18), "number") is None


@pytest.mark.parametrize("text", ["B is too large", "B, which is too small", "B) 5, it should be C",
                                  "B) 5 (correction: C)", "B. Hmm, the right one is C.", "B. Oops, C"])  # fmt: skip
def test_a_letter_that_is_denied_or_corrected_is_none(text):
    assert read(text, kind="choice") is None


def gold_or_none(text, kind):
    try:
        return parse_gold(text, kind)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *((text, None) for text in ("$$5$$ $$6$$", "$$5$$ and $$6$$", r"\[5\] \[6\]", "$$5$$ or 6", "$$5$$ is wrong")),
        *((text, 5) for text in ("$$5$$.", "$$5$$ is the answer", "$$\n5\n$$", "$$5$$ cm")),
    ],
)
def test_what_stands_beside_a_display_is_read_too(text, number):
    assert read(text) == number == gold_or_none(text, "number")


def test_sane_reads_after_the_last_trigger_only():
    assert extract_answer(f"{TRIGGER}1{TRIGGER}2", "number", TRIGGER, "lenient") == 2.0
    assert (
        extract_answer("Therefore, the answer is: 2", "number", TRIGGER, "lenient") == 2.0
    )  # the blanks around it are no matter
    assert extract_answer("2", "number", TRIGGER, "lenient") is None
    assert extract_answer(f"{TRIGGER}2{TRIGGER}", "number", TRIGGER, "lenient") is None


@given(st.integers(-(10**12), 10**12), st.integers(0, 99), st.sampled_from(["", " dollars", "%", "."]))
def test_sane_reads_what_formatting_wrote(whole, cents, unit):
    number = math.copysign(abs(whole) + cents / 100, whole)
    assert read(f"{number:,.2f}{unit}") == pytest.approx(number, rel=1e-15)


@given(st.integers(-9999, 9999), st.integers(1, 9999))
def test_sane_reads_fractions(numerator, denominator):
    assert read(f"{numerator}/{denominator}") == pytest.approx(float(Fraction(numerator, denominator)), rel=1e-15)


@given(st.text())
def test_sane_never_fails_and_never_returns_what_is_not_finite(text):
    number = read(text)
    assert number is None or math.isfinite(number)
    assert read(text, kind="choice") in (None, *"abcde")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("203.0", 203.0), (" 5\n", 5.0), ("1e3", 1000.0), ("1_000", 1000.0), ("inf", math.inf)],
        *[(text, None) for text in ("1,234", "<203>", "18 apples", "$5", "5.0.", "\u22125", "1/2", "")],
    ],
)
def test_reference_reads_what_float_reads(text, number):
    assert read(text, "reference") == number


def test_reference_reads_nan_and_without_a_trigger_the_whole_text():
    assert math.isnan(read("nan", "reference"))
    assert extract_answer(" 7 ", "number", TRIGGER, "reference") == 7.0
    assert extract_answer(f"1{TRIGGER}2{TRIGGER}3", "number", TRIGGER, "reference") == 3.0


def test_reference_takes_any_text_for_a_choice():
    assert read(" 'B' ", "reference", "choice") == "b"
    assert extract_answer('So it is "A" ', "choice", TRIGGER, "reference") == "so it is a"


@pytest.mark.parametrize(
    ("value", "kind", "reference", "lenient"),
    [
        (5.0, "number", 5.0, 5.0),
        (math.inf, "number", math.inf, None),
        (None, "number", None, None),
        ("$1,234", "number", None, 1234.0),
        (None, "choice", "none", None),
        ("'B'", "choice", "b", "b"),
        ("seven", "choice", "seven", None),
        (5.0, "choice", "5.0", None),
    ],
)
def test_results_of_programs(value, kind, reference, lenient):
    assert normalise_result(value, kind, "reference") == reference
    assert normalise_result(value, kind, "lenient") == lenient


@pytest.mark.parametrize(
    ("answer", "kind", "gold"),
    [("1,234", "number", 1234.0), (" 14.0 ", "number", 14.0), ("-3", "number", -3.0), ("'B' ", "choice", "b")],
)
def test_gold(answer, kind, gold):
    assert parse_gold(answer, kind) == gold


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        *((answer, "number") for answer in ("", "nan", "1e999", "b")),
        *(
            (answer, "number")
            for answer in ("≈5", "~5", "5 roughly", "5 (approx.)", "up to 5", "5-ish", "5 or so", "over 5")
        ),
        *(
            (answer, "number")
            for answer in ("ca. 5", "environ 5", "etwa 5", "大约 5", "около 5", "5.3...", "5 (±1)", "≃5")
        ),
        *((answer, "number") for answer in ("(3,400)", "one in 18", "x 18", r"\not= 18", "twenty (18)")),
        *((answer, "choice") for answer in ("", "f", "ab", "5")),
    ],
)
def test_unparsable_gold_is_an_error_that_shows_it(answer, kind):
    with pytest.raises(ValueError, match=re.escape(f"gold answer {answer!r} is not")):
        parse_gold(answer, kind)


@pytest.mark.parametrize(
    ("value", "gold", "right"),
    [
        *[(5.0, 5.0, True), (5.125, 5.0, True), (5.126, 5.0, False), (4.875, 5.0, True), (4.874, 5.0, False)],
        *[(math.nan, 5.0, False), (math.inf, 5.0, False), (None, 5.0, False), ("5", 5.0, False)],
        *[("b", "b", True), ("c", "b", False), (5.0, "b", False), (None, "b", False)],
    ],
)
def test_comparison(value, gold, right):
    assert is_correct(value, gold, tolerance=0.125) is right


@pytest.mark.parametrize(
    ("value", "gold", "settings", "right"),
    [
        (2**53 + 1, 2**53, {}, False),  # equal as floats
        (10**30, 10**30, {}, True),
        (2**53 + 1, 2**53, {"relative_tolerance": 1e-3}, False),  # a whole gold answer is exact
        (2**53 + 1, 2**53, {"relative_tolerance": 1e-3, "exact_integers": False}, True),
        (1000.4, 1000, {"relative_tolerance": 1e-3}, False),
        (1000.4, 1000, {"relative_tolerance": 1e-3, "exact_integers": False}, True),
        (1000.4, 1000.5, {"relative_tolerance": 1e-3}, True),
        (-1000.4, -1000.5, {"relative_tolerance": 1e-3}, True),
        (1000.4, 1000.5, {"relative_tolerance": 1e-5}, False),
        (0.005, 0.0, {"relative_tolerance": 1e-3}, True),  # the larger of the two tolerances holds
        (10**300, 0.5, {"relative_tolerance": 1e-3}, False),
        (math.nan, 5, {"relative_tolerance": 1.0, "exact_integers": False}, False),
    ],
)
def test_relative_tolerance_and_exact_integers(value, gold, settings, right):
    assert is_correct(value, gold, 1e-2, **settings) is right


def test_whole_numbers_keep_every_digit():
    big = 123456789012345678901
    assert read(f"{big:,} apples") == parse_gold(f"{big:,}", "number") == big
    assert normalise_result(f"${big}", "number", "lenient") == normalise_result(big, "number", "lenient") == big
    assert is_correct(read(f"{big + 1}"), parse_gold(str(big), "number"), 1e-2) is False
