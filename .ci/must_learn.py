"""`must_learn.py RUN_DIR`: fails unless a run of `.ci/short.yaml` has learned what it should.

Seeds 1, 2 and 3 reach 0.574, 0.394 and 0.648 after the warm-up, gain 0.094, 0.104 and 0.054 by reinforcement, and their
samples 0.369, 0.309 and 0.367; CI runs seed 1. Without learning each is 0.
"""

import json
import sys
from pathlib import Path

WARMUP = 0.30  # accuracy on test after the warm-up; 0 without it
GAIN = 0.03  # of the best model on dev over the warm-up, on test
SAMPLED = 0.20  # share of right samples, last eight iterations over the first


def shortfalls(run_dir: Path) -> list[str]:
    """What the run lacks, a line each; prints what it has."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    right = [record["reward/correct"] for record in records if "reward/correct" in record]
    warmup, best = summary["warmup"]["accuracy"], summary["rl_best"]["accuracy"]
    figures = (
        ("test accuracy after the warm-up", warmup, WARMUP),
        ("gain of reinforcement on test", best - warmup, GAIN),
        ("gain of the share of right samples", sum(right[-8:]) / 8 - right[0], SAMPLED),
    )
    for name, value, least in figures:
        print(f"{name}: {value:.3f}, at least {least}")
    return [name for name, value, least in figures if not value >= least]


if __name__ == "__main__":
    if missed := shortfalls(Path(sys.argv[1])):
        sys.exit(f"error: the learner is broken: too low are the {', the '.join(missed)}")
