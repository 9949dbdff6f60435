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
class Setting:
    """How programs are written, and what the arms begin from."""

    folder: str
    title: str
    changes: Mapping[str, Any]
    """What the config says of how programs are written."""
    after: "Setting | None" = None
    """The arms begin from the model of `steady` in this setting; without it, from their own warm-up."""


@dataclasses.dataclass(frozen=True)
class Runs:
    """A seed's runs in a setting."""

    out: Path
    setting: Setting
    seed: int

    @property
    def folder(self) -> Path:
        """Has a folder for each of the runs."""
        return self.out / self.setting.folder / f"seed-{self.seed}"

    @property
    def start(self) -> tuple[Path, str]:
        """Run and model that the arms begin from."""
        if self.setting.after is None:
            return self.folder / "sft", "warmup"
        return dataclasses.replace(self, setting=self.setting.after).folder / "steady", "rl_best"


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


def write_out(folder: Path) -> Setting:
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
    return Setting("written-out", "Programs written out", {**changes, **buckets})


SHORT = Setting("as-they-are", "Programs as they are", {})
LATER = Setting("later", "Programs as they are, from the model of `steady`", {}, after=SHORT)


def warm_up(runs: Runs) -> None:
    """The quickstart's pretraining and SFT, as far as the warm-up."""
    changes = {"seed": runs.seed, "rl.epochs": 0, "sft.stop_epoch": 6, **runs.setting.changes}
    train(runs.folder, "sft", (CONFIG,), changes)


def reinforce(runs: Runs, arm: Arm) -> None:
    """An arm, from its setting's start; the recipe's other constants are the quickstart's."""
    run, model = runs.start
    begin = {"pretrain.epochs": 0, "sft.schedule_epochs": 0, "rl.init_from": run / "checkpoints" / model}
    changes = {"seed": runs.seed, **begin, **runs.setting.changes, **arm.changes}
    train(runs.folder, arm.run, (CONFIG, *arm.overlays), changes)


def accuracy_at_start(runs: Runs) -> float | None:
    """Greedy accuracy on test of what the arms begin from, in per cent; None where it is not made yet."""
    run, model = runs.start
    found = summary(run)
    return None if found is None else 100 * found[model]["accuracy"]


def accuracy(runs: Runs, arm: str) -> float | None:
    """That of the arm's model; None where its run is not finished. Where dev was never read it stands at the start."""
    if (found := summary(runs.folder / arm)) is None:
        return None
    return 100 * found["rl_best"]["accuracy"] if "rl_best" in found else accuracy_at_start(runs)


ENDINGS = {
    "reward/correct": "right at the end",
    "rl/entropy": "entropy",
    "response/length_mean": "tokens",
}


def is_grouped(arm: Arm) -> bool:
    """Whether a question has several samples."""
    return "rl.samples_per_question" in arm.changes


def beyond(seeds: Sequence[Runs], arm: Arm) -> list[float]:
    """The arm's accuracy beyond that of right completions alone, for each seed that has both."""
    pairs = [(accuracy(runs, arm.run), accuracy(runs, POSITIVES[is_grouped(arm)])) for runs in seeds]
    return [own - base for own, base in pairs if own is not None and base is not None]


def finished(seeds: Sequence[Runs], arm: str) -> list[Path]:
    """The arm's runs that are."""
    return [runs.folder / arm for runs in seeds if summary(runs.folder / arm) is not None]


def results(seeds: Sequence[Runs], arms: Sequence[Arm]) -> list[str]:
    """The table of a setting: a row a model, a column a seed, then differences, and how the runs end."""
    rows = [["the start", "", *_cells([accuracy_at_start(runs) for runs in seeds]), "", *[""] * len(ENDINGS)]]
    for arm in arms:
        more = beyond(seeds, arm) if arm.run not in POSITIVES.values() else []
        records = [record for run in finished(seeds, arm.run) for record in iterations(run)[-LAST:]]
        ends = []
        for key in ENDINGS:
            found = [record[key] for record in records if record.get(key) is not None]
            ends.append(f"{statistics.mean(found) * (100 if key == 'reward/correct' else 1):.3g}" if found else "")
        cells = _cells([accuracy(runs, arm.run) for runs in seeds])
        rows.append(
            [arm.label, "4" if is_grouped(arm) else "1", *cells, mean_with_interval(more) if more else "", *ends]
        )
    heads = ["test, %", "samples", *(f"seed {runs.seed}" for runs in seeds), "mean", "beyond right ones alone"]
    return table([*heads, *ENDINGS.values()], rows)


def _cells(values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    mean = f"**{statistics.mean(known):.1f}**" if known else ""
    return [*("" if value is None else f"{value:.1f}" for value in values), mean]


def verdict(seeds: Sequence[Runs], arms: Sequence[Arm]) -> str:
    """Which arms are above right completions alone on every seed, which below, and which neither."""
    found = collections.defaultdict[str, list[str]](list)
    for arm in arms:
        if arm.run in POSITIVES.values() or not (differences := beyond(seeds, arm)):
            continue
        kind = "above" if min(differences) > 0 else "below" if max(differences) < 0 else "neither"
        found[kind].append(f"{arm.label} ({statistics.mean(differences):+.1f})")
    told = {kind: "; ".join(found[kind]) or "none" for kind in ("above", "below", "neither")}
    return (
        f"Beyond right completions alone on every seed: {told['above']}. Below on every seed: {told['below']}. "
        f"Neither: {told['neither']}."
    )


def starts(seeds: Sequence[Runs]) -> str:
    """What share of the first iteration's completions is right, and how long they are."""
    first = [iterations(run)[0] for arm in POSITIVES.values() for run in finished(seeds, arm)]
    if not first:
        return "No run is finished."
    right, tokens = (statistics.mean(r[key] for r in first) for key in ("reward/correct", "response/length_mean"))
    return f"At first {100 * right:.0f} % of the completions are right, and a completion has {tokens:.0f} tokens."


def page(settings: Mapping[Setting, Sequence[Runs]], arms: Sequence[Arm]) -> Iterator[str]:
    """Yields the lines of docs/family.md."""
    missing = [
        f"{arm.label} ({setting.folder}, seed {runs.seed})"
        for arm in arms
        for setting, seeds in settings.items()
        for runs in seeds
        if summary(runs.folder / arm.run) is None
    ]
    logs = [
        runs.folder / f"{run}.log"
        for seeds in settings.values()
        for runs in seeds
        for run in ("sft", *(arm.run for arm in arms))
    ]
    seconds = sum(costs(log).cpu_seconds for log in logs)
    yield "# Right completions alone, and baselines\n"
    yield from paragraph(
        "Written by `python -m benchmarks.family`. Methods of [the paper index](paper_index.md) on the embedded "
        "problems, under one budget: 8,000 completions, 256 an iteration, one pass over them in minibatches of 32, "
        "learning rate 5e-4. Models are chosen on dev. Right completions alone are what the others are compared with, "
        "seed by seed: `steady` where a question has one sample an iteration, RAFT++ where it has four."
    )
    if missing:
        yield from paragraph(f"**Not finished**, and left out below: {'; '.join(missing)}.")
    if left := [arm.label for arm in ARMS if arm not in arms]:
        yield from paragraph(f"Not run for this page, though the command has them: {'; '.join(left)}.")
    for setting, seeds in settings.items():
        yield f"## {setting.title}\n"
        yield from paragraph(starts(seeds))
        yield from (*results(seeds, arms), "")
        yield from paragraph(verdict(seeds, arms))
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
    chosen, order = choose(ARMS, arms), [SHORT, write_out(out / "data")]
    order += [LATER] if ARMS[0] in chosen else []  # it begins from that arm's model
    settings = {setting: [Runs(out, setting, seed) for seed in seeds] for setting in order}
    writing = threading.Lock()

    def write(_: "Future[None] | None" = None) -> None:
        with writing:
            write_whole(report, "\n".join(page(settings, chosen)).rstrip() + "\n")

    jobs = Jobs(workers)
    begun = {
        runs.start: jobs.give(warm_up, runs) for setting in order if not setting.after for runs in settings[setting]
    }
    for arm in chosen:
        for i in range(len(seeds)):
            for setting in order:
                runs = settings[setting][i]
                job = jobs.give(reinforce, runs, arm, after=[begun[runs.start]])
                job.add_done_callback(write)
                begun[runs.folder / arm.run, "rl_best"] = job
    try:
        jobs.finish()
    finally:
        write()
        print(f"wrote {report}", file=sys.stderr)


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
