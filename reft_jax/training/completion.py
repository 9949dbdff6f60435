"""From a rollout's tokens back to text, and from text to verdicts: the host's half of sampling."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reft_jax.algorithms.rollout import Rollout
from reft_jax.config import DataConfig
from reft_jax.data.batches import Sequences
from reft_jax.data.prompts import program_header
from reft_jax.problem import Problem
from reft_jax.reward.answers import parse_gold
from reft_jax.reward.functions import RewardFunction, call_functions, weighted_sum
from reft_jax.reward.verdicts import Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        tokens: length of the response, end token included.
        ended: whether it has an end token, or was cut at the longest length.
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
    end_before: str = "",
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
        end_before: a text that ends a response as an end token does, and is cut off with all that follows; of such a
            response, `tokens` and `log_prob` are those of all that was sampled.
    """
    asked = [problems[i] for i in rows if i >= 0]
    prompts, texts = (part[: len(asked)] for part in response_texts(tokenizer, rollout.sequences, rollout.ended))
    ended = rollout.ended[: len(asked)].tolist()
    if end_before:
        parts = [text.partition(end_before) for text in texts]
        texts, ended = [part[0] for part in parts], [end or part[1] != "" for end, part in zip(ended, parts)]
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
            ended=ended[row],
            log_prob=float(rollout.log_probs[row].sum(dtype=np.float64)),
            functions={name: column[row] for name, column in values.items()},
        )
        for row, (problem, text, verdict) in enumerate(zip(asked, texts, verdicts(asked, texts)))
    ]


def response_ids(sequences: Sequences) -> list[list[int]]:
    """Token ids of each response, end token included."""
    bounds = zip(sequences.tokens, sequences.prompt_lengths, sequences.response_lengths)
    return [row[start : start + length].tolist() for row, start, length in bounds]


def columns(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """The data's columns as published, None where a row lacks one, and where none has: id, question, answer, cot, and
    gold, the answer as the number or text that completions are compared with."""
    names = dict.fromkeys(name for problem in problems for name in problem.columns)
    found = {name: [problem.columns.get(name) for problem in problems] for name in names}
    own = ("id", "question", "answer", "cot")
    gold = [parse_gold(problem.answer, problem.answer_kind) for problem in problems]
    return {name: [getattr(problem, name) for problem in problems] for name in own} | {"gold": gold} | found


def function_means(completions: Sequence[Completion], prefix: str = "reward") -> dict[str, float]:
    """The mean of each of the user's reward functions, before its weight, over the completions it applied to."""
    means: dict[str, float] = {}
    for name in completions[0].functions if completions else ():
        said = [value for completion in completions if (value := completion.functions[name]) is not None]
        means |= {f"{prefix}/function/{name}": sum(said) / len(said)} if said else {}
    return means


def summarise(completions: Sequence[Completion]) -> dict[str, float]:
    """Shares of outcomes, of suspects and of those cut short, mean length in tokens; the keys have no prefix yet."""
    n = len(completions)
    outcomes = [completion.verdict.outcome for completion in completions]
    shares = {f"outcome_{outcome}": outcomes.count(outcome) / n for outcome in sorted(set(outcomes))}
    cut = sum(not completion.ended for completion in completions) / n
    suspicions = [completion.verdict.suspicious for completion in completions]
    if any(suspicious is not None for suspicious in suspicions):
        shares["suspicious"] = suspicions.count(True) / n
    return {**shares, "truncated": cut, "length_mean": sum(completion.tokens for completion in completions) / n}
