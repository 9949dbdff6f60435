"""The templates, byte for byte: strings written out by hand for the four data sets in both kinds."""

import dataclasses

import pytest

from reft_jax.config import TemplateConfig
from reft_jax.data.prompts import few_shot_prefix, generation_prompt, program_header, prompt_text, target_text
from reft_jax.problem import Problem

TEMPLATES = TemplateConfig()


@dataclasses.dataclass(frozen=True)
class Worked:
    """A problem in both kinds, and the strings that it becomes."""

    text: Problem
    program: Problem
    prompt: str
    generation: str
    text_target: str
    program_target: str


GSM8K = Worked(
    text=Problem(
        "gsm8k_3",
        "  The ducks of Zoë lay 16 eggs. She sells 7 for $2 each.\nHow much is it?\n",
        "14",
        cot="She makes 7 * 2 = $14.\n",
    ),
    program=Problem(
        "gsm8k_3",
        "  The ducks of Zoë lay 16 eggs. She sells 7 for $2 each.\nHow much is it?\n",
        "14",
        cot="def solution():\n    result = 7 * 2\n    return result\n",
    ),
    prompt=("Question:\nThe ducks of Zoë lay 16 eggs. She sells 7 for $2 each.\nHow much is it?\nAnswer reasoning:\n"),
    generation=(
        "Question:\nThe ducks of Zoë lay 16 eggs. She sells 7 for $2 each.\nHow much is it?\nAnswer reasoning:\n"
        'def solution():\n    """The ducks of Zoë lay 16 eggs. She sells 7 for $2 each.\nHow much is it?"""\n'
    ),
    text_target="She makes 7 * 2 = $14.\nTherefore, the answer is: 14",
    program_target="def solution():\n    result = 7 * 2\n    return result",
)
SVAMP = Worked(
    text=Problem(
        "svamp_1", "paul had 29 pens ; he bought 7 sets of 29 . how many now ?", "203.0", cot="Therefore, it is <203>."
    ),
    program=Problem(
        "svamp_1",
        "paul had 29 pens ; he bought 7 sets of 29 . how many now ?",
        "203.0",
        cot='def solution():\n    """paul"""\n    n = 29\n    result = n * 7\n    return result',
    ),
    prompt="Question:\npaul had 29 pens ; he bought 7 sets of 29 . how many now ?\nAnswer reasoning:\n",
    generation=(
        "Question:\npaul had 29 pens ; he bought 7 sets of 29 . how many now ?\nAnswer reasoning:\n"
        'def solution():\n    """paul had 29 pens ; he bought 7 sets of 29 . how many now ?"""\n'
    ),
    # The answer stands there twice, the second time as published: `203.0`.
    text_target="Therefore, it is <203>.\nTherefore, the answer is: 203.0",
    program_target='def solution():\n    """paul"""\n    n = 29\n    result = n * 7\n    return result',
)
MATHQA = Worked(
    text=Problem(
        "mathqa_5", "if f ( x ) = { x } , what is f ( 1 ) ?\na ) 0 , b ) 1 , c ) 2", " a ", "choice", cot="{ 1 } = 0."
    ),
    program=Problem(
        "mathqa_5",
        "if f ( x ) = { x } , what is f ( 1 ) ?\na ) 0 , b ) 1 , c ) 2",
        " a ",
        "choice",
        cot="def solution():\n    return 'a'",
    ),
    prompt=("Question:\nif f ( x ) = { x } , what is f ( 1 ) ?\na ) 0 , b ) 1 , c ) 2\nAnswer reasoning:\n"),
    generation=(
        "Question:\nif f ( x ) = { x } , what is f ( 1 ) ?\na ) 0 , b ) 1 , c ) 2\nAnswer reasoning:\n"
        'def solution():\n    """if f ( x ) = { x } , what is f ( 1 ) ?\na ) 0 , b ) 1 , c ) 2"""\n'
    ),
    text_target="{ 1 } = 0.\nTherefore, the answer is: a",
    program_target="def solution():\n    return 'a'",
)
MATHQA_NUMERIC = Worked(
    text=Problem("mathqa-numeric_2", "what is 31.1 % of {question} 100 ?", "31.1", cot="31.1 / 100 * 100"),
    program=Problem(
        "mathqa-numeric_2", "what is 31.1 % of {question} 100 ?", "31.1", cot="def solution():\n    return 31.1"
    ),
    prompt="Question:\nwhat is 31.1 % of {question} 100 ?\nAnswer reasoning:\n",
    generation=(
        "Question:\nwhat is 31.1 % of {question} 100 ?\nAnswer reasoning:\n"
        'def solution():\n    """what is 31.1 % of {question} 100 ?"""\n'
    ),
    text_target="31.1 / 100 * 100\nTherefore, the answer is: 31.1",
    program_target="def solution():\n    return 31.1",
)


@pytest.mark.parametrize("worked", [GSM8K, SVAMP, MATHQA, MATHQA_NUMERIC], ids=lambda worked: worked.text.id)
def test_worked_strings(worked: Worked) -> None:
    assert prompt_text(worked.text, TEMPLATES) == worked.prompt
    assert generation_prompt(worked.text, TEMPLATES, "text") == worked.prompt
    assert target_text(worked.text, TEMPLATES, "text") == worked.text_target
    assert prompt_text(worked.program, TEMPLATES) == worked.prompt
    assert generation_prompt(worked.program, TEMPLATES, "program") == worked.generation
    assert target_text(worked.program, TEMPLATES, "program") == worked.program_target


def test_templates_are_data() -> None:
    templates = TemplateConfig("<user>", "<assistant>", " => ", "# {question} / {question}\n")
    problem = Problem("p", "1 + 1", "2", cot="two")
    assert prompt_text(problem, templates) == "<user>1 + 1<assistant>"
    assert program_header(problem, templates) == "# 1 + 1 / 1 + 1\n"
    assert target_text(problem, templates, "text") == "two => 2"


@pytest.mark.parametrize("cot", ["program", "text"])
def test_target_needs_a_chain_of_thought(cot) -> None:
    with pytest.raises(ValueError, match="`lonely` has no chain of thought"):
        target_text(Problem("lonely", "1 + 1", "2"), TEMPLATES, cot)


def test_worked_examples_stand_before_a_prompt() -> None:
    """As they are trained on, each with the separator behind it; a prompt can follow."""
    prefix = few_shot_prefix([SVAMP.program, MATHQA.program], TEMPLATES, "program", "\n\n")
    parts = [worked.prompt + worked.program_target for worked in (SVAMP, MATHQA)]
    assert prefix == f"{parts[0]}\n\n{parts[1]}\n\n"
    assert few_shot_prefix([GSM8K.text], TEMPLATES, "text", "\n---\n") == GSM8K.prompt + GSM8K.text_target + "\n---\n"
    assert few_shot_prefix([], TEMPLATES, "text", "\n\n") == ""


def test_a_completion_could_not_end_at_a_separator_inside_an_example() -> None:
    example = Problem("torn", "1 + 1", "2", cot="one\n\nand one")
    with pytest.raises(ValueError, match=r"worked example `torn` holds the separator '\\n\\n'.*another separator"):
        few_shot_prefix([example], TEMPLATES, "text", "\n\n")
    with pytest.raises(ValueError, match="separator of worked examples is empty"):
        few_shot_prefix([example], TEMPLATES, "text", "")
