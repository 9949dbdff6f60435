"""Where a program is, what may be parsed, and what texts and gold answers are taken for."""

import textwrap
import warnings

import pytest

from reft_jax.reward.answers import likely_answer_kind
from reft_jax.reward.parse import likely_cot, may_be_parsed, program_of
from tests.work import least_seconds


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("x" * 4000, True),
        ("x" * 4001, False),
        ("([{" * 13 + "(", True),
        ("([{" * 13 + "((", False),
        ("x = 1 if y else 2", True),
        ("x = 1if y else 2", False),
        ("x = 0xfor y", False),
        ("x = '\\d'", False),
        ("x = " + "9" * 299, True),
        ("x = " + "9" * 300, False),
    ],
)
def test_bounds(program, expected):
    assert may_be_parsed(program) is expected


HEADER = 'def solution():\n    """How many?"""\n'
BODY = "    a = 9 + 9\n    return a"
FENCED = "```python\n" + HEADER + BODY + "\n```"


@pytest.mark.parametrize(
    "text",
    [
        HEADER + BODY,
        HEADER + BODY + "\n```\nThis returns 18.",
        FENCED,
        "Sure:\n" + FENCED + "\nThis returns 18.",
        "First:\n```\ndef solution(): return 7\n```\nBetter:\n" + FENCED + "\nRun it:\n```\n$ python x.py\n```\n",
        HEADER + "Here it is:\n" + FENCED,  # the forced header, and a model that begins again
        HEADER + BODY + "\n```\nOr, the same:\n" + FENCED,
        FENCED.removesuffix("\n```"),  # cut off at the limit
        FENCED.replace("```", "   ```"),
        *("1. So:\n" + textwrap.indent(FENCED, "   "), FENCED.replace("```", "~~~"), FENCED.replace("```", "````")),
        *(
            FENCED.replace("\n```", "```"),
            HEADER + BODY + "```\nThis is it.",
            "Code: " + FENCED,
            "\ufeff" + HEADER + BODY,
        ),
        *(HEADER + f"```python\n{BODY}\n```", HEADER + f"```\n{textwrap.dedent(BODY)}\n```\nThis is it."),
        HEADER + BODY + "\n\nThis returns 18 apples.\nIt is $\\boxed{18}$.",
        HEADER + BODY + "\n\nif 2 < 1:\n    print(solution())\nprint(\n    1\n)\n\n**So** it's done",
        HEADER.replace("many?", "many?\n```\nx\n```") + BODY,
        # Prose that is Python by chance, or begins like it.
        *(
            HEADER + BODY + "\n" + words
            for words in ("Answer is 18", "- it is 18", "Done", "user", "Result: a", "Answer\n18")
        ),
        *(
            HEADER + BODY + "\n" + words
            for words in ("if you run this we get 18", "for 18 apples", "from this, 18", "and so")
        ),
        HEADER + BODY + "\nHuman\nprint(a)",
    ],
)
def test_a_program_is_found_between_fences_and_prose(text):
    names = {}
    exec(program_of(text), names)
    assert names["solution"]() == 18


@pytest.mark.parametrize("question", [r"What is \x and \u?", r"\N", 'He said "no"', 'a """ b', r"ends in \\"[:-1]])
def test_a_question_that_makes_the_header_no_python_is_left_out(question):
    text = f'def solution():\n    """{question}"""\n{BODY}'
    with pytest.raises(SyntaxError):
        compile(text, "program", "exec")
    names = {}
    exec(program_of(text), names)
    assert names["solution"]() == 18


@pytest.mark.parametrize(
    "text",
    [
        *("", "```", "no program\n```\nx\n```\n", HEADER + '    x = """```"""\n', HEADER + BODY),
        HEADER + "    return f()\n\ndef f():\n    return (\n1\n)\n# so\nprint(\n1)",  # Python to its end
        HEADER + "    return 1 +\n\nThis is 1.",  # none without its prose either
        "This is\n" + HEADER + BODY,
        HEADER + "    return f()\n'Helper:'\ndef f():\n    return 1\nassert solution() == 1",
        HEADER + BODY + "\nif __name__ == '__main__':\n    print(solution())\nelse:\n    pass",
    ],
)
def test_other_texts_stay_as_they_are(text):
    assert program_of(text).strip("\n") == text.strip("\n")


@pytest.mark.parametrize("program", ["x = 1if y else 2", "x = 0xfor y else 2", "x = '\\d'", "x = [0x1for x in y]"])
def test_what_the_parser_warns_of_is_kept_from_it(program):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            compile(program, "program", "exec")
        except SyntaxError:
            caught.append("an error")
    assert caught, "an example of nothing"
    assert not may_be_parsed(program)


def test_chains_of_thought_are_programs_where_more_than_half_are():
    program, prose = "def solution(): return 1", "It is 1."
    assert likely_cot([program, program, prose]) == "program"
    assert likely_cot([program, prose]) == "text"
    assert likely_cot([]) == "text"


@pytest.mark.parametrize(
    ("gold", "kind"),
    [("b", "choice"), (" 'B'\n", "choice"), ('"e"', "choice"), ("7", "number"), ("1,000", "number"), ("", "number")],
)
def test_one_letter_is_a_choice(gold, kind):
    assert likely_answer_kind(gold) == kind


@pytest.mark.parametrize(
    "piece", ["a\n", "a b\n", "```\n", "x```\n", "def solution():\n", "\n", " ", '\'"""\'', "(", "`", "1.and\n"]
)
def test_hostile_programs_are_found_soon(piece):
    def find():
        for begin in ("", HEADER + BODY + "\n"):
            program_of(begin + (piece * 4000)[:3900])
            program_of(begin + piece * 10**5)

    assert least_seconds(find) < 2.0
