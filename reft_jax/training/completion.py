"""From a rollout's tokens back to text, and from text to verdicts: the host's half of sampling."""

import bisect
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from reft_jax.algorithms.rollout import TOKENS_A_CALL, Rollout
from reft_jax.config import DataConfig
from reft_jax.data.batches import Sequences
from reft_jax.data.prompts import program_header
from reft_jax.problem import Problem
from reft_jax.reward.answers import parse_gold
from reft_jax.reward.functions import RewardFunction, call_functions, weighted_sum
from reft_jax.reward.verdicts import Outcome, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNREADABLE = "\ufffd"
"""What a tokenizer makes of bytes that are no text."""

_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")  # of an object, in an exception's text: another in every process

VerdictFunction = Callable[[Sequence[Problem], Sequence[str]], list[Verdict]]
"""Problems and their completions to verdicts: `reward.verdicts` with its settings."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """One judged response.

    Attributes:
        problem: what was asked.
        text: the chain of thought; of a program all of it, forced header included.
        verdict: its reward, outcome and answer.
        reward: the verdict's, and the weighted values of the user's own reward functions.
        tokens: length of the response, end token included, or the token that completes a text of `generation.stop`.
        ended: whether it has one of these, or was cut at the longest length.
        log_prob: of all its tokens together, under the distribution that they were drawn from, nats.
        functions: what each reward function of the user's own said.
    """

    problem: Problem
    text: str
    verdict: Verdict
    reward: float
    tokens: int
    ended: bool
    log_prob: float = 0.0
    functions: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The completion as a JSON object."""
        return {
            "id": self.problem.id,
            "question": self.problem.question,
            "gold": self.problem.answer,
            "answer_kind": self.problem.answer_kind,
            "completion": self.text,
            "reward": self.reward,
            "outcome": self.verdict.outcome,
            "value": self.verdict.value,
            **({"detail": _ADDRESS.sub("0x...", self.verdict.detail)} if self.verdict.detail else {}),
            "suspicious": self.verdict.suspicious,
            **({"score": self.verdict.score} if self.verdict.score is not None else {}),
            **({"functions": dict(self.functions)} if self.functions else {}),
            "tokens": self.tokens,
            "ended": self.ended,
        }


def response_texts(
    tokenizer: "PreTrainedTokenizerBase", sequences: Sequences, ended: np.ndarray
) -> tuple[list[str], list[str]]:
    """Texts of the prompts and of the responses, these without their end tokens and what pads.

    Other special tokens stay: some are content, as `<think>` is. A response is decoded behind its prompt and the
    prompt's text is cut off: alone, its first blank would be lost with tokenizers that drop one at the start of a text.
    """
    decode = lambda rows: tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    rows = [row[:n] for row, n in zip(sequences.tokens, sequences.prompt_lengths)]
    responses = [row[:n] for row, n in zip(sequences.responses, sequences.response_lengths - ended)]
    content = [response[response != tokenizer.pad_token_id] for response in responses]
    prompts = decode(rows)
    both = decode([np.concatenate(pair) for pair in zip(rows, content)])
    return prompts, [text[len(prompt) :] for text, prompt in zip(both, prompts)]


def read_responses(
    tokenizer: "PreTrainedTokenizerBase", rollout: Rollout, stop: Sequence[str] = ()
) -> tuple[Rollout, list[str], list[str]]:
    """A rollout as it is judged, and the texts of its prompts and responses, see `response_texts`.

    A response is kept to the token that completes a text of `stop`, if one does, see `first_stop`, and has ended there:
    the beginning of a sample is a sample too, so that the log-probs of what is kept are the sampler's.

    Args:
        tokenizer: turns ids into text.
        rollout: host arrays, [B, ...].
        stop: texts that end a response.
    """
    sequences = rollout.sequences
    prompts, texts = response_texts(tokenizer, sequences, rollout.ended)
    lengths, ended = sequences.response_lengths.copy(), rollout.ended.copy()
    for row, text in enumerate(texts):
        if lengths[row] and (any(part in text for part in stop) or (stop and UNREADABLE in text)):
            beginning = functools.partial(_beginning, tokenizer, sequences, row, len(prompts[row]))
            if found := first_stop(beginning, int(lengths[row] - ended[row]), stop):
                lengths[row], texts[row], ended[row] = *found, True
    kept = np.arange(rollout.log_probs.shape[1]) < lengths[:, None]
    cut = Rollout(
        sequences=dataclasses.replace(sequences, response_lengths=lengths),
        log_probs=np.where(kept, rollout.log_probs, 0),
        ended=ended,
    )
    return cut, prompts, texts


def holds_stop(
    tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str], prompt: np.ndarray, response: np.ndarray
) -> bool:
    """Whether `read_responses` would cut a response whose last `TOKENS_A_CALL` tokens are new.

    Args:
        tokenizer: turns ids into text.
        stop: texts that end a response.
        prompt, response: tokens, [P] and [n].
    """
    longest = max(len(part.encode()) for part in stop)  # a token is a byte or more
    decode = lambda tokens: str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
    end = decode(response[-TOKENS_A_CALL - longest :])
    if not any(part in end for part in stop):  # most responses, most of the time
        return False
    text = decode(np.concatenate([prompt, response[response != tokenizer.pad_token_id]]))[len(decode(prompt)) :]
    return any(part in text for part in stop)


def _beginning(tokenizer: "PreTrainedTokenizerBase", sequences: Sequences, row: int, prompt: int, length: int) -> str:
    """The text of a response's first tokens, behind `prompt` characters."""
    response = sequences.responses[row, :length]
    content = response[response != tokenizer.pad_token_id]
    tokens = np.concatenate([sequences.tokens[row, : sequences.prompt_lengths[row]], content])
    return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))[prompt:]


def first_stop(beginning: Callable[[int], str], length: int, stop: Sequence[str]) -> tuple[int, str] | None:
    """How many tokens it takes until their text holds a text of `stop`, and what stands before that; None: all do not.

    Args:
        beginning: the text of the first tokens, by their number.
        length: of all tokens.
        stop: texts, none empty.
    """
    stops = lambda count: any(part in beginning(count) for part in stop)
    if UNREADABLE in beginning(length):  # of bytes that are no text, which some decoders let spoil what is before them
        count = next(filter(stops, range(1, length + 1)), length + 1)
    else:
        count = bisect.bisect_left(range(length + 1), True, key=stops)
    if count > length:
        return None
    return count, before(beginning(count), stop)


def before(text: str, stop: Sequence[str]) -> str:
    """What of a text stands before the first text of `stop`: all, where it holds none."""
    return text[: min((text.index(part) for part in stop if part in text), default=len(text))]


def judge(
    rollout: Rollout,
    problems: Sequence[Problem],
    rows: np.ndarray,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    data: DataConfig,
    verdicts: VerdictFunction,
    functions: Sequence[RewardFunction] = (),
    function_timeout: float = math.inf,
    stop: Sequence[str] = (),
) -> list[Completion]:
    """Reads and judges the responses of a rollout.

    Args:
        rollout: host arrays, [B, ...].
        problems: what `rows` indexes.
        rows: [B] the problem of each row; -1 in filler, which is left out and must come last.
        tokenizer: turns ids into text.
        data: kind of chain of thought, and templates.
        verdicts: problems and their completions to verdicts.
        functions: of the user's own; asked too.
        function_timeout: seconds by the clock that one call of them may take.
        stop: texts that end a response, see `read_responses`.
    """
    asked = [problems[i] for i in rows if i >= 0]
    rollout, prompts, texts = read_responses(tokenizer, rollout, stop)
    prompts, texts = prompts[: len(asked)], texts[: len(asked)]
    values: dict[str, list[float | None]] = {}
    extra = [0.0] * len(asked)
    if functions:
        ids = response_ids(rollout.sequences)[: len(asked)]
        values = call_functions(
            functions,
            prompts=prompts,
            completions=texts,
            completion_ids=ids,
            columns=columns(asked),
            timeout=function_timeout,
        )
        extra = weighted_sum(functions, values)
    if data.cot == "program":
        texts = [program_header(problem, data.templates) + text for problem, text in zip(asked, texts)]
    return [
        Completion(
            problem=problem,
            text=text,
            verdict=verdict,
            reward=verdict.reward + extra[row],
            tokens=int(rollout.sequences.response_lengths[row]),
            ended=bool(rollout.ended[row]),
            log_prob=float(rollout.log_probs[row].sum(dtype=np.float64)),
            functions={name: column[row] for name, column in values.items()},
        )
        for row, (problem, text, verdict) in enumerate(zip(asked, texts, verdicts(asked, texts)))
    ]


def per_token(
    tokenizer: "PreTrainedTokenizerBase",
    rollout: Rollout,
    row: int,
    completion: Completion,
    scores: Mapping[str, np.ndarray],
    data: DataConfig,
) -> dict[str, Any]:
    """A response token by token, as a JSON object.

    Args:
        tokenizer: turns ids into text.
        rollout: host arrays, [B, ...]; the completion says how many tokens of it count.
        row: of the rollout.
        completion: of the row.
        scores: [B, R] by name, see `learners.token_scores`.
        data: kind of chain of thought, and templates.

    Returns:
        `head`, what the completion's text has before the first token, `text` of each token, such that all together are
        the response, and a list of numbers, one a token, by the names of the scores.
    """
    sequences, length = rollout.sequences, completion.tokens
    prompt = sequences.tokens[row, : sequences.prompt_lengths[row]]
    decode = lambda ids: str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    texts, known = [], decode(prompt)
    for end in range(1, length + 1):
        text = decode(np.concatenate([prompt, sequences.responses[row, :end]]))
        whole = end == length or not text.endswith(UNREADABLE)  # else a character is yet to be completed
        texts.append(text[len(known) :] if whole else "")
        known = text if whole else known
    return {
        "head": program_header(completion.problem, data.templates) if data.cot == "program" else "",
        "text": texts,
        **{name: [float(f"{value:.3g}") for value in array[row, :length]] for name, array in scores.items()},
    }


def response_ids(sequences: Sequences) -> list[list[int]]:
    """Token ids of each response, end token included."""
    bounds = zip(sequences.tokens, sequences.prompt_lengths, sequences.response_lengths)
    return [row[start : start + length].tolist() for row, start, length in bounds]


def columns(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """The data's columns as published, None where a row lacks one, and where none has: id, question, answer, cot, and
    gold, the answer as the number or text that completions are compared with, None where there is none."""
    names = dict.fromkeys(name for problem in problems for name in problem.columns)
    found = {name: [problem.columns.get(name) for problem in problems] for name in names}
    own = ("id", "question", "answer", "cot")
    gold = [parse_gold(p.answer, p.answer_kind) if p.has_gold else None for p in problems]
    return {name: [getattr(problem, name) for problem in problems] for name in own} | {"gold": gold} | found


def share_correct(completions: Sequence[Completion]) -> float | None:
    """The share that is right of those to questions with a gold answer; None where there are none."""
    right = [c.verdict.outcome == "correct" for c in completions if c.problem.has_gold]
    return sum(right) / len(right) if right else None


def function_means(completions: Sequence[Completion], prefix: str = "reward") -> dict[str, float]:
    """The mean of each of the user's reward functions, before its weight, over the completions it applied to."""
    means: dict[str, float] = {}
    for name in completions[0].functions if completions else ():
        said = [value for completion in completions if (value := completion.functions[name]) is not None]
        means |= {f"{prefix}/function/{name}": sum(said) / len(said)} if said else {}
    return means


def summarise(completions: Sequence[Completion]) -> dict[str, float]:
    """Shares of all outcomes, those that did not occur too, of suspects and of those cut short, mean length in tokens.

    The keys have no prefix yet.
    """
    n = len(completions)
    outcomes = [completion.verdict.outcome for completion in completions]
    judged = any(completion.problem.has_gold for completion in completions)
    possible = [each for each in get_args(Outcome) if judged or each not in ("correct", "wrong")]
    shares = {f"outcome_{outcome}": outcomes.count(outcome) / n for outcome in possible}
    cut = sum(not completion.ended for completion in completions) / n
    suspicions = [completion.verdict.suspicious for completion in completions]
    if any(suspicious is not None for suspicious in suspicions):
        shares["suspicious"] = suspicions.count(True) / n
    return {**shares, "truncated": cut, "length_mean": sum(completion.tokens for completion in completions) / n}
