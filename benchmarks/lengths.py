"""What one long question costs the iterations that it is in: PPO on a checkpoint's questions, with it and without.

    python -m benchmarks.lengths RUN_DIR/checkpoints/warmup LONG.jsonl [--iterations 6]

Two short runs from the checkpoint, of the same 256 questions in every iteration, all other settings the run's; in one
the shortest question gives its place to the longest of LONG.jsonl, rows as the run's own. On one core; an iteration's
CPU seconds are those from one call of a reward function to the next, and the least of them counts.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jsonargparse

from benchmarks.trainers import timed
from reft_jax.config import load_config
from reft_jax.data.tokenizers import load_tokenizer

QUESTIONS = 256


def iteration(checkpoint: Path, rows: list[dict[str, Any]], iterations: int) -> float:
    """CPU seconds of an iteration on these questions."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings: dict[str, Any] = {
            "config": checkpoint.parents[1] / "config.yaml",
            "run_dir": f"{folder}/run",
            "data.train.path": f"{folder}/train.jsonl",
            "data.test.kind": "none",
            "pretrain.epochs": 0,
            "sft.schedule_epochs": 0,
            "rl.init_from": checkpoint,
            "rl.epochs": iterations,
            "rl.rollout_batch_size": QUESTIONS,
            "rl.evaluate_every": 1000,
            "rl.save_every": 1000,
            "generation.prompt_buckets": "auto",
            "reward.functions": json.dumps({"benchmarks.trainers.reward": 1}),
        }
        line = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        seconds, failure = timed([sys.executable, "-m", "reft_jax.train", *line], QUESTIONS, iterations)
    if not seconds:
        raise SystemExit(failure)
    return min(seconds)


def main(checkpoint: str, long: str, iterations: int = 6) -> None:
    """Measures and prints.

    Args:
        checkpoint: folder of RUN_DIR/checkpoints, of a run whose training questions are a JSONL file.
        long: file of the long question.
        iterations: of each run; the first does not count.
    """
    path = Path(checkpoint).resolve()
    config = load_config(["--config", str(path.parents[1] / "config.yaml")])
    source, tokenizer = config.data.train, load_tokenizer(str(path.parents[1] / "tokenizer"), "")
    count = lambda row: len(tokenizer(row[source.question_field])["input_ids"])
    read = lambda file: [json.loads(text) for text in Path(file).read_text().splitlines()]
    rows, longest = sorted(read(source.path), key=count), max(read(long), key=count)
    rows, tokens = rows[-QUESTIONS:], count(longest)
    short = max(map(count, rows))
    alone = iteration(path, rows, iterations)
    with_long = iteration(path, [longest, *rows[1:]], iterations)
    print(f"{QUESTIONS} questions of up to {short} tokens: {alone:.2f} CPU seconds an iteration")
    print(f"with one of {tokens} tokens: {with_long:.2f}, {with_long / alone:.2f} times")


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=True)
