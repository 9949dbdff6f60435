"""Tokenizers by name, and the two ids that batches need. Hugging Face's libraries are loaded on first use only."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

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


def load_tokenizer(name: str, revision: str) -> "PreTrainedTokenizerBase":
    """The tokenizer in a folder or at a hub id; `embedded` builds that of the embedded problems.

    Decoding is set to give back the text as it was: no clean-up of blanks, which would change programs.

    Raises:
        FileNotFoundError: no tokenizer there, in the cache or on the hub; says how to get one.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # advice to install torch, which is not needed
    if name == "embedded":
        from reft_jax.data.embedded.problems import build_tokenizer

        return build_tokenizer()

    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, clean_up_tokenization_spaces=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no tokenizer `{name}` (`model.tokenizer`, else `model.path`) at revision `{revision}`: not a folder with "
            "a tokenizer.json, nor a hub id that is in the cache or can be reached. With network, fetch it once by "
            f"`hf download {name}`; without, give the folder it was copied to. Reason: {error}"
        ) from error


def special_ids(tokenizer: "PreTrainedTokenizerBase", ends: Sequence[int] = ()) -> SpecialIds:
    """The tokenizer's own pad and eos ids; without a pad token, padding is filled with eos.

    Args:
        tokenizer: names them.
        ends: more ids that end a response, as a chat model's `generation_config.json` has them.

    Raises:
        ValueError: the tokenizer has no eos token, so that no response could end.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError(
            f"tokenizer `{tokenizer.name_or_path}` names no eos token, which ends every response: set `eos_token` in "
            "its tokenizer_config.json"
        )
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return SpecialIds(pad=pad, eos=eos, ends=tuple(dict.fromkeys([eos, *ends])))
