"""The chat template against the strings and the tokens that a run makes itself, for any templates and questions."""

import json
import tempfile

import jinja2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from reft_jax.config import TemplateConfig
from reft_jax.data.chat_template import ONE_QUESTION, chat_template, prompt_format
from reft_jax.data.encoding import encode_prompts
from reft_jax.data.prompts import generation_prompt
from reft_jax.problem import Problem

ODD = (
    *(
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{{-",
        "-%}",
        "{%- raw -%}",
        "{% endraw %}",
        "{% generation %}",
        "{question}",
    ),
    *('"', "'", '"""', "\\", "\\n", "\\x41", "\\u00e9", "\\\\", "\n", "\r", "\r\n", "\t", " ", "\0", "\x85", "\u2028"),
    *("😀", "é", "`", "messages", "<eos>", "<bos>", "$1,234.50"),
)
TEXT = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=5)), max_size=8).map("".join)
TEMPLATES = st.builds(TemplateConfig, TEXT, TEXT, TEXT, TEXT)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and one that is put before every text for which special tokens are asked for."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(["<eos>", "<bos>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>")


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@given(TEMPLATES, TEXT, st.sampled_from(["program", "text"]))
def test_it_makes_the_prompt_and_the_tokens_of_a_run(templates, question, cot):
    problem, tokenizer = Problem("p", question, "1"), build_tokenizer()
    expected = generation_prompt(problem, templates, cot)
    tokenizer.chat_template = chat_template(templates, cot)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template(user(question), tokenize=False) == expected
    assert tokenizer.apply_chat_template(user(question), tokenize=False, add_generation_prompt=True) == expected
    assume(expected)
    assume("<eos>" not in question and "<bos>" not in question)  # such a question is refused
    (prompt,), _ = encode_prompts([problem], tokenizer, templates, cot, max_prompt=10**6, overlong="error")
    np.testing.assert_array_equal(
        tokenizer.apply_chat_template(user(question), return_dict=True)["input_ids"], prompt.tokens
    )


@pytest.mark.parametrize(
    "conversation",
    [
        user("one") + user("two"),
        [{"role": "system", "content": "be brief"}, *user("one")],
        [*user("one"), {"role": "assistant", "content": "two"}],
        [{"role": "assistant", "content": "two"}],
        [{"role": "user", "content": [{"type": "text", "text": "one"}]}],
        [{"role": "user", "content": None}],
        [{"role": "user"}],
    ],
)
def test_it_refuses_what_the_model_never_saw(conversation):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = chat_template(TemplateConfig(), "program")
    with pytest.raises(jinja2.TemplateError, match=ONE_QUESTION):
        tokenizer.apply_chat_template(conversation, tokenize=False)


def test_the_format_as_data():
    templates = TemplateConfig(instruction='{{ "\n', program_header="# {question}\n")
    again = json.loads(json.dumps(prompt_format(templates, "text")))
    assert (again.pop("cot"), again.pop("add_special_tokens")) == ("text", False)
    assert TemplateConfig(**again) == templates
