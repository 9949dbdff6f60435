"""Does reinforcement pay on real questions? Few annotations, many answers; written to docs/real.md by this command.

    python -m benchmarks.real --out runs/real --data DIR          # `make real`; without --data REFT_DATA is DIR

A model of half a million parameters learns questions and programs from GSM8K's with other numbers (`word_problems`),
then SVAMP's: SFT on a seed's 400 annotated questions, and from its warm-up, arm by arm, reinforcement on all answers.
The package's own commands do it, each on a core of its own. The same command goes on where it stopped; the page has
what is finished, and is written again after each run.
"""

import dataclasses
import functools
import importlib.metadata
import math
import statistics
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jsonargparse

from benchmarks.runs import (
    Arm,
    Costs,
    arms_told,
    choose,
    costs,
    data_folder,
    iterations,
    mean_with_interval,
    once,
    paragraph,
    processor,
    read_lines,
    summary,
    table,
    train,
)
from benchmarks.study import Jobs
from benchmarks.word_problems import HEADER, VERSIONS, Prepared, prepare
from reft_jax.config.files import read_yaml
from reft_jax.files import write_whole
from reft_jax.samples.statistics import sign_test

CONFIG = Path(__file__).with_suffix(".yaml")
LAST = 8  # iterations over which the end of a run is averaged


NO_PRETRAINING: Mapping[str, Any] = {"pretrain.epochs": 0, "pretrain.source.kind": "none"}
NEW_CRITIC: Mapping[str, Any] = {
    "reward.wrong": 0.0,
    "rl.kl_coef": 0.0,
    "rl.gae_lambda": 1.0,
    "rl.whiten_advantages": "false",
    "rl.vf_coef": 1.0,
    "rl.critic_optimizer.learning_rate": 0.002,
    "rl.negative_weight": 0.1,
}
"""Over `detached_critic`: rewards reach the first token of their response, advantages stay as they are, and those below
0 count a tenth."""

ARMS = (
    Arm("steady", "steady: right completions alone", ("overlays/steady",)),
    Arm("ppo", "PPO as the paper has it", (), {"rl.update_epochs": 1, "rl.optimizer.learning_rate": 0.0005}),
    Arm("detached", "PPO, new critic", ("overlays/detached_critic",), NEW_CRITIC),
    Arm(
        "grpo",
        "GRPO, 4 samples a question",
        (),
        {
            "rl.algorithm": "grpo",
            "rl.rollout_batch_size": 64,
            "rl.samples_per_question": 4,
            "rl.epochs": 2,
            "rl.kl_in": "loss",
            "rl.kl_estimator": "k3",
        },
    ),
    Arm("online", "online self-training", (), {"rl.algorithm": "self_training", "rl.kl_coef": 0.0}),
)
"""Those that matter most first, since a command that is stopped has finished them."""

Model = tuple[str, str]
"""A run of a seed, and a model of it."""
SUPERVISED: Mapping[Model, str] = {
    ("sft", "warmup"): "warm-up",
    ("sft", "sft"): "SFT continued, its end",
    ("sft", "sft_best"): "SFT continued, best on dev",
}
BASELINE: Model = ("sft", "sft_best")

NAMES = tuple(arm.run for arm in ARMS)


@dataclasses.dataclass(frozen=True)
class Study:
    """Where everything is, and of what it is made."""

    out: Path
    seeds: Sequence[int]
    arms: Sequence[Arm]
    config: Path
    annotated: int
    prepared: Prepared

    def folder(self, seed: int) -> Path:
        """Of a seed's runs."""
        return self.out / f"seed-{seed}"

    def train(self, folder: Path, run: str, changes: Mapping[str, Any], overlays: Sequence[str] = ()) -> None:
        """Trains a run with this study's dev and test."""
        rows = {f"data.{split}.path": self.prepared.folder / f"{split}.jsonl" for split in ("dev", "test")}
        train(folder, run, (self.config, *overlays), {**rows, **changes})

    def pretrain(self) -> None:
        """Makes the model that all seeds start from, once, and exports it."""
        none = {f"data.{split}.kind": "none" for split in ("train", "dev", "test")}
        off = {"sft.schedule_epochs": 0, "rl.epochs": 0, "seed": 1}
        rows = {"pretrain.source.path": self.prepared.folder / "pretrain.jsonl"}
        self.train(self.out, "pretrain", {"model.tokenizer": self.prepared.tokenizer, **rows, **none, **off})
        made = self.out / "pretrain/checkpoints/pretrain"
        once(self.out / "base.log", "reft_jax.export", made, self.out / "base")

    def begin(self, seed: int) -> Mapping[str, Any]:
        """What a seed's runs share."""
        rows = self.prepared.folder / f"train-{seed}.jsonl"
        return {"seed": seed, "model.path": self.out / "base", "data.train.path": rows, **NO_PRETRAINING}

    def supervise(self, seed: int) -> None:
        """SFT to its end, the warm-up on its way."""
        self.prepared.annotate(seed, self.annotated)
        self.train(self.folder(seed), "sft", {**self.begin(seed), "rl.epochs": 0})

    def reinforce(self, seed: int, arm: Arm) -> None:
        """An arm, from the seed's warm-up."""
        start = {"sft.schedule_epochs": 0, "rl.init_from": self.folder(seed) / "sft/checkpoints/warmup"}
        self.train(self.folder(seed), arm.run, {**self.begin(seed), **start, **arm.changes}, arm.overlays)

    @functools.cached_property
    def labels(self) -> dict[Model, str]:
        """The models of the page."""
        return {**SUPERVISED, **{(arm.run, "rl_best"): arm.label for arm in self.arms}}

    def right(self, seed: int, model: Model, part: str) -> dict[str, bool] | None:
        """Which questions of a part of test a model answers right, by id; None where its run is not finished.

        A question that was too long to be asked is not answered right. A run of reinforcement that never read dev
        stands at its warm-up.
        """
        run, name = model
        folder = self.folder(seed) / run
        if (found := summary(folder)) is None:
            return None
        if name not in found:
            return self.right(seed, ("sft", "warmup"), part)
        rows = [r for r in read_lines(folder / "evaluations.jsonl") if (r["split"], r.get("model")) == ("test", name)]
        answered = {row["id"]: row["outcome"] == "correct" for row in rows}
        return {id: answered.get(id, False) for id in self.asked if (id.startswith("official_")) == (part == OFFICIAL)}

    @functools.cached_property
    def asked(self) -> list[str]:
        """Ids of the questions of test."""
        return [row["id"] for row in read_lines(self.prepared.folder / "test.jsonl")]


HELD_OUT, OFFICIAL = "held-out", "official test"


def accuracies(study: Study, part: str) -> list[str]:
    """The table of a part of test: a row a model, a column a seed, and what is beyond the baseline seed by seed."""
    rows = []
    for model, label in study.labels.items():
        cells, beyond, values = [], [], []
        for seed in study.seeds:
            own, base = study.right(seed, model, part), study.right(seed, BASELINE, part)
            cells.append("" if own is None else f"{share(own):.1f}")
            if own is not None and base is not None:
                values.append(share(own))
                beyond.append(share(own) - share(base))
        rest = ["", "", ""]
        if values:
            least = f"{min(beyond):+.1f} to {max(beyond):+.1f}"
            rest = [f"**{statistics.mean(values):.1f}**", mean_with_interval(beyond), least]
        rows.append([label, *cells, rest[0], *(("", "") if model == BASELINE else rest[1:])])
    heads = [f"{part}, %", *(f"seed {seed}" for seed in study.seeds), "mean", "beyond SFT", "least to most"]
    return table(heads, rows)


def share(right: Mapping[str, bool]) -> float:
    """In per cent."""
    return 100 * statistics.mean(right.values())


def verdict(study: Study) -> str:
    """Which arms are above the baseline on every seed that both have, and which are not."""
    above: list[str] = []
    others: list[str] = []
    for arm in study.arms:
        pairs = [
            (study.right(s, (arm.run, "rl_best"), HELD_OUT), study.right(s, BASELINE, HELD_OUT)) for s in study.seeds
        ]
        beyond = [share(own) - share(base) for own, base in pairs if own is not None and base is not None]
        if beyond:
            (above if min(beyond) > 0 else others).append(f"{arm.label} ({statistics.mean(beyond):+.1f})")
    return (
        f"On every seed above SFT continued: {'; '.join(above) or 'none'}. Not on every seed: "
        f"{'; '.join(others) or 'none'}. In brackets is the mean difference in points."
    )


def paired(study: Study, part: str) -> list[str]:
    """Gained and lost against the baseline on the same questions, with the sign test: each seed, and together."""
    rows = []
    for model, label in study.labels.items():
        if model in SUPERVISED:
            continue
        cells, all_gained, all_lost = [], 0, 0
        for seed in study.seeds:
            own, base = study.right(seed, model, part), study.right(seed, BASELINE, part)
            if own is None or base is None:
                cells.append("")
                continue
            gained = sum(own[id] and not base[id] for id in own)
            lost = sum(base[id] and not own[id] for id in own)
            cells.append(f"+{gained} -{lost}, {p_value(gained, lost)}")
            all_gained, all_lost = all_gained + gained, all_lost + lost
        rows.append([label, *cells, f"+{all_gained} -{all_lost}" if any(cells) else ""])
    return table([f"{part}: gained, lost, p", *(f"seed {seed}" for seed in study.seeds), "together"], rows)


def p_value(gained: int, lost: int) -> str:
    """Of the sign test, as it is written."""
    p = sign_test(gained, lost)
    return "p < 0.001" if p < 0.001 else f"p {p:.2g}"


ENDINGS = {
    "reward/correct": "right, %",
    "rl/entropy": "entropy, nats a token",
    "rl/sequence_kl": "KL, nats a response",
    "rl/explained_variance": "explained variance",
    "rl/right_pushed_down": "right pushed down, %",
}


def endings(study: Study) -> list[str]:
    """How the arms' runs end: means over their last iterations and the finished seeds; and what a run costs."""
    rows = []
    for arm in study.arms:
        finished = [seed for seed in study.seeds if summary(study.folder(seed) / arm.run) is not None]
        records = [iterations(study.folder(seed) / arm.run) for seed in finished]
        first = [record[0]["reward/correct"] for record in records]
        cells = [f"{100 * statistics.mean(first):.1f}"] if first else [""]
        for key in ENDINGS:
            values = [r[key] for record in records for r in record[-LAST:] if r.get(key) is not None]
            scale = 100 if ENDINGS[key].endswith("%") else 1
            cells.append(f"{scale * statistics.mean(values):.3g}" if values else "")
        spent = [costs(study.folder(seed) / f"{arm.run}.log").cpu_seconds for seed in finished]
        rows.append([arm.label, *cells, f"{statistics.mean(spent):.0f}" if spent else ""])
    return table(["", "right at first, %", *ENDINGS.values(), "seconds of a core"], rows)


def spent(study: Study) -> Costs:
    """What all commands of the study cost."""
    logs = [study.out / "pretrain.log", study.out / "base.log"]
    logs += [study.folder(seed) / f"{run}.log" for seed in study.seeds for run in ("sft", *(a.run for a in study.arms))]
    return sum(map(costs, logs), Costs())


def page(study: Study, workers: int) -> Iterator[str]:
    """Yields the lines of docs/real.md."""
    facts, settings, total = study.prepared.facts, read_yaml(study.config), spent(study)
    sft, rl = settings["sft"], settings["rl"]
    missing = [
        f"{label}, seed {seed}"
        for model, label in study.labels.items()
        for seed in study.seeds
        if summary(study.folder(seed) / model[0]) is None and model not in list(SUPERVISED)[1:]
    ]
    more = (sft["stop_epoch"] - sft["warmup_epoch"]) * study.annotated
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "tokenizers"))
    yield "# Real questions: few annotations, many answers\n"
    yield from paragraph(
        "Written by `make real` (`python -m benchmarks.real`), which makes all of it from files that anybody can "
        "download: SVAMP's annotated programs and test set, and GSM8K's training questions."
    )
    if missing:
        yield from paragraph(f"**Not finished**, and left out below: {'; '.join(missing)}.")
    yield from (*accuracies(study, HELD_OUT), "")
    yield from paragraph(
        f"{facts['held']} held-out questions. `beyond SFT` is the mean over seeds of the difference from SFT "
        "continued, best on dev, with its 95 % interval by Student's t over the seeds, which share the questions; then "
        "the least and the most of the differences. All models of reinforcement are the best on dev of their run, too. "
        f"One standard error of a cell is about {100 * math.sqrt(0.24 / max(1, facts['held'])):.1f} points."
    )
    yield from paragraph(verdict(study))
    yield from (*paired(study, HELD_OUT), "")
    yield from paragraph(
        "Questions that only the arm, and only SFT continued answers right, and the two-sided sign test of a seed. The "
        "seeds share the questions, so that their sum has no test."
    )
    yield from (*accuracies(study, OFFICIAL), "")
    yield from (*paired(study, OFFICIAL), "")
    yield from paragraph(
        f"The official test set of {facts['official']:,} asks otherwise than SVAMP's training questions do: with "
        "numbers that do not matter, and with names left out; and it asks questions longer than any trained on."
    )
    yield "## Set-up\n"
    yield from paragraph(
        f"**Programs** are one expression behind one token, such as `{HEADER!r}` and ` 16 - 8`. SVAMP's are written so "
        f"where they are arithmetic and give their answer: {facts['svamp_used']:,} different questions. A hash of the "
        f"question says which are held out, and which are dev. Short ones are kept, and of those to train on "
        f"{facts['train']:,} are drawn; dev has {facts['dev']}.",
        f"**Pretraining**, once for all seeds: {facts['pretrain']:,} rows of {facts['pretrain_questions']:,} questions "
        f"of GSM8K, each asked up to {VERSIONS} times with other numbers. Their programs are made of the calculator "
        "notes of their solutions, where it is plain which number is which. The vocabulary, learned of these and of "
        f"the training questions, has {facts['vocabulary']:,} tokens; numbers are in groups of two digits.",
        f"**SFT**: each seed draws {study.annotated} of the training questions anew, whose programs it may read. The "
        f"warm-up is epoch {sft['warmup_epoch']} of {sft['schedule_epochs']}; SFT continued goes on to epoch "
        f"{sft['stop_epoch']}, which is {more:,} examples more.",
        f"**Reinforcement**, from the warm-up: the answers of all {facts['train']:,}, "
        f"{rl['epochs'] * facts['train']:,} completions a run, {rl['rollout_batch_size']} an iteration, in minibatches "
        f"of {rl['minibatch_size']}.",
        "Settings were chosen on dev of seed 60, and frozen before these seeds were run. Without a baseline learning "
        "rates of 2.5e-4 with two passes over an iteration's completions, 5e-4 with one and with two, and 1e-3 with "
        "one were tried, and the first was best; for PPO 2.5e-4 with two, and 5e-4 and 1e-3 with one, and the second "
        "was best. The other arms have the first. Before that three pretrainings and two settings of SFT were tried, "
        "by SFT's accuracy on dev.",
    )
    yield from (*table(["arm", f"changes in `benchmarks/{study.config.name}`"], arms_told(study.arms)), "")
    yield "## How the runs end\n"
    yield from (*endings(study), "")
    yield from paragraph(
        f"Means over the last {LAST} iterations, and over the seeds that are finished; `right at first` is the first "
        "iteration's."
    )
    yield "## What it took\n"
    yield from paragraph(
        f"{total.cpu_seconds / 60:.0f} minutes of a core, all commands together, which would be "
        f"{total.cpu_seconds / 60 / workers:.0f} minutes on {workers} cores that nobody else uses. By the clock, "
        f"command by command, it came to {total.seconds / 60:.0f} minutes. {processor()}; {versions}."
    )


def main(
    out: Path = Path("runs/real"),
    data: Path | None = None,
    seeds: tuple[int, ...] = (61, 62, 63, 64, 65),
    arms: tuple[str, ...] = NAMES,
    workers: int = 2,
    annotated: int = 400,
    config: Path = CONFIG,
    report: Path = Path("docs/real.md"),
) -> None:
    """Trains what is not there yet, and writes the page.

    Args:
        out: folder of the runs.
        data: folder of the downloaded files; left out it is REFT_DATA.
        seeds: of the runs, and of the questions whose programs are read.
        arms: names of the arms to run.
        workers: commands at the same time.
        annotated: training questions whose programs are read.
        config: what all runs share.
        report: Markdown file that is written.
    """
    chosen = choose(ARMS, arms)
    try:
        prepared = prepare(data_folder(data), out / "data")
    except FileNotFoundError as error:
        sys.exit(str(error))
    study = Study(out, seeds, chosen, config, annotated, prepared)
    writing = threading.Lock()

    def write(_: "Future[None] | None" = None) -> None:
        with writing:
            write_whole(report, "\n".join(page(study, workers)).rstrip() + "\n")

    study.pretrain()
    jobs = Jobs(workers)
    warm = {seed: jobs.give(study.supervise, seed) for seed in seeds}
    for arm in study.arms:
        for seed in seeds:
            jobs.give(study.reinforce, seed, arm, after=[warm[seed]]).add_done_callback(write)
    try:
        jobs.finish()
    finally:
        write()
        print(f"wrote {report}", file=sys.stderr)


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
