"""Problems as text: what a model reads, and what it should write.

Second station of the data flow: `Problem` -> strings, before any token. Pure string functions over the templates of
the config, whose defaults are those of the reference implementation (github.com/lqtrung1998/mwp_ReFT) byte for byte.
As there, question, chain of thought and answer are stripped before they are put in. `{question}` is replaced as
text, never formatted, since questions may hold braces.
"""

from collections.abc import Sequence

from reft_jax.config import CotKind, TemplateConfig
from reft_jax.problem import Problem


def prompt_text(problem: Problem, templates: TemplateConfig) -> str:
    """instruction + question + cot_trigger: the prompt of supervised training."""
    return templates.instruction + problem.question.strip() + templates.cot_trigger


def program_header(problem: Problem, templates: TemplateConfig) -> str:
    """The first lines that a generated program is made to begin with: `solution()` and its docstring, the question.

    The question is not escaped: one that ends in `"` makes a header that is no Python, as in the reference.
    """
    return templates.program_header.replace("{question}", problem.question.strip())


def generation_prompt(problem: Problem, templates: TemplateConfig, cot: CotKind) -> str:
    """The prompt of sampling: `prompt_text`, and for programs the `program_header` that they continue."""
    return prompt_text(problem, templates) + (program_header(problem, templates) if cot == "program" else "")


def target_text(problem: Problem, templates: TemplateConfig, cot: CotKind) -> str:
    """What supervised training teaches, as it is judged: the program, or prose, answer_trigger, the gold answer as
    published, and answer_suffix. Without a gold answer it is the chain of thought alone.

    Raises:
        ValueError: the problem has no chain of thought.
    """
    if problem.cot is None:
        raise ValueError(
            f"problem `{problem.id}` has no chain of thought to train on; give a source that has one for every row, "
            "or name the field that holds it (`cot_field`)"
        )
    if cot == "program" or not problem.has_gold:
        return problem.cot.strip()
    return problem.cot.strip() + templates.answer_trigger + problem.answer.strip() + templates.answer_suffix


def taught_text(problem: Problem, templates: TemplateConfig, cot: CotKind) -> str:
    """The whole response of supervised training, but for the tokenizer's eos where that ends it.

    It is `target_text` between `target_prefix` and `target_end`. An annotation out of samples may have the prefix
    already; and where that is an empty block, as `<think>\n\n</think>\n\n`, one with a block of its own has no other.

    Raises:
        ValueError: the problem has no chain of thought.
    """
    target = target_text(problem, templates, cot)
    prefix = templates.target_prefix if cot == "text" else ""
    block = prefix.split()
    has_own = len(block) == 2 and target.startswith(block[0]) and block[1] in target
    return ("" if has_own or target.startswith(prefix) else prefix) + target + templates.target_end


def few_shot_prefix(examples: Sequence[Problem], templates: TemplateConfig, cot: CotKind, separator: str) -> str:
    """Worked examples to stand before a prompt: of each `prompt_text`, `taught_text` and the separator.

    A model that was never fine-tuned continues them, and what it says after its own separator is not its answer.

    Raises:
        ValueError: an example has no chain of thought, or one with the separator in it; or the separator is empty.
    """
    if not separator:
        raise ValueError("the separator of worked examples is empty: it is what a completion ends at")
    parts = []
    for example in examples:
        target = taught_text(example, templates, cot)
        if separator in target:
            raise ValueError(
                f"worked example `{example.id}` holds the separator {separator!r}, at which a completion ends: choose "
                "another separator, or write the example without it"
            )
        parts.append(prompt_text(example, templates) + target + separator)
    return "".join(parts)
