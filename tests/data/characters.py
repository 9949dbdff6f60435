"""A tokenizer of one token a character, and templates short enough to count by hand.

Its padding token is its end token, as SmolLM2's is: whatever is read off ids instead of lengths fails.
"""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reft_jax.config import TemplateConfig

EOS = 0
UNKNOWN = 1
ALPHABET = '\n !"#()+-/0123456789:=?Q_abcdefghijklmnopqrstuvwxyz'
TEMPLATES = TemplateConfig("Q", ":", "=", "#{question}\n")


def ids(text: str) -> list[int]:
    return [ALPHABET.index(character) + 2 for character in text]


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<eos>": EOS, "<unk>": UNKNOWN} | {character: i + 2 for i, character in enumerate(ALPHABET)}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="<eos>", eos_token="<eos>", unk_token="<unk>", bos_token="<eos>"
    )
