"""The table and picture of docs/results.md: the quickstart with several seeds, warm-up, SFT and ReFT on the test set.

    python -m benchmarks.seeds --out runs/seeds --seeds '[11,12,13,14,15]'      # trains what is not there yet
    python -m benchmarks.seeds --out runs/seeds --figure docs/learning_curve.svg

Each seed is a run directory under OUT, made by `python -m reft_jax.train`; runs that are finished are only read.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
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


Curve = list[tuple[int, float]]
"""Sequences trained on, and dev accuracy in per cent."""


def curves(run: Path) -> dict[str, Curve]:
    """SFT to its end, and ReFT from the warm-up on, by stage."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained: dict[str, int] = {}
    found: dict[str, Curve] = {"sft": [], "rl": []}
    warmup = json.loads((run / "summary.json").read_text(encoding="utf-8"))["warmup"]["examples"]
    for record in records:
        stage = record["stage"]
        trained[stage] = record.get("run/examples", trained.get(stage, 0))
        if "eval/accuracy" in record and stage in found:
            offset = warmup if stage == "rl" else 0
            found[stage].append((offset + int(trained[stage]), 100 * record["eval/accuracy"]))
    found["rl"].insert(0, next(point for point in found["sft"] if point[0] >= warmup))
    return found


def draw(runs: Sequence[Mapping[str, Curve]], path: Path) -> None:
    """Dev accuracy over sequences trained on: a method's mean over the seeds as a line, least and most as a band."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "reft_jax"  # the same file for the same runs
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for stage, colour, label in (("sft", "tab:blue", "SFT"), ("rl", "tab:orange", "ReFT")):
        trained = [x for x, _ in runs[0][stage]]
        seeds = list(zip(*([y for _, y in run[stage]] for run in runs)))
        mean = [statistics.mean(values) for values in seeds]
        axes.fill_between(trained, list(map(min, seeds)), list(map(max, seeds)), color=colour, alpha=0.2, linewidth=0)
        axes.plot(trained, mean, color=colour, marker=".")
        axes.annotate(label, (trained[-1], mean[-1]), xytext=(8, -4), textcoords="offset points", color=colour)
    axes.set(xlabel="sequences trained on", ylabel="dev accuracy, %", ylim=(0, 100))
    axes.set_title(f"Embedded problems: mean of {len(runs)} seeds; the bands are the least and the most", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)
    figure.savefig(path, metadata={"Date": None}, transparent=True)
    path.write_text(for_both_themes(path.read_text(encoding="utf-8")), encoding="utf-8")


def for_both_themes(svg: str) -> str:
    """A picture without a background, whose black is white where the page is dark; colours keep their hue."""
    dark = "@media (prefers-color-scheme: dark) { svg { filter: invert(1) hue-rotate(180deg) } }"
    head, tag, rest = svg.partition("<defs>")
    return f"{head}<style>{dark}</style>\n {tag}{rest}"


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
        draw([curves(run) for run in runs.values()], figure)


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
