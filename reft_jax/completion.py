"""From a rollout's tokens back to text, and from text to verdicts: the host's half of sampling."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reft_jax.config import DataConfig
from reft_jax.data.batches import Sequences
from reft_jax.data.prompts import program_header
from reft_jax.problem import Problem
from reft_jax.reward.score import Verdict
from reft_jax.rollout import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Score = Callable[[Sequence[Problem], Sequence[str]], list[Verdict]]


@dataclasses.dataclass(frozen=True)
class Completion:
    """One judged response.

    Attributes:
        problem: what was asked.
        text: the chain of thought; of a program all of it, forced header included.
        verdict: its reward, outcome and answer.
        tokens: length of the response, end token included.
        ended: whether it has an end token, or was cut at the longest length.
    """

    problem: Problem
    text: str
    verdict: Verdict
    tokens: int
    ended: bool

    def record(self) -> dict[str, Any]:
        """The completion as a JSON object."""
        return {
            "id": self.problem.id,
            "question": self.problem.question,
            "gold": self.problem.answer,
            "completion": self.text,
            "reward": self.verdict.reward,
            "outcome": self.verdict.outcome,
            "value": self.verdict.value,
            "tokens": self.tokens,
            "ended": self.ended,
        }


def response_texts(tokenizer: "PreTrainedTokenizerBase", sequences: Sequences, ended: np.ndarray) -> list[str]:
    """Text of each response, without its end token.

    A response is decoded behind its prompt and the prompt's text is cut off: alone, its first blank would be lost with
    tokenizers that drop one at the start of a text.
    """
    decode = lambda rows: tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    prompts = [row[:n] for row, n in zip(sequences.tokens, sequences.prompt_lengths)]
    ends = sequences.prompt_lengths + sequences.response_lengths - ended
    both = [row[:n] for row, n in zip(sequences.tokens, ends)]
    return [text[len(prompt) :] for text, prompt in zip(decode(both), decode(prompts))]


def judge(
    rollout: Rollout,
    problems: Sequence[Problem],
    rows: np.ndarray,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    data: DataConfig,
    score: Score,
) -> list[Completion]:
    """Reads and scores the responses of a rollout.

    Args:
        rollout: host arrays, [B, ...].
        problems: what `rows` indexes.
        rows: [B] the problem of each row; -1 in filler, which is left out and must come last.
        tokenizer: turns ids into text.
        data: kind of chain of thought, and templates.
        score: problems and their completions to verdicts.
    """
    asked = [problems[i] for i in rows if i >= 0]
    texts = response_texts(tokenizer, rollout.sequences, rollout.ended)[: len(asked)]
    if data.cot == "program":
        texts = [program_header(problem, data.templates) + text for problem, text in zip(asked, texts)]
    lengths = rollout.sequences.response_lengths
    return [
        Completion(problem, text, verdict, int(length), bool(ended))
        for problem, text, verdict, length, ended in zip(asked, texts, score(asked, texts), lengths, rollout.ended)
    ]


def summarise(completions: Sequence[Completion]) -> dict[str, float]:
    """Shares of outcomes, share cut short, mean length in tokens; the keys have no prefix yet."""
    n = len(completions)
    outcomes = [completion.verdict.outcome for completion in completions]
    shares = {f"outcome_{outcome}": outcomes.count(outcome) / n for outcome in sorted(set(outcomes))}
    cut = sum(not completion.ended for completion in completions) / n
    return {**shares, "truncated": cut, "length_mean": sum(completion.tokens for completion in completions) / n}
