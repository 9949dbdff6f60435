"""Was the probe right? What it says of warm-ups, beside what runs from the same warm-ups then gained.

    python -m benchmarks.probe_check --out runs/probe-check --data DIR    # without --data REFT_DATA is DIR

Makes the warm-ups of some seeds of docs/real.md and docs/study.md, which take pretraining and SFT alone, and probes
each. Prints for docs/probe.md a table of what the probe said, and the gains over the warm-up that those pages have. The
same command goes on where it stopped.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from benchmarks import real, study
from benchmarks.runs import data_folder, once, table, train
from benchmarks.word_problems import prepare
from reft_jax.config.files import read_yaml

PAGES = {"real": ("docs/real.md", "held-out, %"), "study": ("docs/study.md", "greedy accuracy on test, %")}
"""Where the gains stand: a page, and how its table is headed."""
SHOWN = (("REINFORCE", 1), ("constant baseline", 1), ("RLOO, Dr. GRPO", 4), ("GRPO", 4), ("MaxRL", 4))
"""Algorithms and samples of a question whose ratio is shown."""


def warm_ups(out: Path, data: Path, seeds: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int, Path]]:
    """Yields page, seed and checkpoint; trains what is not there yet."""
    if seeds["real"]:
        made = prepare(data, out / "data")
        whole = real.Study(out, seeds["real"], (), real.CONFIG, 400, made)
        whole.pretrain()
        stop = {"sft.stop_epoch": read_yaml(real.CONFIG)["sft"]["warmup_epoch"]}
        for seed in seeds["real"]:
            made.annotate(seed, whole.annotated)
            whole.train(whole.folder(seed), "warmup", {**whole.begin(seed), "rl.epochs": 0, **stop})
            yield "real", seed, whole.folder(seed) / "warmup/checkpoints/warmup"
    stop = {"sft.stop_epoch": read_yaml(Path(study.CONFIG))["sft"]["warmup_epoch"]}
    for seed in seeds["study"]:
        train(out / f"study-{seed}", "warmup", (study.CONFIG,), {"seed": seed, "rl.epochs": 0, **stop})
        yield "study", seed, out / f"study-{seed}/warmup/checkpoints/warmup"


def probed(checkpoint: Path, reward: float) -> dict[str, Any]:
    """What `reft probe` says, with all gradients."""
    found = checkpoint.parents[2] / "probe.json"
    given = ("--gradient_samples", 1024, "--reward.wrong", reward, "--json", found)
    once(found.with_suffix(".log"), "reft_jax.probe", checkpoint, *given)
    return dict(json.loads(found.read_text(encoding="utf-8")))


def gains(page: str, head: str, seed: int) -> dict[str, float]:
    """Of each model of the page's table, by its label, the points beyond the warm-up."""
    lines = iter(Path(page).read_text(encoding="utf-8").splitlines())
    cells = lambda line: [cell.strip(" *") for cell in line.strip("|").split("|")]
    heads = next(found for found in map(cells, lines) if found[0] == head)
    next(lines)
    column, found = heads.index(f"seed {seed}"), {}
    for line in lines:
        if not line.startswith("|"):
            break
        found[cells(line)[0]] = float(cells(line)[column].split()[0])
    return {label: value - found["warm-up"] for label, value in found.items() if label != "warm-up"}


def main(
    out: Path = Path("runs/probe-check"),
    data: Path | None = None,
    real_seeds: tuple[int, ...] = (61, 62),
    study_seeds: tuple[int, ...] = (31, 32),
    reward: float = 0.0,
) -> None:
    """Prints the table and the gains.

    Args:
        out: folder of the runs.
        data: folder of the downloaded files; left out it is REFT_DATA.
        real_seeds: of docs/real.md.
        study_seeds: of docs/study.md.
        reward: of a wrong answer, for the probe; without a baseline it matters, and the best arms have 0.
    """
    said, gained = [], []
    try:
        made = list(warm_ups(out, data_folder(data), {"real": real_seeds, "study": study_seeds}))
    except FileNotFoundError as error:
        sys.exit(str(error))
    for page, seed, checkpoint in made:
        found, name = probed(checkpoint, reward), f"{page} {seed}"
        ratios = {(row["algorithm"], row["samples"]): row for row in found["gradients"]}
        shares = [found["pass"]["1"]["value"], found["pass"]["8"]["value"], found["without_signal"]["4"]]
        cells = [f"{row['ratio']:.2f} ± {row['error']:.2f}" for row in (ratios[key] for key in SHOWN)]
        said.append([name, *(f"{100 * share:.0f}" for share in shares), *cells])
        gained.append(f"- {name}: " + "; ".join(f"{k} {v:+.1f}" for k, v in gains(*PAGES[page], seed).items()))
        print("\n".join(f"{name}: {line}" for line in found["advice"]), file=sys.stderr)
    heads = [f"{name}, {n}" for name, n in SHOWN]
    print("\n".join([*table(["warm-up", "pass@1, %", "pass@8, %", "alike at 4, %", *heads], said), "", *gained]))


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
