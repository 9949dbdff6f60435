"""Tokenizers by name, and the two ids that batches need. Hugging Face's libraries are loaded on first use only."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reft_jax.config import ModelConfig
from reft_jax.config.paths import local_folder
from reft_jax.files import ask_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The id that fills padding, the id that targets end with, and all ids that end a sampled response.

    They may be equal: masks are made from lengths, so that the padding id has no meaning.
    """

    pad: int
    eos: int
    ends: tuple[int, ...]


def model_tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer that `model.tokenizer` names, else `model.path`; see `load_tokenizer`."""
    key = "tokenizer" if model.tokenizer else "path"
    return load_tokenizer(getattr(model, key), model.revision, f"model.{key}")


def load_tokenizer(name: str, revision: str, key: str = "model.tokenizer") -> "PreTrainedTokenizerBase":
    """The tokenizer in a folder or at a hub id; `embedded` builds that of the embedded problems.

    Decoding is set to give back the text as it was: no clean-up of blanks, which would change programs.

    Args:
        name: the folder, or the id.
        revision: of the hub's files.
        key: the setting that names it.

    Raises:
        FileNotFoundError: naming the key: no tokenizer there, in the cache or on the hub; says how to get one.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # advice to install torch, which is not needed
    if name == "embedded":
        from reft_jax.data.embedded.problems import build_tokenizer

        tokenizer = build_tokenizer()
        tokenizer.name_or_path = name
        return tokenizer

    if not (folder := local_folder(name, key)):
        ask_hub()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder or name, revision=revision, clean_up_tokenization_spaces=False)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        if folder:
            raise FileNotFoundError(
                f"{key}: no tokenizer can be read from the folder {name}; name one by model.tokenizer. Reason: {reason}"
            ) from error
        raise FileNotFoundError(
            f"{key}: there is no folder {name}, and as a hub id (revision {revision}) it is not in the local cache, "
            f"cannot be reached, or has no tokenizer. Fetch it once where there is a network with `hf download {name} "
            f"--revision {revision}`, or give the path of a folder with its files. Reason: {reason}"
        ) from error


def special_texts(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """The tokenizer's special tokens, all that are marked so among its added ones included."""
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}


def reserved_texts(tokenizer: "PreTrainedTokenizerBase") -> tuple[set[str], set[str]]:
    """The special tokens that a question must not hold, and those that a chain of thought must not.

    A chain of thought may have blocks, `<think>` with its `</think>`.
    """
    special = special_texts(tokenizer) - {""}
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    opening = {text for text in special if text.startswith("<") and f"</{text[1:]}" in special} - named
    return special, special - opening - {f"</{text[1:]}" for text in opening}


def special_ids(tokenizer: "PreTrainedTokenizerBase", ends: Sequence[int] = (), target_end: str = "") -> SpecialIds:
    """The tokenizer's own pad and eos ids; without a pad token, padding is filled with eos.

    Args:
        tokenizer: names them.
        ends: more ids that end a response, as a chat model's `generation_config.json` has them.
        target_end: what targets end with instead of eos (`data.templates.target_end`); its last token ends responses.

    Raises:
        ValueError: the tokenizer has no eos token, so that no response could end; or `target_end` ends with no special
            token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError(
            f"tokenizer `{tokenizer.name_or_path}` names no eos token, which ends every response: set `eos_token` in "
            "its tokenizer_config.json"
        )
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    last = eos
    if target_end:
        if not any(target_end.endswith(text) for text in special_texts(tokenizer)):
            raise ValueError(
                f"data.templates.target_end is {target_end!r}: it must end with a special token of tokenizer "
                f"`{tokenizer.name_or_path}`, which no other text is read as"
            )
        last = tokenizer(target_end, add_special_tokens=False)["input_ids"][-1]
    return SpecialIds(pad=pad, eos=last, ends=tuple(dict.fromkeys([last, eos, *ends])))
