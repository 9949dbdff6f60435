"""What one evaluation on a set of problems said: accuracy, its interval, and the completions."""

import dataclasses
from typing import Any

from reft_jax.samples.statistics import wilson_interval
from reft_jax.training.completion import Completion, summarise


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A completion for each problem that was asked, of `total` problems."""

    completions: list[Completion]
    total: int

    @property
    def correct(self) -> int:
        """Problems answered right; those whose prompt was dropped are not."""
        return sum(completion.verdict.outcome == "correct" for completion in self.completions)

    @property
    def accuracy(self) -> float:
        """Share of all problems answered right."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.correct, self.total)

    def metrics(self, split: str) -> dict[str, float]:
        """The metrics, named `<split>/...`."""
        low, high = self.interval
        shares = summarise(self.completions)
        del shares["length_mean"]
        own = {"accuracy": self.accuracy, "interval_low": low, "interval_high": high}
        return {f"{split}/{name}": value for name, value in {**own, **shares}.items()}

    def records(self, step: int, **labels: Any) -> list[dict[str, Any]]:
        """One JSON object a completion."""
        return [{"step": step, **labels, **completion.record()} for completion in self.completions]
