"""Token ids as padded batches: bucket, order, pad.

Last station of the data flow: `Example`s and `Prompt`s -> one batch per step. All host work in numpy. Shapes: B batch
rows, P padded prompt, R padded response, T = P + R; P and R come from the few buckets of the config, so that few
programs are compiled. Which tokens are real is told by lengths and never by ids, since a padding id may be any token's.
Which rows a step takes is a function of (seed, step): resuming needs no state.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import flax.struct
import jax
import numpy as np

from reft_jax.data.encoding import Example, Prompt

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

Array = jax.Array
ArrayT = TypeVar("ArrayT", bound=np.ndarray | jax.Array)  # of a batch on the host, or on devices


@flax.struct.dataclass
class Sequences(Generic[ArrayT]):
    """Prompts with their responses: contiguous, right-padded rows.

    A row without a response is filler: it has one padding token as its prompt, so that positions stay valid.

    Attributes:
        tokens: int32, prompt then response without a gap.
        prompt_lengths: int32, at least 1.
        responses: int32, the response again, beginning at column 0.
        response_lengths: int32, the end token included; 0 in filler.
    """

    tokens: "Int[ArrayT, 'B T']"
    prompt_lengths: "Int[ArrayT, ' B']"
    responses: "Int[ArrayT, 'B R']"
    response_lengths: "Int[ArrayT, ' B']"

    @property
    def response_mask(self) -> "Bool[ArrayT, 'B R']":
        """True on the response's tokens; all false in filler."""
        return cast(ArrayT, np.arange(self.responses.shape[1])[None, :] < self.response_lengths[:, None])

    @property
    def lengths(self) -> "Int[ArrayT, ' B']":
        """Tokens of prompt and response together."""
        return cast(ArrayT, self.prompt_lengths + self.response_lengths)

    @property
    def row_count(self) -> int:
        """Rows of a host batch that are not filler."""
        return int(np.sum(self.response_lengths > 0))

    @property
    def token_count(self) -> int:
        """Tokens of prompts and responses in a host batch."""
        return int(np.sum(np.where(self.response_lengths > 0, self.prompt_lengths + self.response_lengths, 0)))


@flax.struct.dataclass
class PromptBatch(Generic[ArrayT]):
    """Prompts to sample from, right-padded.

    Attributes:
        tokens: int32.
        lengths: int32, at least 1.
        problem: int32, index into the list of problems; -1 in filler.
        sample: int32, which of the problem's samples the row is.
    """

    tokens: "Int[ArrayT, 'B P']"
    lengths: "Int[ArrayT, ' B']"
    problem: "Int[ArrayT, ' B']"
    sample: "Int[ArrayT, ' B']"


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


def in_order(seed: int, start: int, count: int, n: int) -> tuple[np.ndarray, int]:
    """[count] rows, all different, from place `start` of the orders of all epochs, and the place behind them.

    A row that was taken in this call, at the end of the epoch before, is passed over.

    Args:
        seed: of the orders.
        start: rows that were taken or passed over before.
        count: at most n.
        n: rows of an epoch.
    """
    taken: dict[int, None] = {}
    while len(taken) < count:
        epoch, place = divmod(start, n)
        rows = epoch_order(seed, epoch, n)[place:]
        for row in rows.tolist():
            start += 1
            taken.setdefault(row)
            if len(taken) == count:
                break
    return np.array(list(taken), np.int64), start


def choice_keys(seed: int, step: int, n: int) -> np.ndarray:
    """[n] numbers in (0, 1), a function of the arguments only and made as `epoch_order`'s, with a stream of its own."""
    raw = np.random.Philox(np.random.SeedSequence([seed, step, 1])).random_raw(n)
    return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52


def sequence_batch(
    examples: Sequence[Example],
    indices: Sequence[int] | np.ndarray,
    batch_size: int,
    prompt_buckets: Sequence[int],
    response_buckets: Sequence[int],
    pad_id: int,
) -> Sequences[np.ndarray]:
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
) -> PromptBatch[np.ndarray]:
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
) -> Sequences[np.ndarray]:
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
) -> Sequences[np.ndarray]:
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
) -> PromptBatch[np.ndarray]:
    """The prompts of a global iteration of reinforcement: `batch_size` questions, each as often as it is sampled."""
    indices = step_indices(seed, step, len(prompts), batch_size)
    return prompt_batch(prompts, indices, batch_size, prompt_buckets, pad_id, samples_per_question)


def evaluation_batches(
    prompts: Sequence[Prompt], *, batch_size: int, prompt_buckets: Sequence[int], pad_id: int
) -> Iterator[PromptBatch[np.ndarray]]:
    """All prompts once, longest first, so that a batch pads little; `problem` tells which row is which."""
    return prompt_batches(prompts, samples=1, batch_size=batch_size, prompt_buckets=prompt_buckets, pad_id=pad_id)


def sample_rows(prompts: Sequence[Prompt], samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `prompt_batches` in order, whatever their batches: [n] prompts and [n] which of their samples."""
    order = np.argsort([-len(prompt.tokens) for prompt in prompts], kind="stable")
    return np.repeat(order, samples), np.tile(np.arange(samples, dtype=np.int32), len(order))


def prompt_batches(
    prompts: Sequence[Prompt],
    *,
    samples: int,
    batch_size: int,
    prompt_buckets: Sequence[int],
    pad_id: int,
    first: int = 0,
) -> Iterator[PromptBatch[np.ndarray]]:
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
        filler = np.zeros(batch_size - len(rows[part]), np.int32)
        yield dataclasses.replace(batch, sample=np.concatenate([sample[part], filler]))


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
