"""What a person sees of a run: a progress line for each stage while it works, and a table of accuracies at its end.

Beside the records of `metrics`, fed by the same loop with the same numbers; what is said is kept in the run's `log`.
Process 0 shows, the others are silent.
"""

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import progress
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from reft_jax.records.log import append_log


def _tokens_per_second(value: float) -> str:
    for limit, scale, unit in ((999.5, 1, ""), (999_950, 1e3, "k")):
        if value < limit:
            return f"{value / scale:.{1 if unit else 0}f}{unit} tok/s"
    return f"{value / 1e6:.1f}M tok/s"


SHOWN: Mapping[str, Callable[[float], str]] = {
    "pretrain/loss": "loss {:.3f}".format,
    "sft/loss": "loss {:.3f}".format,
    "reward_model/loss": "loss {:.3f}".format,
    "reward/mean": "reward {:.3f}".format,
    "reward/correct": "right {:.1%}".format,
    "eval/accuracy": "dev {:.1%}".format,
    "rerank/accuracy": "rerank {:.1%}".format,
    "throughput/train_tokens_per_s": _tokens_per_second,
    "throughput/rollout_tokens_per_s": _tokens_per_second,
    "rl/sequence_kl": "kl {:.2f}".format,
}
"""The metrics that a progress line shows and how, in this order; a narrow terminal cuts the last ones."""

MODELS = {"warmup": "warm-up", "sft": "SFT continued", "sft_best": "SFT", "rl_best": ""}
"""The models of a run that are measured, in the order of tables; `rl_best` is called by its algorithm."""
ALGORITHMS = {
    "ppo": "ReFT (PPO)",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "reinforce": "REINFORCE",
    "self_training": "self-training",
}


class ProgressDisplay:
    """The progress of a run: a live line per stage on a terminal, else a plain line every few seconds.

    A context manager: a terminal is given back as it was, whatever happens inside.

    Args:
        show: whether this process shows anything (process 0 does).
        interval: seconds between plain lines, at least; the last step of a stage always gets one.
        console: where to print; None takes the standard output.
        clock: seconds, from anywhere.
        log: file that has the lines too, those of a live line as a plain one would have them.
    """

    def __init__(
        self,
        *,
        show: bool = True,
        interval: float = 5.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        log: Path | None = None,
    ) -> None:
        self._console = (console or Console()) if show else Console(quiet=True)
        self._interval = interval
        self._clock = clock
        self._log = log if show else None
        self._live = _live_line(self._console) if show and self._console.is_interactive else None
        self._last_line = -float("inf")

    def stage(self, name: str, total_steps: int, done: int = 0) -> None:
        """Begins a stage of `total_steps` steps, of which earlier processes did `done`."""
        self._name = name
        self._total = total_steps
        self._fields: dict[str, float] = {}
        self._first: tuple[int, float] | None = None
        if self._live is not None:
            self._task = self._live.add_task(name, total=total_steps, completed=done, eta="--:--", fields="")

    def advance(self, step: int, fields: Mapping[str, float]) -> None:
        """Says that `step` steps of the stage are done, those of earlier processes included.

        Args:
            step: steps done, 1 after the first.
            fields: metrics by name; those in `SHOWN` are shown, and stay until the stage gives a newer value.
        """
        self._fields.update(fields)
        now = self._clock()
        self._first = self._first or (step, now)
        eta = _time_left(self._total, self._first, (step, now))
        shown = "  ".join(form(self._fields[name]) for name, form in SHOWN.items() if name in self._fields)
        if self._live is not None:
            self._live.update(self._task, completed=step, eta=eta, fields=shown)
        if step == self._total or now - self._last_line >= self._interval:
            self._last_line = now
            line = f"{self._name} {step}/{self._total}  ETA {eta}  {shown}".rstrip()
            (self.message if self._live is None else self.log)(line)

    def message(self, text: str) -> None:
        """Prints a line as it is, above the progress line where there is one."""
        # As Text, for a string would be searched for markup; soft_wrap, for a log's lines are not to be broken.
        self._console.print(Text(text), soft_wrap=True)
        self.log(text)

    def log(self, text: str) -> None:
        """Writes lines to the log alone."""
        if self._log is not None:
            append_log(self._log, text)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def _time_left(total: int, first: tuple[int, float], latest: tuple[int, float]) -> str:
    """Time to step `total` at the pace between two (step, clock) pairs, such as `0:07`, `12:30` or `2:05:00`.

    The first is taken when this process ended its first step: what that took, most of it compilation, does not count.
    """
    steps = latest[0] - first[0]
    left = total - latest[0]
    if left and not steps:
        return "--:--"
    seconds = left * (latest[1] - first[1]) / steps if left else 0.0
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def closing_table(summary: Mapping[str, Any]) -> Table:
    """The accuracies of a finished run, one row for each model that it made; where there are none, the mean rewards.

    Args:
        summary: as in `summary.json`: under `warmup`, `sft`, `sft_best` and `rl_best`, those present, `accuracy` (share
            of test), `interval` (its low and high end), `examples` (sequences trained on) and `seconds`; under
            `rl_best` its `algorithm`; and `test_best` where the model was chosen on test. Of a run without a test set
            `dev_accuracy` takes the place of the first two. Without gold answers there is `reward`, or `dev_reward`,
            instead. Other keys are left out.

    Raises:
        KeyError: a model lacks one of these.
    """
    figures = {figure for key in MODELS for figure in summary.get(key, {})}
    tested = bool({"accuracy", "reward"} & figures)
    by_reward = "accuracy" not in figures if tested else "dev_reward" in figures and "dev_accuracy" not in figures
    title, heading, measure = (
        ("Mean reward", "reward", "reward") if by_reward else ("Accuracy", "accuracy %", "accuracy")
    )
    chosen = [key for key in MODELS if summary.get(key, {}).get("test_best")]
    warning = (
        "test-best: chosen on the test set itself, so that the accuracy is too high" if tested and chosen else None
    )
    table = Table(title=f"{title} on test" if tested else f"{title} on dev (there is no test set)", caption=warning)
    table.add_column("model", no_wrap=True)
    has_interval = tested and not by_reward
    for column in (heading, *(["95 % interval"] if has_interval else []), "trained on", "seconds"):
        table.add_column(column, justify="right")
    for key in MODELS:
        if key in summary:
            model = summary[key]
            label = model_label(key, model.get("algorithm", ""), test_best=key in chosen)
            figure = model[measure] if tested else model.get(f"dev_{measure}")
            shown = ["" if figure is None else f"{figure:.3f}" if by_reward else f"{100 * figure:.1f}"]
            if has_interval:
                low, high = model["interval"]
                shown.append(f"{100 * low:.1f} to {100 * high:.1f}")
            table.add_row(label, *shown, f"{model['examples']:,}", f"{model['seconds']:,.0f}")
    return table


def model_label(key: str, algorithm: str = "", *, test_best: bool = False) -> str:
    """What a model of a run is called in tables.

    Args:
        key: of `MODELS`.
        algorithm: of `rl_best`.
        test_best: whether it was chosen on the test set itself.

    Raises:
        KeyError: there is no such model or algorithm.
    """
    label = ALGORITHMS[algorithm] if key == "rl_best" else MODELS[key]
    if key.endswith("_best"):
        label += " test-best" if test_best else " best on dev"
    return label


def print_closing_table(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints `closing_table`; None prints to the standard output."""
    (console or Console()).print(closing_table(summary))


def closing_text(summary: Mapping[str, Any]) -> str:
    """`closing_table` as lines of text."""
    file = io.StringIO()
    print_closing_table(summary, Console(file=file, width=120))
    return file.getvalue().rstrip("\n")


def _live_line(console: Console) -> progress.Progress:
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=8),
        progress.MofNCompleteColumn(table_column=Column(no_wrap=True)),
        progress.TextColumn("ETA {task.fields[eta]}"),
        _FieldsColumn(),
        console=console,
        refresh_per_second=4,
    )


class _FieldsColumn(progress.ProgressColumn):
    """The metrics, on one line: the column that gives way where the terminal is narrow."""

    def render(self, task: progress.Task) -> Text:
        return Text(task.fields["fields"], no_wrap=True, overflow="ellipsis")
