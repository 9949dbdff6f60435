"""Do right completions suffice, and when do baselines help? Written to docs/family.md by this command.

    python -m benchmarks.family --out runs/family

The methods of docs/paper_index.md on the embedded problems, each from its seed's warm-up, with the same number of
completions and the same optimizer; once on programs of some 12 tokens, as the problems have them, and once on the same
programs written out, of some 40. The package's own command does it, each run on a core of its own. The same command
goes on where it stopped, and the page has what is finished.
"""

import collections
import dataclasses
import importlib.metadata
import re
import statistics
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from benchmarks.real import NEW_CRITIC
from benchmarks.runs import (
    Arm,
    arms_told,
    choose,
    costs,
    iterations,
    mean_with_interval,
    paragraph,
    processor,
    summary,
    table,
    train,
)
from benchmarks.study import Jobs
from benchmarks.word_problems import write_rows
from reft_jax.config import TemplateConfig
from reft_jax.data.embedded.problems import generate_problems
from reft_jax.files import write_whole

CONFIG = "configs/quickstart.yaml"
LAST = 8  # iterations over which the end of a run is averaged

SINGLE: Mapping[str, Any] = {"rl.epochs": 4}
GROUPS: Mapping[str, Any] = {"rl.epochs": 1, "rl.rollout_batch_size": 64, "rl.samples_per_question": 4}
"""Two ways to the same number of completions, 256 an iteration: each question four times with one sample, or once with
four."""
NO_KL: Mapping[str, Any] = {"rl.kl_coef": 0.0}
ONE_OR_NOTHING: Mapping[str, Any] = {"reward.wrong": 0.0, **NO_KL}


def alone(run: str, label: str, overlay: str = "", **changes: Any) -> Arm:
    """An arm with one sample a question."""
    return _arm(run, label, overlay, SINGLE, changes)


def grouped(run: str, overlay: str, label: str, **changes: Any) -> Arm:
    """An arm with several samples a question."""
    return _arm(run, label, overlay, GROUPS, changes)


def _arm(run: str, label: str, overlay: str, budget: Mapping[str, Any], changes: Mapping[str, Any]) -> Arm:
    files = (f"overlays/{overlay}",) if overlay else ()
    return Arm(run, label, files, {**budget, **changes})


ARMS = (
    alone("steady", "steady: right completions alone", "steady"),
    grouped("raft", "raft_plus_plus", "RAFT++: right completions alone, clipped"),
    alone("ppo", "PPO, ReFT"),
    alone("critic", "PPO, new critic", "detached_critic", **NEW_CRITIC),
    alone("constant", "constant baseline of 0.5", "reinforce", **{"rl.baseline_shift": 0.5, **ONE_OR_NOTHING}),
    grouped("grpo", "grpo", "GRPO"),
    grouped("rloo", "rloo", "RLOO, without KL", **ONE_OR_NOTHING),
    grouped("dr_grpo", "dr_grpo", "Dr. GRPO"),
    grouped("maxrl", "maxrl", "MaxRL"),
    grouped("w_reinforce", "w_reinforce", "W-REINFORCE: right ones count a tenth"),
    grouped("topr", "topr", "TOPR"),
    grouped("asymre", "asymre", "AsymRE"),
    grouped("rej", "reinforce_rej", "Reinforce-Rej"),
    alone("plus_plus", "REINFORCE++", "reinforce_plus_plus"),
    alone("online", "online self-training", "online_self_training"),
    grouped("cispo", "cispo", "CISPO"),
    grouped("gspo", "gspo", "GSPO"),
    alone("vc_ppo", "VC-PPO", "vc_ppo", **{"rl.critic_warmup": 4, "rl.critic_optimizer.learning_rate": 1e-3}),
)
"""Those that matter most first, since a command that is stopped has finished them."""
POSITIVES = {True: "raft", False: "steady"}
"""The arm of right completions alone, by whether a question has several samples."""
NAMES = tuple(arm.run for arm in ARMS)


@dataclasses.dataclass(frozen=True, eq=False)
class Length:
    """How programs are written, and what the config says of it."""

    name: str
    changes: Mapping[str, Any]


def written_out(program: str) -> str:
    """A program of the embedded problems with a line for each operand: `a = 5 + b` gets `first`, `second` and `a`."""
    return re.sub(
        r"^    (\w+) = (\w+) ([-+*/]) (\w+)$",
        r"    first = \2\n    second = \4\n    \1 = first \3 second",
        program,
        flags=re.MULTILINE,
    )


def word_tokenizer(texts: Iterable[str]) -> Any:
    """A token is a piece of a prompt's frame, an indent, a line break, or a word, number or sign with its space."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    templates = TemplateConfig()
    frame = (templates.instruction, templates.cot_trigger, *templates.program_header.split("{question}"))
    pieces = "|".join((*map(re.escape, frame), "    ", " ?[A-Za-z]+", " ?[0-9]+", " [-+*/=]", "[.,?\n]"))
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = ["<pad>", "<eos>", "<unk>"]
    numbers = (f" {n}" for n in range(200))
    tokenizer.train_from_iterator([*numbers, *texts], trainers.WordLevelTrainer(special_tokens=special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def write_out(folder: Path) -> Length:
    """Writes the embedded problems with programs written out, and a tokenizer for them; says what then changes."""
    folder.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    changes: dict[str, Any] = {"model.tokenizer": folder / "tokenizer"}
    splits: dict[Literal["train", "test", "pretrain"], str] = {
        "train": "data.train",
        "test": "data.test",
        "pretrain": "pretrain.source",
    }
    for split, key in splits.items():
        rows = [dataclasses.replace(p, cot=written_out(p.cot or "")) for p in generate_problems(split)]
        write_rows(folder / f"{split}.jsonl", rows)
        changes |= {f"{key}.kind": "jsonl", f"{key}.path": folder / f"{split}.jsonl", f"{key}.id_field": "id"}
        texts += [f"{TemplateConfig().instruction}{p.question}{TemplateConfig().cot_trigger}{p.cot}" for p in rows]
    word_tokenizer(texts).save_pretrained(folder / "tokenizer")
    buckets = {"pretrain.response_buckets": "[52]", "sft.response_buckets": "[108]", "generation.max_new_tokens": 76}
    return Length("written out", {**changes, **buckets})


SHORT = Length("as they are", {})


def warm_up(folder: Path, length: Length, seed: int) -> None:
    """The quickstart's pretraining and SFT, as far as the warm-up."""
    train(folder, "sft", (CONFIG,), {"seed": seed, "rl.epochs": 0, "sft.stop_epoch": 6, **length.changes})


def reinforce(folder: Path, length: Length, seed: int, arm: Arm) -> None:
    """An arm, from the seed's warm-up; the recipe's other constants are the quickstart's."""
    begin = {"pretrain.epochs": 0, "sft.schedule_epochs": 0, "rl.init_from": folder / "sft/checkpoints/warmup"}
    train(folder, arm.run, (CONFIG, *arm.overlays), {"seed": seed, **begin, **length.changes, **arm.changes})


Folders = Mapping[int, Path]
"""Of a length's runs, by seed."""


def accuracy(folder: Path, run: str, model: str) -> float | None:
    """Greedy accuracy of a run's model on test, in per cent; None where the run is not finished.

    A run that never read a better one on dev stands at its warm-up.
    """
    if (found := summary(folder / run)) is None:
        return None
    if model not in found:
        return accuracy(folder, "sft", "warmup")
    return 100 * found[model]["accuracy"]


ENDINGS = {
    "reward/correct": "right at the end",
    "rl/entropy": "entropy",
    "response/length_mean": "tokens",
}


def is_grouped(arm: Arm) -> bool:
    """Whether a question has several samples."""
    return "rl.samples_per_question" in arm.changes


def beyond(folders: Folders, arm: Arm) -> list[float]:
    """The arm's accuracy beyond that of right completions alone, for each seed that has both."""
    pairs = [
        (accuracy(folder, arm.run, "rl_best"), accuracy(folder, POSITIVES[is_grouped(arm)], "rl_best"))
        for folder in folders.values()
    ]
    return [own - base for own, base in pairs if own is not None and base is not None]


def results(folders: Folders, arms: Sequence[Arm]) -> list[str]:
    """The table of a length: a row a model, a column a seed, then differences, and how the runs end."""
    begin = _cells([accuracy(folder, "sft", "warmup") for folder in folders.values()])
    rows = [["warm-up", "", *begin, "", *[""] * len(ENDINGS)]]
    for arm in arms:
        values = [accuracy(folder, arm.run, "rl_best") for folder in folders.values()]
        more = beyond(folders, arm) if arm.run not in POSITIVES.values() else []
        finished = [iterations(f / arm.run)[-LAST:] for f in folders.values() if summary(f / arm.run) is not None]
        ends = []
        for key in ENDINGS:
            found = [r[key] for records in finished for r in records if r.get(key) is not None]
            ends.append(f"{statistics.mean(found) * (100 if key == 'reward/correct' else 1):.3g}" if found else "")
        samples = "4" if is_grouped(arm) else "1"
        rows.append([arm.label, samples, *_cells(values), mean_with_interval(more) if more else "", *ends])
    seeds = (f"seed {seed}" for seed in folders)
    heads = ["test, %", "samples", *seeds, "mean", "beyond right ones alone", *ENDINGS.values()]
    return table(heads, rows)


def _cells(values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    mean = f"**{statistics.mean(known):.1f}**" if known else ""
    return [*("" if value is None else f"{value:.1f}" for value in values), mean]


def verdict(folders: Folders, arms: Sequence[Arm]) -> str:
    """Which arms are above right completions alone on every seed, which below, and which neither."""
    found = collections.defaultdict[str, list[str]](list)
    for arm in arms:
        if arm.run in POSITIVES.values() or not (differences := beyond(folders, arm)):
            continue
        kind = "above" if min(differences) > 0 else "below" if max(differences) < 0 else "neither"
        found[kind].append(f"{arm.label} ({statistics.mean(differences):+.1f})")
    told = {kind: "; ".join(found[kind]) or "none" for kind in ("above", "below", "neither")}
    return (
        f"Beyond right completions alone on every seed: {told['above']}. Below on every seed: {told['below']}. "
        f"Neither: {told['neither']}."
    )


def starts(folders: Folders) -> str:
    """What share of the first iteration's completions is right, and how long they are."""
    runs = [folder / run for folder in folders.values() for run in POSITIVES.values()]
    first = [iterations(run)[0] for run in runs if summary(run) is not None]
    if not first:
        return "No run is finished."
    right, tokens = (statistics.mean(r[key] for r in first) for key in ("reward/correct", "response/length_mean"))
    return f"At first {100 * right:.0f} % of the completions are right, and a completion has {tokens:.0f} tokens."


def page(folders: Mapping[Length, Folders], arms: Sequence[Arm]) -> Iterator[str]:
    """Yields the lines of docs/family.md."""
    runs = ("sft", *(arm.run for arm in arms))
    missing = [
        f"{arm.label}, {length.name}, seed {seed}"
        for arm in arms
        for length, by_seed in folders.items()
        for seed, folder in by_seed.items()
        if summary(folder / arm.run) is None
    ]
    seconds = sum(costs(f / f"{run}.log").cpu_seconds for by in folders.values() for f in by.values() for run in runs)
    yield "# Right completions alone, and baselines\n"
    yield from paragraph(
        "Written by `python -m benchmarks.family`. Methods of [the paper index](paper_index.md) on the embedded "
        "problems, under one budget: 8,000 completions, 256 an iteration, one pass over them in minibatches of 32, "
        "learning rate 5e-4. Each is from its seed's warm-up, and its model is chosen on dev. Right completions alone "
        "are what the others are compared with, seed by seed: `steady` where a question has one sample an "
        "iteration, RAFT++ where it has four."
    )
    if missing:
        yield from paragraph(f"**Not finished**, and left out below: {'; '.join(missing)}.")
    for length, by_seed in folders.items():
        yield f"## Programs {length.name}\n"
        yield from paragraph(starts(by_seed))
        yield from (*results(by_seed, arms), "")
        yield from paragraph(verdict(by_seed, arms))
    yield "## What the columns are\n"
    yield from paragraph(
        "Greedy accuracy on the 1,000 test problems; one standard error of a cell is about 1.5 points. `mean` is over "
        "the seeds that are finished. `beyond` has the mean difference and its 95 % interval by Student's t over the "
        f"seeds. The last three columns are means over the last {LAST} iterations: completions that are right in per "
        "cent, nats a token, tokens a completion.",
        "Written out, each operation has a line for either operand (`first = 5`, `second = b`, `a = first + second`), "
        "and a line is several tokens where it was one. The questions, the operations and what is right stay.",
        "Not here: DAPO, which draws questions again and so has another budget; dual clip, the entropy floor and "
        "weights against the sampler, which do little where completions are used once; VAPO, which is VC-PPO with "
        "parts of others; the separate critic, which is VC-PPO's.",
        "One learning rate for all is not each one's best: Adam makes little of the scale of a loss, but a method "
        "with less noise may bear a higher one. The problems are the embedded ones, whose annotations have errors.",
    )
    yield from (*table(["arm", f"changes in `{CONFIG}`"], arms_told(arms)), "")
    yield from paragraph(
        f"{seconds / 60:.0f} minutes of a core. {processor()}, jax {importlib.metadata.version('jax')}."
    )


def main(
    out: Path = Path("runs/family"),
    seeds: tuple[int, ...] = (81, 82, 83),
    arms: tuple[str, ...] = NAMES,
    workers: int = 2,
    report: Path = Path("docs/family.md"),
) -> None:
    """Trains what is not there yet, and writes the page after each run.

    Args:
        out: folder of the runs.
        seeds: of the runs.
        arms: names of the arms to run.
        workers: commands at the same time.
        report: Markdown file that is written.
    """
    chosen, lengths = choose(ARMS, arms), (SHORT, write_out(out / "data"))
    folders = {
        length: {seed: out / length.name.replace(" ", "-") / f"seed-{seed}" for seed in seeds} for length in lengths
    }
    writing = threading.Lock()

    def write(_: "Future[None] | None" = None) -> None:
        with writing:
            write_whole(report, "\n".join(page(folders, chosen)).rstrip() + "\n")

    jobs = Jobs(workers)
    warm = {
        (length.name, seed): jobs.give(warm_up, folders[length][seed], length, seed)
        for seed in seeds
        for length in lengths
    }
    for arm in chosen:
        for seed in seeds:
            for length in lengths:
                job = jobs.give(reinforce, folders[length][seed], length, seed, arm, after=[warm[length.name, seed]])
                job.add_done_callback(write)
    try:
        jobs.finish()
    finally:
        write()
        print(f"wrote {report}", file=sys.stderr)


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
