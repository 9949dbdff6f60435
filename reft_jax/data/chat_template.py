"""The prompt format of a run in the words of other libraries: a chat template, and a JSON object of the templates."""

import dataclasses
from typing import Any

from reft_jax.config import CotKind, TemplateConfig

ONE_QUESTION = "this model was trained on one user message, the question, and on no other conversation"
"""What a chat template raises for other conversations."""

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r"})


def chat_template(templates: TemplateConfig, cot: CotKind) -> str:
    """A template that renders one user message, the question, as `generation_prompt`, and raises for all else.

    It stands in a tokenizer's `chat_template` and is read by Jinja. All text is in string literals there: outside of
    them Jinja would read `{{` and `{%`, and drop a line break at the end.
    """
    pieces = [templates.instruction, None, templates.cot_trigger]  # None is the question
    if cot == "program":
        for piece in templates.program_header.split("{question}"):
            pieces += [piece, None]
        del pieces[-1]
    shown = "".join("{{- question -}}" if piece is None else f"{{{{- {_literal(piece)} -}}}}" for piece in pieces)
    other = "messages | length != 1 or messages[0].role != 'user' or messages[0].content is not string"
    return (
        f"{{%- if {other} -%}}{{{{- raise_exception({_literal(ONE_QUESTION)}) -}}}}{{%- endif -%}}"
        f"{{%- set question = messages[0].content.strip() -%}}{shown}"
    )


def _literal(text: str) -> str:
    """A string of Jinja's, which knows Python's escapes and changes line breaks that are not escaped."""
    return f'"{text.translate(_ESCAPES)}"'


def prompt_format(templates: TemplateConfig, cot: CotKind) -> dict[str, Any]:
    """The templates, the kind of the chains of thought, and how a prompt becomes tokens.

    Of kind `chat` the strings are what the tokenizer's own template makes of one user message.
    """
    return {"cot": cot, **dataclasses.asdict(templates), "add_special_tokens": False}
