"""The tokenizer of one token a character, unless a file has one of its own."""

import pytest
from transformers import PreTrainedTokenizerFast

from tests.data.characters import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()
