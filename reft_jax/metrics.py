"""The records of a run: what each metric is called, where it is written, and how records are cut back on a resume.

The last stop of every batch: the loop hands over plain floats and nothing comes back. Process 0 writes, the others
only check names, so that a mistake stops all of them alike. All records carry `step`, the run's own count of steps
through all its stages, which is what a checkpoint is numbered by: a resume keeps the records up to its step.

    metrics.jsonl      one line a step: {"step": 12, "stage": "rl", "reward/mean": 0.41, ...}
    evaluations.jsonl  one line a problem of an evaluation
    rollouts.jsonl     one line a sampled completion
    tensorboard/       the scalars of metrics.jsonl once more

JSON has no number for what is not finite: such a float is written as the string "nan", "inf" or "-inf", which
Python's `float` reads back.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

RECORD_FILES = ("metrics.jsonl", "evaluations.jsonl", "rollouts.jsonl")
"""The files of a run directory that a resume cuts back; other JSONL files there are left alone."""


_PACKAGES = (
    *("reft_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("transformers", "tokenizers", "datasets", "numpy"),
)


class Metric(NamedTuple):
    """What a metric is measured in, and what it says."""

    unit: str
    meaning: str


_OUTCOMES = {
    "correct": "whose answer is right",
    "wrong": "with an answer that is not right",
    "no_answer": "in which no answer can be read",
    "error": "whose program does not parse or raises an exception",
    "timeout": "whose program ran out of time",
    "memory": "whose program ran out of memory",
    "forbidden": "whose program tried what the sandbox refuses",
    "deadline": "whose program had not run when the time of its batch was over",
}
_SUSPECT = "with a sign of reward hacking: right in spite of a wrong equation, or a letter that was not computed"


def _reading(split: str, name: str) -> dict[str, Metric]:
    """The metrics of one greedy evaluation; `split` prefixes their names."""
    return {
        f"{split}/accuracy": Metric("share", f"{name} problems whose greedy answer is right"),
        f"{split}/interval_low": Metric("share", f"Low end of the 95 % Wilson interval of `{split}/accuracy`"),
        f"{split}/interval_high": Metric("share", f"High end of the 95 % Wilson interval of `{split}/accuracy`"),
        f"{split}/truncated": Metric("share", f"{name} completions cut at the longest response"),
        **{
            f"{split}/outcome_{outcome}": Metric("share", f"{name} completions {meaning}")
            for outcome, meaning in _OUTCOMES.items()
        },
        f"{split}/suspect": Metric("share", f"{name} completions {_SUSPECT}"),
    }


METRICS: Mapping[str, Metric] = {
    "pretrain/loss": Metric("nats per token", "Cross-entropy of the targets of the step"),
    "pretrain/tokens": Metric("tokens", "Target tokens trained on in the step"),
    "sft/loss": Metric("nats per token", "Cross-entropy of the targets of the step"),
    "sft/tokens": Metric("tokens", "Target tokens trained on in the step"),
    "reward_model/loss": Metric("nats per completion", "Cross-entropy of the labels of the step, right or wrong"),
    "reward_model/accuracy": Metric("share", "Completions of the step that are told right from wrong"),
    "rerank/accuracy": Metric("share", "Dev questions whose likeliest completion is right, by the reward model"),
    "rerank/interval_low": Metric("share", "Low end of the 95 % Wilson interval of `rerank/accuracy`"),
    "rerank/interval_high": Metric("share", "High end of the 95 % Wilson interval of `rerank/accuracy`"),
    "rerank/vote": Metric("share", "Dev questions whose most frequent answer is right"),
    "rerank/upper_bound": Metric("share", "Dev questions with a right completion, which no choice can surpass"),
    "rerank/classified": Metric("share", "Unique completions of dev questions that are told right from wrong"),
    "rl/policy_loss": Metric("1", "Clipped surrogate loss of the policy"),
    "rl/value_loss": Metric("reward squared", "Half the clipped squared error of the values, before `vf_coef`"),
    "rl/kl_loss": Metric("nats per token", "KL to the reference as a part of the loss, before `kl_coef`"),
    "rl/sampled_loss": Metric("nats per token", "Self-training: cross-entropy of the right completions"),
    "rl/gold_loss": Metric("nats per token", "Self-training: cross-entropy of the annotations of the same questions"),
    "rl/total_loss": Metric("1", "What is minimised: the losses above, weighted"),
    "rl/kl_k1": Metric("nats per token", "KL of the sampling policy from the reference; estimator k1, may be below 0"),
    "rl/kl_k3": Metric("nats per token", "KL of the sampling policy from the reference; estimator k3, never below 0"),
    "rl/sequence_kl": Metric("nats per response", "k1 summed over each response, mean over responses"),
    "rl/kl_max": Metric("nats", "Largest absolute k1 of a token in the step"),
    "rl/log_ratio_max": Metric("nats", "Largest absolute log(new probability / old probability) of a token"),
    "rl/log_ratio_mean": Metric("nats per token", "Mean absolute log(new probability / old probability)"),
    "rl/ratio_mean": Metric("1", "Mean over tokens of new probability / old probability"),
    "rl/clip_fraction": Metric("share", "Tokens whose ratio lies outside 1 +- `clip_range`"),
    "rl/entropy": Metric("nats per token", "Entropy of the policy's next-token distribution"),
    "rl/explained_variance": Metric("1", "1 - Var(return - value) / Var(return) over tokens; 1 is a perfect critic"),
    "rl/advantage_mean": Metric("reward", "Mean advantage over tokens, before whitening"),
    "rl/value_mean": Metric("reward", "Mean value over tokens"),
    "rl/return_mean": Metric("reward", "Mean return over tokens: advantage plus value, KL penalty included"),
    "rl/sampler_gap": Metric("nats per token", "Mean absolute difference of log-probs between sampler and trainer"),
    "rl/sampler_gap_max": Metric("nats", "Largest absolute difference of a token's log-prob between the two"),
    "optimizer/gradient_norm": Metric("1", "Global L2 norm of the gradient before clipping"),
    "optimizer/learning_rate": Metric("1", "Learning rate of the step"),
    "reward/mean": Metric("reward", "Mean reward of the sampled completions, without the KL penalty"),
    "reward/correct": Metric("share", "Sampled completions whose answer is right"),
    **{f"reward/outcome_{key}": Metric("share", f"Sampled completions {value}") for key, value in _OUTCOMES.items()},
    "reward/suspect": Metric("share", f"Sampled completions {_SUSPECT}"),
    "reward/function/*": Metric(
        "reward", "Mean of a reward function of your own, named as its import path ends (all of it where two end alike)"
    ),
    "response/length_mean": Metric("tokens", "Mean length of the sampled completions, end token included"),
    "response/truncated": Metric("share", "Sampled completions cut at the longest response"),
    **_reading("eval", "Dev"),
    **_reading("test", "Test"),
    "throughput/rollout_tokens_per_s": Metric("tokens/s", "Response tokens sampled, padding not counted"),
    "throughput/update_tokens_per_s": Metric(
        "tokens/s", "Response tokens of updates, padding not counted, every pass counted"
    ),
    "throughput/train_tokens_per_s": Metric(
        "tokens/s", "Prompt and target tokens of supervised steps, and of the reward model's"
    ),
    "time/rollout_s": Metric("s", "Sampling of the step's completions"),
    "time/reward_s": Metric("s", "Decoding and judging of the completions"),
    "time/experience_s": Metric("s", "Scoring by old policy and reference, advantages and returns"),
    "time/update_s": Metric("s", "Optimizer steps"),
    "time/evaluation_s": Metric("s", "One evaluation, programs included"),
    "time/step_s": Metric("s", "The whole step"),
    "run/compilations": Metric("count", "Programs compiled by this process since it started"),
    "run/workers_replaced": Metric("count", "Program workers of process 0 that died at work since it started"),
    "run/epoch": Metric("epochs", "Passes over the stage's data so far"),
    "run/examples": Metric("sequences", "Sequences trained on in the stage so far, every pass counted"),
}
"""Every metric that may be written: the only place where names are defined; `docs/metrics.md` says the same."""


class MetricsWriter:
    """Appends a run's records to its folder, and cuts back what an earlier, interrupted attempt left there.

    Args:
        run_dir: the run's folder; made where it is missing.
        write: whether this process writes (process 0 does); the others only check what they are given.
        tensorboard: write TensorBoard event files too.
        resume_step: step of the checkpoint that the run continues from; records after it are removed. None begins the
            run afresh: records left by an attempt that was interrupted before its first checkpoint are all removed.
        evaluated: whether that checkpoint was written after its step's evaluation; if not, this one's records are
            removed too.

    Raises:
        ValueError: a record file holds a line that cannot be read (see `cut_back`).
    """

    def __init__(
        self, run_dir: Path, *, write: bool, tensorboard: bool, resume_step: int | None, evaluated: bool = True
    ) -> None:
        self._run_dir = run_dir
        self._writes = write
        self._board: Any = None
        if not write:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        last_step = -1 if resume_step is None else resume_step
        for name in RECORD_FILES:
            cut_back(run_dir / name, last_step, evaluated=evaluated)
        if tensorboard:
            # Imported here, for it takes seconds: it pulls in torch where that is installed.
            from tensorboardX import SummaryWriter

            # The suffix keeps a quick restart from reopening the old file, which is named by the second.
            self._board = SummaryWriter(
                str(run_dir / "tensorboard"),
                purge_step=last_step + 1,
                flush_secs=10,
                filename_suffix=f".from_step_{last_step + 1}",
            )

    def write(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Appends one line to `metrics.jsonl`, and the scalars to TensorBoard.

        Args:
            step: the run's step, counted through all stages.
            stage: such as `sft` or `rl`.
            metrics: numbers by their names in `METRICS`.

        Raises:
            KeyError: a name is not in `METRICS`.
        """
        unknown = sorted(name for name in set(metrics) - set(METRICS) if not name.startswith("reward/function/"))
        if unknown:
            raise KeyError(
                f"undocumented metric {', '.join(unknown)}: define it in METRICS (reft_jax/metrics.py) "
                "and in the table of docs/metrics.md"
            )
        if not self._writes:
            return
        values = {name: float(value) for name, value in metrics.items()}
        append_records(self._run_dir / "metrics.jsonl", [{"step": step, "stage": stage, **values}])
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def append(self, kind: Literal["evaluations", "rollouts"], records: Sequence[Mapping[str, object]]) -> None:
        """Appends records, each with its `step`, to `evaluations.jsonl` or `rollouts.jsonl` (see `append_records`)."""
        if self._writes:
            append_records(self._run_dir / f"{kind}.jsonl", records)

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Writes `summary.json`, which says that the run is finished; it is there as a whole or not at all."""
        if self._writes:
            partial = self._run_dir / "summary.partial"
            partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            partial.replace(self._run_dir / "summary.json")

    def flush(self) -> None:
        """Forces records to the disk: called before a checkpoint is committed, so that none before it is lost."""
        if not self._writes:
            return
        for name in RECORD_FILES:
            path = self._run_dir / name
            if path.exists():
                with path.open("ab") as file:
                    os.fsync(file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flushes and ends writing; nothing may be written afterwards."""
        self.flush()
        self._writes = False
        if self._board is not None:
            self._board.close()
            self._board = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def append_records(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Appends one JSON line a record; a float that is not finite becomes "nan", "inf" or "-inf", at any depth.

    Raises:
        ValueError: a record has no integer `step`; nothing is written then.
    """
    lines = []
    for record in records:
        if not isinstance(record.get("step"), int):
            raise ValueError(f"{path}: record without an integer step: {record!r:.200}; give it the run's step")
        lines.append(json.dumps(json_value(record), allow_nan=False) + "\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def cut_back(path: Path, step: int, *, evaluated: bool = True) -> int:
    """Removes the records after `step` from a JSONL file, and a last line that an interruption tore.

    Where the step was not `evaluated`, the records of its evaluation are removed as well.

    The file is replaced as a whole, so that an interruption here loses nothing. A missing file is left missing.

    Returns:
        How many lines were removed.

    Raises:
        ValueError: a line other than a torn last one is not a JSON object with an integer `step`.
    """
    if not path.exists():
        return 0
    removed = 0
    partial = path.with_name(path.name + ".partial")
    with path.open("rb") as source, partial.open("wb") as kept:
        for number, line in enumerate(source, start=1):
            record = _record(line, f"{path}, line {number}")
            if record is not None and (record["step"], _of_evaluation(record)) <= (step, evaluated):
                # The last record may be whole and lack only its line break.
                kept.write(line.rstrip(b"\n") + b"\n")
            else:
                removed += 1
        kept.flush()
        os.fsync(kept.fileno())
    os.replace(partial, path)
    return removed


def _record(line: bytes, where: str) -> dict[str, Any] | None:
    """The record of a line; None where the line is torn: not JSON, and without its line break."""
    try:
        record = json.loads(line)
    except ValueError as error:  # JSON that is broken, or a character that is
        if not line.endswith(b"\n"):
            return None
        raise ValueError(f"{where}: not JSON ({error}); mend or delete this line and start again") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError(f"{where}: not a record with an integer step; mend or delete this line and start again")
    return record


def _of_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether a record was made by the evaluation after its step."""
    return "split" in record or "eval/accuracy" in record or "rerank/accuracy" in record


def json_value(value: object) -> object:
    """`value` with each float that JSON cannot hold replaced by its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return value


def run_info() -> dict[str, Any]:
    """What a run is made with; neither host name nor environment.

    Returns:
        `versions` (package: version, None where it is not installed), `python`, `platform` (such as `Linux x86_64`),
        and of the git checkout that this package is in, None where it is in none: `commit`, and `dirty`, whether
        files differ from the commit or are not in it.
    """
    commit, dirty = git_state(Path(__file__))
    return {
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit,
        "dirty": dirty,
    }


def git_state(file: Path) -> tuple[str | None, bool | None]:
    """The commit of the git checkout that tracks `file`, and whether the checkout differs from it; None without one."""
    # A file that merely lies inside a checkout, as site-packages may, is none of that checkout's.
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None, None
    commit = _git(file.parent, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, None
    return commit, _git(file.parent, "status", "--porcelain") != ""


def _git(directory: Path, *arguments: str) -> str | None:
    """What git prints, stripped; None where git is missing or says no."""
    try:
        done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
