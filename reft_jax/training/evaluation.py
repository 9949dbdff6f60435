"""What one evaluation on a set of problems said: accuracy, its interval, and the completions."""

import dataclasses
from typing import Any

from reft_jax.samples.statistics import wilson_interval
from reft_jax.training.completion import Completion, function_means, summarise


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A completion for each problem that was asked; `total` problems have a gold answer, those not asked included."""

    completions: list[Completion]
    total: int

    @property
    def correct(self) -> int:
        """Problems answered right; those whose prompt was dropped are not."""
        return sum(completion.verdict.outcome == "correct" for completion in self.completions)

    @property
    def accuracy(self) -> float | None:
        """Share answered right of all problems with a gold answer; None where there are none."""
        return self.correct / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.correct, self.total)

    @property
    def reward(self) -> float:
        """Mean reward of the completions."""
        return sum(completion.reward for completion in self.completions) / len(self.completions)

    def figures(self, select_by: str) -> dict[str, float]:
        """What models are chosen by, one after the other: what `evaluation.select_by` names, then the accuracy, if any.

        Raises:
            ValueError: that function applied to no completion.
        """
        functions = {name.rpartition("/")[2]: mean for name, mean in function_means(self.completions, "").items()}
        accuracy = {} if self.accuracy is None else {"accuracy": self.accuracy}
        measured = {**functions, **accuracy, "reward": self.reward}
        if select_by not in measured:
            raise ValueError(f"evaluation.select_by is {select_by}: it said None of every completion on dev")
        return {select_by: measured[select_by], **accuracy}

    def metrics(self, split: str) -> dict[str, float]:
        """The metrics, named `<split>/...`."""
        shares = summarise(self.completions)
        del shares["length_mean"]
        own = {"reward_mean": self.reward}
        if self.accuracy is not None:
            low, high = self.interval
            own = {"accuracy": self.accuracy, "interval_low": low, "interval_high": high, **own}
        named = {f"{split}/{name}": value for name, value in {**own, **shares}.items()}
        return named | function_means(self.completions, split)

    def records(self, step: int, **labels: Any) -> list[dict[str, Any]]:
        """One JSON object a completion."""
        return [{"step": step, **labels, **completion.record()} for completion in self.completions]
