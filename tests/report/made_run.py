"""A run's folder as a run leaves it, made of numbers that the tests know, without training anything."""

import json
import random
from pathlib import Path
from typing import Any

from reft_jax.records.records import append_records
from reft_jax.samples.statistics import wilson_interval

SFT, RL = 40, 20  # steps; the warm-up ends after half of the first
MODELS = {"warmup": 0.4, "sft": 0.5, "sft_best": 0.55, "rl_best": 0.7}  # how likely a right answer is
OUTCOMES = ("wrong", "no_answer", "error", "timeout")
DETAILS = {
    "error": ("ZeroDivisionError: division by zero", "NameError: name 'x' is not defined"),
    "timeout": ("more than 2 s",),
}


def question(number: int, split: str) -> dict[str, Any]:
    return {"id": f"{split}_{number}", "question": f"How many are {number} and {split}?", "gold": str(number)}


def completion(draw: random.Random, number: int, split: str, right: float) -> dict[str, Any]:
    """One record of `evaluations.jsonl` or `rollouts.jsonl`, but for step, split and model."""
    correct = draw.random() < right
    outcome = "correct" if correct else draw.choice(OUTCOMES)
    detail = draw.choice(DETAILS.get(outcome, ("",)))
    value = number if correct else number + 1 if outcome == "wrong" else None
    return {
        **question(number, split),
        "answer_kind": "number",
        "completion": f"def solution():\n    return {value}  # {draw.random()}",
        "reward": 1.0 if correct else 0.1 if outcome == "wrong" else 0.0,
        "outcome": outcome,
        "value": value,
        **({"detail": detail} if detail else {}),
        "suspicious": draw.choice((None, False, True)),
        "tokens": draw.randint(3, 30),
        "ended": draw.random() < 0.9,
    }


def per_token(draw: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """A completion cut into tokens, with numbers of both signs; the last is no finite number."""
    head, rest = row["completion"][:16], row["completion"][16:]
    texts = [rest[at : at + 4] for at in range(0, len(rest), 4)] + ["<end>"]
    numbers = lambda scale: [round(draw.gauss(0, scale), 4) for _ in texts]
    scores = {
        "value": [abs(x) for x in numbers(0.5)],
        "advantage": numbers(1),
        "log_ratio": [*numbers(0.1)[:-1], "nan"],
    }
    return {"head": head, "text": texts, **scores}


def make_run(
    path: Path,
    *,
    seed: int = 1,
    dev: int = 12,
    test: int = 30,
    sampled: int = 8,
    finished: bool = True,
    rl: int = RL,
    settings: dict[str, Any] | None = None,
    text: str = "",
    ask: str = "",
) -> Path:
    """Writes the folder; `text` is put behind every completion, `ask` behind every question."""
    draw = random.Random(seed)
    path.mkdir(parents=True)
    config = {
        "run_dir": str(path),
        "seed": seed,
        "sft": {"warmup_epoch": 2, "stop_epoch": 4},
        "rl": {"algorithm": "ppo"},
    }
    for key, value in (settings or {}).items():
        section, _, name = key.partition(".")
        config.setdefault(section, {})[name] = value
    (path / "config.yaml").write_text(json.dumps(config))
    hardware = {"device": "cpu", "devices": 1, "processes": 1, "mesh": {"data": 1}, "host": "A Processor", "cores": 2}
    attempt = {"started": "2026-01-01T10:00:00Z", "ended": "2026-01-01T10:20:00Z" if finished else None}
    info = {"command": f"python -m reft_jax.train --seed {seed}", "versions": {"jax": "0.10"}, "python": "3.11"}
    info |= {"platform": "Linux", "commit": "c" * 40, "dirty": False}
    info["attempts"] = [{**attempt, "hardware": {**hardware, "memory_gb": 8.0}}]
    (path / "run.json").write_text(json.dumps(info))

    def record(file: str, *records: dict[str, Any]) -> None:
        append_records(path / f"{file}.jsonl", records)

    def judged(step: int, split: str, model: str, count: int, right: float) -> dict[str, float]:
        rows = [completion(draw, number, split, right) for number in range(count)]
        for row in rows:
            row["completion"] += text
            row["question"] += ask
        if split == "train":
            for row in rows[:2]:
                row["per_token"] = per_token(draw, row)
        labels = {"step": step} if split == "train" else {"step": step, "split": split, "model": model}
        record("rollouts" if split == "train" else "evaluations", *({**labels, **row} for row in rows))
        correct = sum(row["outcome"] == "correct" for row in rows)
        low, high = wilson_interval(correct, count)
        shares = {f"outcome_{name}": sum(r["outcome"] == name for r in rows) / count for name in ("correct", *OUTCOMES)}
        mean = sum(row["reward"] for row in rows) / count
        return {"accuracy": correct / count, "interval_low": low, "interval_high": high, "reward_mean": mean, **shares}

    def step_metrics(step: int, epoch: float, examples: int) -> dict[str, float]:
        return {
            "optimizer/gradient_norm": draw.random(),
            "optimizer/learning_rate": 0.1,
            "time/step_s": 1.0 + step / 100,
            "run/epoch": epoch,
            "run/examples": examples,
        }

    read: dict[int, dict[str, float]] = {}

    def evaluate(step: int, stage: str, right: float) -> None:
        read[step] = judged(step, "dev", stage, dev, right)
        metrics = {f"eval/{name}": value for name, value in read[step].items()}
        record("metrics", {"step": step, "stage": stage, **metrics, "time/evaluation_s": 0.5})

    for step in range(1, SFT + 1):
        own = {"sft/loss": 1 / step, "throughput/train_tokens_per_s": 100.0}
        record("metrics", {"step": step, "stage": "sft", **own, **step_metrics(step, step / 10, 16 * step)})
        if step % 10 == 0:
            evaluate(step, "sft", 0.4)
    for iteration in range(1, rl + 1):
        step = SFT + iteration
        shares = judged(step, "train", "rl", sampled, 0.3 + iteration / 40)
        own = {
            "reward/mean": shares["reward_mean"],
            "reward/correct": shares["accuracy"],
            **{f"reward/outcome_{name}": shares[f"outcome_{name}"] for name in OUTCOMES if shares[f"outcome_{name}"]},
            "rl/sequence_kl": iteration / 10,
            "rl/entropy": 1 / iteration,
            "rl/explained_variance": float("nan") if iteration == 1 else 0.5,
            "time/rollout_s": 0.4,
            "time/reward_s": 0.1,
            "time/experience_s": 0.2,
            "time/update_s": 0.3,
        }
        record("metrics", {"step": step, "stage": "rl", **own, **step_metrics(step, iteration / 10, 32 * iteration)})
        if iteration % 5 == 0:
            evaluate(step, "rl", 0.6)
    best = {}
    for name, stage in (("sft_best", range(10, SFT + 1, 10)), ("rl_best", range(SFT + 5, SFT + rl + 1, 5))):
        if stage:
            best[name] = max(stage, key=lambda step: (read[step]["accuracy"], -step))
            (path / "checkpoints").mkdir(exist_ok=True)
            (path / "checkpoints" / name).symlink_to(f"{name}_step_{best[name]}")
    if not finished:
        return path
    summary: dict[str, Any] = {}
    for name, right in MODELS.items():
        if name == "rl_best" and not rl:
            continue
        facts = {"examples": 7, "seconds": 3.5, **({"step": best[name]} if name in best else {})}
        facts |= {"algorithm": "ppo"} if name == "rl_best" else {}
        if test:
            shares = judged(SFT + rl + 1, "test", name, test, right)
            record(
                "metrics",
                {"step": SFT + rl + 1, "stage": name, **{f"test/{name}/{key}": v for key, v in shares.items()}},
            )
            facts |= {"accuracy": shares["accuracy"], "interval": [shares["interval_low"], shares["interval_high"]]}
            facts |= {"correct": round(shares["accuracy"] * test), "total": test}
        summary[name] = facts
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def lines(path: Path, name: str) -> list[dict[str, Any]]:
    """The records of a file, read by another reader than the package's."""
    return [json.loads(line) for line in (path / f"{name}.jsonl").read_text().splitlines()]
