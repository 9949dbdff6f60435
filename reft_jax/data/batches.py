"""Problems as padded token batches: encode, bucket, order, pad.

Last station of the data flow: `list[Problem]` -> `Example`s and `Prompt`s, once per run -> one batch per step. All
host work in numpy. Shapes: B batch rows, P padded prompt, R padded response, T = P + R; P and R come from the few
buckets of the config, so that few programs are compiled. Which tokens are real is told by lengths and never by ids,
since a padding id may be any token's. Which rows a step takes is a function of (seed, step): resuming needs no state.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import flax.struct
import numpy as np

from reft_jax.config import CotKind, TemplateConfig
from reft_jax.data.prompts import generation_prompt, prompt_text, target_text
from reft_jax.data.tokenizers import special_ids
from reft_jax.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = Any  # numpy on the host, jax on a device, shape and type alone where a step is lowered

Overlong = Literal["error", "drop", "truncate"]


@flax.struct.dataclass
class Sequences:
    """Prompts with their responses: contiguous, right-padded rows.

    A row without a response is filler: it has one padding token as its prompt, so that positions stay valid.

    Attributes:
        tokens: [B, T] int32, prompt then response without a gap.
        prompt_lengths: [B] int32, at least 1.
        responses: [B, R] int32, the response again, beginning at column 0.
        response_lengths: [B] int32, the end token included; 0 in filler.
    """

    tokens: Array
    prompt_lengths: Array
    responses: Array
    response_lengths: Array

    @property
    def response_mask(self) -> Array:
        """[B, R] bool, true on the response's tokens; all false in filler."""
        return np.arange(self.responses.shape[1])[None, :] < self.response_lengths[:, None]

    @property
    def row_count(self) -> int:
        """Rows of a host batch that are not filler."""
        return int(np.sum(self.response_lengths > 0))

    @property
    def token_count(self) -> int:
        """Tokens of prompts and responses in a host batch."""
        return int(np.sum(np.where(self.response_lengths > 0, self.prompt_lengths + self.response_lengths, 0)))


@flax.struct.dataclass
class PromptBatch:
    """Prompts to sample from, right-padded.

    Attributes:
        tokens: [B, P] int32.
        lengths: [B] int32, at least 1.
        problem: [B] int32, index into the list of problems; -1 in filler.
        sample: [B] int32, which of the problem's samples the row is.
    """

    tokens: Array
    lengths: Array
    problem: Array
    sample: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A prompt and the response to learn, end token included, as int32 ids; `problem` indexes the list of problems."""

    problem: int
    prompt: np.ndarray
    response: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt to sample from, as int32 ids; `problem` indexes the list of problems."""

    problem: int
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class OverlongCount:
    """How many prompts and targets were longer than allowed, and how many rows that dropped."""

    prompts: int = 0
    targets: int = 0
    dropped: int = 0


def encode_examples(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    templates: TemplateConfig,
    cot: CotKind,
    *,
    max_prompt: int,
    max_response: int,
    overlong: Overlong,
    stage: str,
) -> tuple[list[Example], OverlongCount]:
    """Prompts and targets for supervised training; `stage` is where the config keeps the buckets, such as `sft`.

    Prompt and target are tokenised apart, without special tokens, and the eos id is added: the reference's token
    boundary. `truncate` cuts targets at their end, which loses the end token, and prompts at their beginning, which
    keeps the question's end and the trigger that asks for reasoning (the reference cuts the whole row at its end).

    Raises:
        ValueError: a problem without a chain of thought; text that the tokenizer cannot represent; a row longer than
            allowed under `error`.
    """
    eos = special_ids(tokenizer).eos
    prompts = _tokenize(problems, [prompt_text(problem, templates) for problem in problems], tokenizer)
    targets = _tokenize(problems, [target_text(problem, templates, cot) for problem in problems], tokenizer)
    responses = [np.append(target, np.int32(eos)) for target in targets]
    long_prompts = _overlong(problems, prompts, max_prompt, overlong, f"{stage}.prompt_buckets")
    long_targets = _overlong(problems, responses, max_response, overlong, f"{stage}.response_buckets")
    dropped = long_prompts | long_targets if overlong == "drop" else set()
    examples = [
        Example(i, prompt[-max_prompt:], response[:max_response])
        for i, (prompt, response) in enumerate(zip(prompts, responses))
        if i not in dropped
    ]
    return examples, OverlongCount(len(long_prompts), len(long_targets), len(dropped))


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    templates: TemplateConfig,
    cot: CotKind,
    *,
    max_prompt: int,
    overlong: Overlong,
    stage: str = "generation",
    prefix: str = "",
) -> tuple[list[Prompt], OverlongCount]:
    """Prompts for sampling: `prefix` and the whole `generation_prompt`, forced header included, as one string's tokens.

    `truncate` cuts at the beginning, which keeps the header that the program continues. A dropped problem is not
    answered: whoever measures accuracy counts it as wrong.

    Raises:
        ValueError: text that the tokenizer cannot represent; a prompt longer than allowed under `error`.
    """
    texts = [prefix + generation_prompt(problem, templates, cot) for problem in problems]
    rows = _tokenize(problems, texts, tokenizer)
    long = _overlong(problems, rows, max_prompt, overlong, f"{stage}.prompt_buckets")
    dropped = long if overlong == "drop" else set()
    prompts = [Prompt(i, row[-max_prompt:]) for i, row in enumerate(rows) if i not in dropped]
    return prompts, OverlongCount(prompts=len(long), dropped=len(dropped))


def encode_completions(
    problems: Sequence[Problem],
    completions: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    templates: TemplateConfig,
    *,
    max_length: int,
    overlong: Overlong,
    stage: str,
) -> tuple[list[Prompt], OverlongCount]:
    """Rows to classify: prompt and completion tokenised as one string, without an end token.

    The `problem` of a row is its index among the completions. A sampled text may be one that a tokenizer without bytes
    cannot represent: its holes are unknown tokens. `truncate` cuts at the beginning, which keeps the end of the
    completion, where its answer is (the reference cuts at the end).

    Args:
        problems: what was asked, one for each completion.
        completions: of programs the whole, forced header included.
        tokenizer: makes the ids.
        templates: of the prompt.
        max_length: most tokens of a row.
        overlong: what happens to longer ones.
        stage: where the config keeps the buckets.

    Raises:
        ValueError: a row longer than allowed under `error`.
    """
    texts = [prompt_text(problem, templates) + text for problem, text in zip(problems, completions, strict=True)]
    rows = _tokenize(problems, texts, tokenizer, holes=True)
    long = _overlong(problems, rows, max_length, overlong, f"{stage}.row_buckets")
    dropped = long if overlong == "drop" else set()
    kept = [Prompt(i, row[-max_length:]) for i, row in enumerate(rows) if i not in dropped]
    return kept, OverlongCount(targets=len(long), dropped=len(dropped))


def token_ids(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Ids of each text, without special tokens, as all of training and sampling has them."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def bucket(length: int, buckets: Sequence[int]) -> int:
    """The smallest of the padded lengths that holds `length` tokens.

    Raises:
        ValueError: none does.
    """
    fitting = [size for size in buckets if size >= length]
    if not fitting:
        raise ValueError(f"{length} tokens fit none of the buckets {tuple(buckets)}")
    return min(fitting)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Batches that show every row once; the last is filled up with filler rows."""
    return -(-rows // batch_size)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """[n] int64, a permutation of 0..n-1 that depends on the arguments only.

    Made from the raw output of a counter-based generator, which numpy keeps fixed over platforms and versions, as it
    does not with `Generator.permutation`.
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(keys, kind="stable")


def step_indices(seed: int, step: int, n: int, batch_size: int) -> np.ndarray:
    """[<= batch_size] rows of the batch of a global step, from 0; epochs follow each other without state."""
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    return epoch_order(seed, epoch, n)[position * batch_size : (position + 1) * batch_size]


def sequence_batch(
    examples: Sequence[Example],
    indices: Sequence[int] | np.ndarray,
    batch_size: int,
    prompt_buckets: Sequence[int],
    response_buckets: Sequence[int],
    pad_id: int,
) -> Sequences:
    """The examples at `indices` as a batch of `batch_size` rows, the rest filler."""
    rows = [examples[i] for i in indices]
    prompt_width = bucket(max(len(row.prompt) for row in rows), prompt_buckets)
    response_width = bucket(max(len(row.response) for row in rows), response_buckets)
    whole = [np.concatenate([row.prompt, row.response]) for row in rows]
    tokens, _ = _padded(whole, batch_size, prompt_width + response_width, pad_id)
    responses, response_lengths = _padded([row.response for row in rows], batch_size, response_width, pad_id)
    _, prompt_lengths = _padded([row.prompt for row in rows], batch_size, prompt_width, pad_id)
    return Sequences(tokens, np.maximum(prompt_lengths, 1), responses, response_lengths)


def prompt_batch(
    prompts: Sequence[Prompt],
    indices: Sequence[int] | np.ndarray,
    batch_size: int,
    prompt_buckets: Sequence[int],
    pad_id: int,
    samples_per_question: int = 1,
) -> PromptBatch:
    """The prompts at `indices` as a batch for `batch_size` questions, the rest filler.

    B = batch_size * samples_per_question rows, all samples of a question next to each other.
    """
    rows = [prompts[i] for i in indices]
    width = bucket(max(len(row.tokens) for row in rows), prompt_buckets)
    tokens, lengths = _padded([row.tokens for row in rows], batch_size, width, pad_id)
    problem = np.full(batch_size, -1, np.int32)
    problem[: len(rows)] = [row.problem for row in rows]
    return PromptBatch(
        tokens=np.repeat(tokens, samples_per_question, axis=0),
        lengths=np.repeat(np.maximum(lengths, 1), samples_per_question),
        problem=np.repeat(problem, samples_per_question),
        sample=np.tile(np.arange(samples_per_question, dtype=np.int32), batch_size),
    )


def training_batch(
    examples: Sequence[Example],
    *,
    seed: int,
    step: int,
    batch_size: int,
    prompt_buckets: Sequence[int],
    response_buckets: Sequence[int],
    pad_id: int,
) -> Sequences:
    """The batch of a global step of supervised training."""
    indices = step_indices(seed, step, len(examples), batch_size)
    return sequence_batch(examples, indices, batch_size, prompt_buckets, response_buckets, pad_id)


def annotations(
    examples: Mapping[int, Example],
    problems: np.ndarray,
    *,
    limit: int,
    prompt_buckets: Sequence[int],
    response_buckets: Sequence[int],
    pad_id: int,
) -> Sequences:
    """The annotation of each row's problem, [B, ...]; rows without one are filler.

    Args:
        examples: by problem; one that is missing was dropped.
        problems: [B] int32, -1 in filler.
        limit: tokens of prompt and target together after which a target is cut; 0 cuts none.
        prompt_buckets, response_buckets, pad_id: as for `sequence_batch`.
    """
    nothing = Example(-1, np.array([pad_id], np.int32), np.zeros(0, np.int32))
    rows = [examples.get(int(problem), nothing) for problem in problems]
    if limit:
        rows = [dataclasses.replace(row, response=row.response[: max(0, limit - len(row.prompt))]) for row in rows]
    return sequence_batch(rows, range(len(rows)), len(rows), prompt_buckets, response_buckets, pad_id)


def training_prompts(
    prompts: Sequence[Prompt],
    *,
    seed: int,
    step: int,
    batch_size: int,
    samples_per_question: int,
    prompt_buckets: Sequence[int],
    pad_id: int,
) -> PromptBatch:
    """The prompts of a global iteration of reinforcement: `batch_size` questions, each as often as it is sampled."""
    indices = step_indices(seed, step, len(prompts), batch_size)
    return prompt_batch(prompts, indices, batch_size, prompt_buckets, pad_id, samples_per_question)


def evaluation_batches(
    prompts: Sequence[Prompt], *, batch_size: int, prompt_buckets: Sequence[int], pad_id: int
) -> Iterator[PromptBatch]:
    """All prompts once, longest first, so that a batch pads little; `problem` tells which row is which."""
    return sample_batches(prompts, samples=1, batch_size=batch_size, prompt_buckets=prompt_buckets, pad_id=pad_id)


def sample_rows(prompts: Sequence[Prompt], samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `sample_batches` in order, whatever their batches: [n] prompts and [n] which of their samples."""
    order = np.argsort([-len(prompt.tokens) for prompt in prompts], kind="stable")
    return np.repeat(order, samples), np.tile(np.arange(samples, dtype=np.int32), len(order))


def sample_batches(
    prompts: Sequence[Prompt],
    *,
    samples: int,
    batch_size: int,
    prompt_buckets: Sequence[int],
    pad_id: int,
    first: int = 0,
) -> Iterator[PromptBatch]:
    """Some samples of every prompt, longest prompt first and all samples of one next to each other.

    Args:
        prompts: to sample from.
        samples: of each prompt.
        batch_size: rows of a batch, of as many prompts as that takes.
        prompt_buckets: padded prompt lengths.
        pad_id: fills rows.
        first: batch to begin with, from 0.
    """
    rows, sample = sample_rows(prompts, samples)
    for start in range(first * batch_size, len(rows), batch_size):
        part = slice(start, start + batch_size)
        batch = prompt_batch(prompts, rows[part], batch_size, prompt_buckets, pad_id)
        batch.sample[: len(rows[part])] = sample[part]
        yield batch


def _padded(rows: Sequence[np.ndarray], height: int, width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """[height, width] and [height] int32: the rows padded on the right, and their lengths."""
    if len(rows) > height:
        raise ValueError(f"{len(rows)} rows for a batch of {height}")
    tokens = np.full((height, width), pad_id, np.int32)
    lengths = np.zeros(height, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        lengths[i] = len(row)
    return tokens, lengths


def _tokenize(
    problems: Sequence[Problem], texts: list[str], tokenizer: "PreTrainedTokenizerBase", *, holes: bool = False
) -> list[np.ndarray]:
    """`token_ids` as arrays; refuses text that comes out empty, or with holes unless `holes` allows them."""
    found, unknown = [], tokenizer.unk_token_id
    for start in range(0, len(texts), 4096):  # ids as Python's integers take much memory
        piece = slice(start, start + 4096)
        for problem, text, row in zip(problems[piece], texts[piece], token_ids(texts[piece], tokenizer)):
            if not row:
                raise ValueError(f"problem `{problem.id}`: the tokenizer makes no token of {text!r}")
            if not holes and unknown is not None and unknown in row:
                raise ValueError(
                    f"problem `{problem.id}`: the tokenizer has no tokens for all of {text!r}: it reads "
                    f"{tokenizer.decode(row)!r}; use another tokenizer or leave the problem out"
                )
            found.append(np.asarray(row, np.int32))
    return found


def _overlong(
    problems: Sequence[Problem], rows: Sequence[np.ndarray], longest: int, overlong: Overlong, key: str
) -> set[int]:
    """Indices of the rows of more than `longest` tokens; an error under the policy `error`."""
    long = [i for i, row in enumerate(rows) if len(row) > longest]
    if long and overlong == "error":
        named = ", ".join(f"`{problems[i].id}` ({len(rows[i])} tokens)" for i in long[:5])
        raise ValueError(
            f"{len(long)} of {len(rows)} rows are longer than the {longest} tokens of `{key}`: {named}"
            f"{', ...' if len(long) > 5 else ''}; make the largest bucket {max(len(rows[i]) for i in long)}, or let "
            "`data.overlong` drop or truncate them"
        )
    return set(long)
