"""The table and picture of docs/results.md: the quickstart with several seeds, warm-up, SFT and ReFT on the test set.

    python -m benchmarks.seeds --out runs/seeds --seeds '[11,12,13,14,15]'      # trains what is not there yet
    python -m benchmarks.seeds --out runs/seeds --figure docs/learning_curve.svg

Each seed is a run directory under OUT, made by `python -m reft_jax.train`; runs that are finished are only read.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonargparse

MODELS = {"warmup": "warm-up", "sft": "SFT continued", "sft_best": "SFT best on dev", "rl_best": "ReFT"}


def table(summaries: Mapping[int, Mapping[str, Any]]) -> str:
    """Test accuracies in per cent as a Markdown table: a column a seed, and the mean."""
    lines = ["| test accuracy, % | " + " | ".join(f"seed {seed}" for seed in summaries) + " | mean |"]
    lines.append("|---|" + "---|" * (len(summaries) + 1))
    for key, label in MODELS.items():
        values = [100 * summary[key]["accuracy"] for summary in summaries.values()]
        lines.append(f"| {label} | " + " | ".join(f"{v:.1f}" for v in (*values, statistics.mean(values))) + " |")
    return "\n".join(lines)


def draw(runs: Mapping[int, Path], path: Path) -> None:
    """Dev accuracy over sequences trained on: SFT to its end, and ReFT from the warm-up on, one line a seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "reft_jax"  # the same file for the same runs
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for i, run in enumerate(runs.values()):
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        trained: dict[str, int] = {}
        curves: dict[str, list[tuple[int, float]]] = {"sft": [], "rl": []}
        warmup = json.loads((run / "summary.json").read_text(encoding="utf-8"))["warmup"]["examples"]
        for record in records:
            stage = record["stage"]
            trained[stage] = record.get("run/examples", trained.get(stage, 0))
            if "eval/accuracy" in record and stage in curves:
                offset = warmup if stage == "rl" else 0
                curves[stage].append((offset + int(trained[stage]), 100 * record["eval/accuracy"]))
        curves["rl"].insert(0, next(point for point in curves["sft"] if point[0] >= warmup))
        for stage, colour, label in (("sft", "tab:blue", "SFT"), ("rl", "tab:orange", "ReFT")):
            axes.plot(*zip(*curves[stage]), color=colour, alpha=0.7, marker=".", label=label if i == 0 else None)
    axes.set(xlabel="sequences trained on", ylabel="dev accuracy, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main(out: Path, seeds: tuple[int, ...] = (11, 12, 13, 14, 15), figure: Path | None = None) -> None:
    """Trains the seeds that are missing, prints the table, and draws the figure if one is named.

    Args:
        out: folder of the run directories.
        seeds: one run each.
        figure: SVG file to draw.
    """
    runs = {seed: out / f"seed-{seed}" for seed in seeds}
    for seed, run in runs.items():
        command = [sys.executable, "-m", "reft_jax.train", "--config", "configs/quickstart.yaml"]
        subprocess.run([*command, "--seed", str(seed), "--run_dir", str(run)], check=True)
    summaries = {s: json.loads((run / "summary.json").read_text(encoding="utf-8")) for s, run in runs.items()}
    print(table(summaries))
    if figure is not None:
        draw(runs, figure)


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
