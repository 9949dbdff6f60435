"""A tokenizer's chat template as the strings of `TemplateConfig`: filled in once, before any prompt is made.

All that makes prompts and targets then works on strings, whoever wrote them. What a template does is read off its
renderings of made-up questions and answers: what stands before and after the question, and around the answer. A
template that does not leave both as they are, or that renders a question otherwise once it is answered, is refused by
name. Made-up answers do not show all that it does, such as to one with thoughts in a block of their own: so each row
that is learned is compared with its rendering too.
"""

import dataclasses
import datetime
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from reft_jax.config import Config, CotKind, TemplateConfig
from reft_jax.data.prompts import few_shot_prefix, prompt_text, target_text, taught_text
from reft_jax.data.tokenizers import special_texts
from reft_jax.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = datetime.date(2024, 7, 26)  # that of Llama's templates where they know no clock
FILLED = ("instruction", "cot_trigger", "target_prefix", "target_end")
"""The strings that a chat template gives."""

_QUESTION, _ANSWER = "Which number is 4127 and 1?", "It is 4127 + 1 = 4128."
_QUESTIONS = (
    "{question} {{ x }} {% y %} {# z #}",
    "a\n\n\"b\" \\n 'c' <b>d</b>",
    "½ é 你好 \t?",
    "def f(x):\n    return x",
)
_ANSWERS = (
    "One.\n\nTwo: x < y, \\boxed{4}",
    'def solution():\n    """{question}"""\n    return 4128',
    "½ {{ x }} {% y %}",
)
_CURE = (
    "set data.templates.variables (such as {enable_thinking: false}) so that it does, or write the prompt as strings "
    "(data.templates.kind: strings)"
)


def with_templates(config: Config, tokenizer: "PreTrainedTokenizerBase") -> Config:
    """The config with the strings of its templates as they are used, the chat template's and BOS filled in.

    One that has them already stays as it is.

    Raises:
        ValueError: see `filled`.
    """
    templates = filled(config.data.templates, tokenizer, config.data.cot)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, templates=templates))


def with_worked_examples(
    config: Config, tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Problem], separator: str
) -> Config:
    """The config with worked examples before each question: as earlier turns of a chat, or as strings.

    Args:
        config: its templates filled in.
        tokenizer: has the chat template.
        examples: with chains of thought.
        separator: behind each, where templates are strings, see `few_shot_prefix`; no turn has one.

    Raises:
        ValueError: an example has no chain of thought, see also `few_shot_prefix` and `chat_strings`.
    """
    templates, cot = config.data.templates, config.data.cot
    if templates.kind == "chat":
        turns = [(problem.question.strip(), target_text(problem, templates, cot)) for problem in examples]
        unfilled = {name: getattr(TemplateConfig(), name) for name in FILLED}
        shown = filled(dataclasses.replace(templates, **unfilled), tokenizer, cot, turns)
    else:
        text = few_shot_prefix(examples, templates, cot, separator) + templates.instruction
        if templates.bos is True:  # each of the prompts begins with it
            text = str(tokenizer.bos_token) + text.replace(str(tokenizer.bos_token), "")
        shown = dataclasses.replace(templates, instruction=text)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, templates=shown))


def filled(
    templates: TemplateConfig, tokenizer: "PreTrainedTokenizerBase", cot: CotKind, turns: Sequence[tuple[str, str]] = ()
) -> TemplateConfig:
    """The templates with their strings as they are used; `turns`, see `chat_strings`.

    Raises:
        ValueError: naming the key or the template: the tokenizer has no chat template, or none that suits, see
            `chat_strings`; a string is given that the chat template gives too; or there is no BOS token to begin with.
    """
    found = templates
    if templates.kind == "chat":
        found = chat_strings(templates, tokenizer, turns)
        if cot == "program" and found.target_prefix:
            raise ValueError(
                f"{_name(tokenizer)} begins an answer with {found.target_prefix!r}, and with data.cot: program an "
                f"answer begins with the program's header: {_CURE}"
            )
    bos = tokenizer.bos_token
    if templates.bos is True and not bos:
        raise ValueError(
            f"data.templates.bos is yes, and tokenizer `{tokenizer.name_or_path}` names no BOS token: set it to auto"
        )
    if templates.bos is True and not found.instruction.startswith(bos):
        found = dataclasses.replace(found, instruction=bos + found.instruction)
    if templates.bos is False and bos:
        found = dataclasses.replace(found, instruction=found.instruction.removeprefix(bos))
    if templates.kind == "chat":
        for name in FILLED:
            given, own = getattr(templates, name), getattr(found, name)
            if given not in (own, getattr(TemplateConfig(), name)):
                raise ValueError(
                    f"data.templates.{name} is {given!r}, and with data.templates.kind: chat {_name(tokenizer)} makes "
                    f"it {own!r}: leave it out"
                )
    return found


def chat_strings(
    templates: TemplateConfig, tokenizer: "PreTrainedTokenizerBase", turns: Sequence[tuple[str, str]] = ()
) -> TemplateConfig:
    """The templates with the strings that the tokenizer's chat template gives.

    Args:
        templates: with a system message and variables.
        tokenizer: has the chat template.
        turns: questions with their answers, which stand before the question.

    Raises:
        ValueError: there is none; it takes no such variables or system message; it changes a question or an answer, or
            renders a question otherwise once it is answered; or it ends an answer with no special token.
    """
    name = _name(tokenizer)
    try:
        source = tokenizer.get_chat_template()
    except ValueError as error:
        raise ValueError(
            f"data.templates.kind is chat, and tokenizer `{tokenizer.name_or_path}` has no chat template: take that of "
            "the instruct model, put one beside its files as chat_template.jinja, or set data.templates.kind to strings"
        ) from error
    if unknown := [key for key in templates.variables if not re.search(rf"\b{re.escape(key)}\b", source)]:
        raise ValueError(f"data.templates.variables names {', '.join(unknown)}: {name} has no such variable")

    render = _renderer(templates, tokenizer, turns)
    before, found, after = render(_QUESTION).partition(_QUESTION)
    if not found or any(render(other) != before + other + after for other in (_QUESTION, *_QUESTIONS)):
        raise ValueError(f"{name} does not render a question as it is, once: write the prompt as strings")
    if templates.system and templates.system.strip() not in before:
        raise ValueError(f"{name} leaves data.templates.system out: leave it empty")
    place = 0
    for number, turn in enumerate(turns, start=1):
        for text in turn:
            place = before.find(text, place) + len(text)
            if place < len(text):
                raise ValueError(
                    f"{name} does not keep worked example {number} as it is: {text!r} is changed or left out"
                )
    prompt, whole = before + _QUESTION + after, render(_QUESTION, _ANSWER)
    if not whole.startswith(prompt):
        place = next((i for i, (a, b) in enumerate(zip(prompt, whole)) if a != b), len(whole))
        raise ValueError(
            f"{name} does not keep the prompt once it is answered: {prompt[place:]!r}, which sampling continues, "
            f"becomes {whole[place:]!r} in a whole conversation: {_CURE}"
        )
    prefix, found, rest = whole[len(prompt) :].partition(_ANSWER)
    same = lambda answer: render(_QUESTION, answer) == prompt + prefix + answer + rest
    if not found or not all(map(same, (_ANSWER, *_ANSWERS))):
        raise ValueError(f"{name} does not render an answer as it is, once: {_CURE}")
    ends = [(rest.find(text), -len(text), text) for text in special_texts(tokenizer) if text and text in rest]
    if not ends:
        raise ValueError(
            f"{name} ends an answer with {rest!r}, in which there is no special token that could end a response: write "
            "the prompt as strings (data.templates.kind: strings)"
        )
    start, _, text = min(ends)
    return dataclasses.replace(
        templates,
        instruction=before,
        cot_trigger=after,
        target_prefix=prefix,
        target_end=rest[: start + len(text)],
    )


def rendered_otherwise(
    problems: Sequence[Problem], tokenizer: "PreTrainedTokenizerBase", templates: TemplateConfig, cot: CotKind
) -> list[tuple[str, str]]:
    """The rows that are taught otherwise than the chat template renders them: id, and what is another.

    Args:
        problems: with chains of thought.
        tokenizer: has the template.
        templates: `filled`; of kind `strings` there is nothing to compare with.
        cot: what the chains of thought are.

    Raises:
        ValueError: naming the row that the template does not render at all.
    """
    if templates.kind != "chat":
        return []
    render, bos = _renderer(templates, tokenizer), str(tokenizer.bos_token or "")
    found = []
    for problem in problems:
        taught = (prompt_text(problem, templates) + taught_text(problem, templates, cot)).removeprefix(bos)
        try:
            whole = render(problem.question.strip(), target_text(problem, templates, cot)).removeprefix(bos)
        except ValueError as error:
            raise ValueError(f"problem `{problem.id}`: {error}") from error
        if not whole.startswith(taught):
            place = next((i for i, (a, b) in enumerate(zip(taught, whole)) if a != b), min(len(taught), len(whole)))
            shown = slice(max(place - 20, 0), place + 20)
            found.append((problem.id, f"{taught[shown]!r} is {whole[shown]!r} there"))
    return found


def require_rendered(
    problems: Sequence[Problem], tokenizer: "PreTrainedTokenizerBase", templates: TemplateConfig, cot: CotKind
) -> None:
    """Refuses rows that are `rendered_otherwise`.

    Raises:
        ValueError: says how many there are, names the first and how to mend them.
    """
    if found := rendered_otherwise(problems, tokenizer, templates, cot):
        identity, difference = found[0]
        raise ValueError(
            f"{len(found):,} of {len(problems):,} chains of thought would be taught otherwise than {_name(tokenizer)} "
            f"renders them, such as that of problem `{identity}`:\n  {difference}\n"
            "Write them as the template does, or without `<think>` blocks; or set data.templates.variables so that it "
            "keeps them, data.templates.kind to strings, or data.bad_rows to drop"
        )


def _renderer(
    templates: TemplateConfig, tokenizer: "PreTrainedTokenizerBase", turns: Sequence[tuple[str, str]] = ()
) -> Callable[..., str]:
    """What the tokenizer's chat template makes of a question, with the generation prompt, or of question and answer.

    It raises ValueError where the template raises. Before the question stand `turns`, each a question and its answer.
    """
    dated = with_date(tokenizer.get_chat_template())
    told = [{"role": "system", "content": templates.system}] if templates.system else []
    for question, answer in turns:
        told += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    options: dict[str, Any] = {"chat_template": dated, "tokenize": False, **templates.variables}

    def render(question: str, answer: str | None = None) -> str:
        messages = [*told, {"role": "user", "content": question}]
        messages += [{"role": "assistant", "content": answer}] if answer is not None else []
        try:
            return str(tokenizer.apply_chat_template(messages, add_generation_prompt=answer is None, **options))
        except jinja2.TemplateError as error:
            what = "a system message (data.templates.system) and a question" if templates.system else "a question"
            raise ValueError(f"{_name(tokenizer)} does not render {what}: {error}") from error

    return render


def with_date(template: str) -> str:
    """A chat template with `DATE` where it asks for today, so that it makes the same prompt every day."""
    today = lambda call: repr(DATE.strftime(call[2]))
    return re.sub(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", today, template)


def bos_warning(templates: TemplateConfig, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A line where the tokenizer by itself begins a text with a BOS token and the prompts do not; else nothing."""
    bos = tokenizer.bos_token
    if templates.bos != "auto" or not bos or templates.instruction.startswith(bos):
        return ""
    if tokenizer("1")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return ""
    return (
        f"warning: the tokenizer begins texts with {bos!r}, and the prompts have none: a model that was trained with "
        "it expects it; set data.templates.bos to yes, or to no to be told no more"
    )


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return f"the chat template of tokenizer `{tokenizer.name_or_path}`"
